"""The gate held: challenger and champion on the same validation videos, the verdict kept, the alias moved if it may be.

1. Under a lock, from the first look at the champion to the move of the alias.
2. Wrong input ends it before anything is written. The verdict is written before the alias moves.
3. `force` moves the alias in spite of the verdict, with a reason that is kept; it never goes round the lock.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from videoblip2.captions.metrics import label_of, shown
from videoblip2.config import InputError
from videoblip2.evaluate import Evaluation
from videoblip2.progress import Progress, no_progress
from videoblip2.provenance import Provenance
from videoblip2.registry import contenders, verdict_files
from videoblip2.registry.contenders import Contender, Manifest
from videoblip2.registry.gate import Condition, Gate, Verdict, judge, load_gate
from videoblip2.registry.lock import PromotionLock, promotion_lock, user
from videoblip2.registry.trail import Move, move_champion
from videoblip2.registry.versions import NAME, champion, register, store_in_words, version_of
from videoblip2.tracking import RunSpec, open_run
from videoblip2.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRIVIAL = "the most typical training caption"
MANIFEST = "gate.manifest"


@dataclass(frozen=True)
class Request:
    """What was asked for. reason: why the verdict is to be overruled; empty = it is not."""

    model: str
    name: str = NAME
    gate_file: Path | None = None
    overrides: tuple[str, ...] = ()
    reason: str = ""
    new_manifest: bool = False


@dataclass(frozen=True)
class Promotion:
    """What became of it. `previous`: the champion before; `opponent`: what was compared with."""

    name: str
    version: int
    model: str
    previous: int | None
    opponent: str
    promoted: bool
    forced: bool
    verdict: Verdict
    manifest: Manifest
    gate: str
    run_id: str | None


@dataclass(frozen=True)
class Trial:
    """Both sides, captioned and scored."""

    challenger: Contender
    opponent: str
    sides: tuple[Evaluation, Evaluation]
    verdict: Verdict


def promote(request: Request, progress: Progress = no_progress) -> Promotion:
    """Hold the gate over a logged model; make it champion if it passes, or if a reason overrules the verdict.

    The model is registered as a version in any case and carries the verdict. Raises InputError for a model that is no
    run's or is champion already, for validation data that differ from the champion's, where another promotion is under
    way, and where the alias was moved by somebody else meanwhile.
    """
    gate = load_gate(request.gate_file)
    with store_in_words():
        model_id = _model_id(request.model)
        with promotion_lock(request.name) as lock:
            before = champion(request.name)
            if before is not None and version_of(lock.client, request.name, model_id) == before:
                raise InputError(f"{request.model}: is the champion already ({request.name}/{before})")
            challenger = contenders.open_contender(f"models:/{model_id}", request.model, request.overrides)
            rival, problems = _rival(lock.client, request, gate, before, challenger)
            title = f"promote-{challenger.model.captioner.provenance.name or model_id}"
            with open_run(RunSpec("promote", title, challenger.config.run.experiment)) as tracker:
                trial = _try(gate, challenger, rival, problems, progress)
                return _conclude(request, gate, lock, tracker, model_id, before, trial)


def _model_id(model: str) -> str:
    """The logged model behind a run id or a `models:/` address. A folder may have changed since it was logged."""
    from videoblip2.tracking.mlflow.models import logged_model

    if Path(model).exists():
        run = Provenance.read(Path(model), optional=True).run_id
        raise InputError(f"{model}: a folder; promote what a run logged: {run or 'a run id of `vb2 runs list`'}")
    return str(logged_model(model)[0].model_id)


def _rival(
    client: "MlflowClient", request: Request, gate: Gate, before: int | None, challenger: Contender
) -> tuple[Contender | None, list[Condition]]:
    """The champion, if there is one that can be compared; where a reason overrules, what is wrong is a failed line."""
    if before is None:
        return None, []
    label = f"{request.name}/{before}"
    try:
        rival = contenders.open_contender(f"models:/{label}", label, request.overrides)
        _same_ground(client, request, gate, challenger, rival, before)
    except InputError as error:
        if not request.reason:
            raise
        return None, [Condition("comparable with the champion", str(error), label, "yes", False)]
    return rival, []


def _same_ground(
    client: "MlflowClient", request: Request, gate: Gate, challenger: Contender, rival: Contender, before: int
) -> None:
    """Raise InputError unless both are judged on the same data, and on those that the champion was promoted on."""
    if found := challenger.manifest.differs(rival.manifest, gate.same_features):
        raise InputError(
            f"{challenger.label} ({challenger.paths}) and {rival.label} ({rival.paths}) have {found} for validation, "
            "so their scores cannot be compared; name the same data for both, such as data.annotations=DIR"
        )
    kept = client.get_model_version(request.name, str(before)).tags.get(MANIFEST)
    if kept and not request.new_manifest and (found := rival.manifest.differs(Manifest(**json.loads(kept)))):
        raise InputError(
            f"{rival.label} was promoted on {found} than {rival.paths} holds now; restore them, or judge both on the "
            "new ones with --new-manifest"
        )


def _try(
    gate: Gate, challenger: Contender, rival: Contender | None, problems: list[Condition], progress: Progress
) -> Trial:
    """Captions, scores, latency, verdict."""
    references = challenger.references
    if rival is None:
        (own,) = contenders.caption_in_turn([challenger], progress)
        one, other = (
            contenders.score(each, references, gate.metric) for each in (own, contenders.trivial_captions(challenger))
        )
        return Trial(challenger, TRIVIAL, (one, other), judge(gate, one, other, extra=problems, trivial=True))
    captions = contenders.caption_in_turn([challenger, rival], progress)
    one, other = (contenders.score(each, references, gate.metric) for each in captions)
    means = contenders.mean_scores(list(gate.losses), captions, references)
    timed = gate.max_latency_ratio is not None
    seconds = contenders.time_in_turn(challenger, rival, gate.latency_videos, progress) if timed else ()
    return Trial(challenger, rival.label, (one, other), judge(gate, one, other, means, seconds, problems))


def _conclude(
    request: Request,
    gate: Gate,
    lock: PromotionLock,
    tracker: Tracker,
    model_id: str,
    before: int | None,
    trial: Trial,
) -> Promotion:
    """Register the version, keep the verdict with it, and move the alias where it may move."""
    client, name, verdict = lock.client, request.name, trial.verdict
    version = version_of(client, name, model_id) or register(f"models:/{model_id}", name)
    forced = bool(request.reason) and not verdict.passed
    facts = _facts(request, gate, trial, before, tracker, version)
    keep_verdict(client, tracker, name, version, model_id, gate, trial, facts)
    if verdict.passed or forced:
        why = (
            request.reason
            if forced
            else f"passed the gate: {shown(gate.metric, verdict.gain.difference, '+')} {label_of(gate.metric)}"
        )
        _crown(lock, Move("force" if forced else "promote", version, before, why))
    outcome = "promoted" if verdict.passed else "forced" if forced else "held back"
    for tags in (tracker.set_tags, lambda tags: _tag(client, name, version, tags)):
        tags({"gate.outcome": outcome})
    promoted = verdict.passed or forced
    manifest = trial.challenger.manifest
    run_id, model = tracker.run_id, f"models:/{name}/{version}"
    return Promotion(
        name, version, model, before, trial.opponent, promoted, forced, verdict, manifest, gate.digest, run_id
    )


def _crown(lock: PromotionLock, move: Move) -> None:
    """Move the alias; where somebody was there before us, say so on the version, too."""
    try:
        lock.renew()
        move_champion(lock.client, lock.name, move)
    except InputError as error:
        _tag(lock.client, lock.name, move.version, {"gate.outcome": f"not moved: {error}"})
        raise


def _facts(
    request: Request, gate: Gate, trial: Trial, before: int | None, tracker: Tracker, version: int
) -> dict[str, str]:
    """What the version's tags and the files say beside the conditions; numbers in pycocoevalcap's scale."""
    verdict, gain = trial.verdict, trial.verdict.gain
    facts = {
        "version": f"{request.name}/{version}",
        "verdict": "passed" if verdict.passed else "failed",
        "failed": "; ".join(verdict.failed),
        "opponent": trial.opponent,
        "previous_champion": "none" if before is None else str(before),
        "gain": f"{gain.difference:.6f}",
        "interval": f"{gain.low:.6f} to {gain.high:.6f}",
        "p_value": f"{gain.p_value:.6f}",
        "videos": str(trial.challenger.manifest.size),
        "manifest": json.dumps(asdict(trial.challenger.manifest)),
        "digest": gate.digest,
        "run_id": str(tracker.run_id),
        "who": user(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "reason": request.reason if not verdict.passed else "",
    }
    return {key: value for key, value in facts.items() if value}


def keep_verdict(
    client: "MlflowClient",
    tracker: Tracker,
    name: str,
    version: int,
    model_id: str,
    gate: Gate,
    trial: Trial,
    facts: dict[str, str],
) -> None:
    """On the version: tags `gate.…`, the table as its description, and the files in its model under gate/WHEN; on the
    run: metrics, the files, the challenger's captions."""
    verdict, (challenger, _) = trial.verdict, trial.sides
    text = verdict_files.markdown(verdict, (trial.challenger.label, trial.opponent), facts)
    place = f"gate/{facts['when'].replace(':', '').replace('+0000', 'Z')}"
    with tempfile.TemporaryDirectory() as folder:
        verdict_files.write_verdict(Path(folder), verdict, gate, trial.sides, facts)
        client.log_model_artifacts(model_id, folder, place)
        for file in sorted(Path(folder).iterdir()):
            tracker.log_file(file, "gate")
    for old in client.get_model_version(name, str(version)).tags:
        if old.startswith("gate."):
            client.delete_model_version_tag(name, str(version), old)
    _tag(client, name, version, {f"gate.{key}": value for key, value in facts.items()} | {"gate.files": place})
    client.update_model_version(name, str(version), description=text)
    tracker.set_tags({f"gate.{key}": value for key, value in facts.items()} | {"model": f"models:/{model_id}"})
    tracker.log_data("gate/val.json", trial.challenger.manifest.digest, "val")
    tracker.log_metrics({f"gate/{key}": value for key, value in verdict.gain._asdict().items()}, step=0)
    tracker.log_metrics({f"val/{key}": value for key, value in challenger.corpus.items()}, step=0)
    tracker.log_table("predictions", challenger.rows()[: trial.challenger.config.train.probe_videos])
    tracker.note(text)


def _tag(client: "MlflowClient", name: str, version: int, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(name, str(version), key, value)
