"""Promotion: compare challenger and champion on the same validation data, store the verdict, move the alias if allowed.

1. A lock is held from reading the current champion until the alias has moved.
2. Wrong input stops the promotion before anything is written. The verdict is written before the alias moves.
3. A reason moves the alias despite a failed verdict, and is stored. It never bypasses the lock.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from videoblip2.captions.metrics import label_of, shown
from videoblip2.config import InputError
from videoblip2.evaluate import Evaluation
from videoblip2.progress import Progress, no_progress
from videoblip2.provenance import Provenance
from videoblip2.registry import contenders, verdict_files
from videoblip2.registry.contenders import Contender, ValidationManifest
from videoblip2.registry.gate import Condition, Gate, GateVerdict, judge, load_gate
from videoblip2.registry.lock import PromotionLock, promotion_lock
from videoblip2.registry.verdict_files import PREFIX, GateRecord
from videoblip2.registry.versions import NAME, ChampionHistory, Move, champion, register, store_in_words, version_of
from videoblip2.tracking import RunSpec, open_run
from videoblip2.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRIVIAL = {"captions": "the most typical training caption", "answers": "the most frequent training answers"}


@dataclass(frozen=True)
class Request:
    """What the user asks for. reason: why to overrule the verdict; empty = do not overrule it."""

    model: str
    name: str = NAME
    gate_file: Path | None = None
    overrides: tuple[str, ...] = ()
    reason: str = ""
    new_manifest: bool = False


@dataclass(frozen=True)
class Promotion:
    """The outcome. previous: the champion until now. opponent: what the challenger was compared with."""

    name: str
    version: int
    previous: int | None
    opponent: str
    promoted: bool
    forced: bool
    verdict: GateVerdict
    manifest: ValidationManifest
    gate: str
    run_id: str | None


@dataclass(frozen=True)
class Case:
    """One promotion that holds the lock. model_id: the challenger's logged model. before: the champion's version.

    problems: failed conditions that a reason overrules.
    """

    request: Request
    gate: Gate
    lock: PromotionLock
    model_id: str
    before: int | None
    problems: list[Condition] = field(default_factory=list)

    @property
    def client(self) -> "MlflowClient":
        return self.lock.client

    def tag(self, version: int, tags: dict[str, str]) -> None:
        """Tag a version of the registered model."""
        for key, value in tags.items():
            self.client.set_model_version_tag(self.request.name, str(version), key, value)


@dataclass(frozen=True)
class Trial:
    """Both sides, scored and judged."""

    challenger: Contender
    opponent: str
    sides: tuple[Evaluation, Evaluation]
    verdict: GateVerdict


def promote(request: Request, progress: Progress = no_progress) -> Promotion:
    """Judge a logged model by the gate; make it champion if it passes, or if a reason overrules the verdict.

    The model is registered as a version either way, tagged with the verdict. Raises InputError for a model that no run
    logged or that is already champion, for validation data that differ from the champion's, while another promotion is
    under way, and if the alias moves in the meantime.
    """
    gate = load_gate(request.gate_file)
    with store_in_words():
        model_id = _model_id(request.model)
        with promotion_lock(request.name) as lock:
            case = Case(request, gate, lock, model_id, champion(request.name))
            if case.before is not None and version_of(case.client, request.name, model_id) == case.before:
                raise InputError(f"{request.model}: is the champion already ({request.name}/{case.before})")
            challenger = contenders.open_contender(f"models:/{model_id}", request.model, request.overrides)
            rival = _rival(case, challenger)
            title = f"promote-{challenger.model.captioner.provenance.name or model_id}"
            with open_run(RunSpec("promote", title, challenger.config.run.experiment)) as tracker:
                return _conclude(case, tracker, _try(case, challenger, rival, progress))


def _model_id(model: str) -> str:
    """The logged model behind a run id or a `models:/` address. A folder may have changed since it was logged."""
    from videoblip2.tracking.mlflow.models import logged_model

    if Path(model).exists():
        run = Provenance.read(Path(model), optional=True).run_id
        raise InputError(f"{model}: a folder; promote what a run logged: {run or 'a run id of `vb2 runs list`'}")
    return str(logged_model(model)[0].model_id)


def _rival(case: Case, challenger: Contender) -> Contender | None:
    """The champion, if there is one to compare with. With a reason, an obstacle becomes a failed condition."""
    if case.before is None:
        return None
    label = f"{case.request.name}/{case.before}"
    try:
        rival = contenders.open_contender(f"models:/{label}", label, case.request.overrides)
        _refuse_other_data(case, challenger, rival)
    except InputError as error:
        if not case.request.reason:
            raise
        case.problems.append(Condition("comparable with the champion", str(error), label, "yes", False))
        return None
    return rival


def _refuse_other_data(case: Case, challenger: Contender, rival: Contender) -> None:
    """Raise InputError unless both have the same validation data, and those that the champion was promoted on."""
    if found := challenger.manifest.difference(rival.manifest, case.gate.same_features):
        raise InputError(
            f"{challenger.label} ({challenger.paths}) and {rival.label} ({rival.paths}) have {found} for validation, "
            "so their scores cannot be compared; name the same data for both, such as data.annotations=DIR"
        )
    kept = case.client.get_model_version(case.request.name, str(case.before)).tags.get(f"{PREFIX}manifest")
    if not kept or case.request.new_manifest:
        return
    if found := rival.manifest.difference(ValidationManifest(**json.loads(kept))):
        raise InputError(
            f"{rival.label} was promoted on {found} than {rival.paths} has now; restore them, or judge both on the "
            "new ones with --new-manifest"
        )


def _try(case: Case, challenger: Contender, rival: Contender | None, progress: Progress) -> Trial:
    """Captions and answers, scores, latency, verdict."""
    gate, metric = case.gate, case.gate.metric
    if rival is None:
        (own,) = contenders.say_in_turn([challenger], progress)
        one, other = (contenders.score(said, challenger, metric) for said in (own, contenders.say_trivial(challenger)))
        opponent = " and ".join(TRIVIAL[task.kind] for task in challenger.tasks)
        verdict = judge(gate, one, other, extra=case.problems, trivial=True)
        return Trial(challenger, opponent, (one, other), verdict)
    one, other = (
        contenders.score(said, challenger, metric) for said in contenders.say_in_turn([challenger, rival], progress)
    )
    means = contenders.mean_scores(list(gate.losses), (one, other))
    timed = gate.max_latency_ratio is not None
    seconds = contenders.time_in_turn(challenger, rival, gate.latency_videos, progress) if timed else ()
    return Trial(challenger, rival.label, (one, other), judge(gate, one, other, means, seconds, case.problems))


def _conclude(case: Case, tracker: Tracker, trial: Trial) -> Promotion:
    """Register the version, store the verdict with it, and move the alias if allowed."""
    request, verdict = case.request, trial.verdict
    version = version_of(case.client, request.name, case.model_id) or register(f"models:/{case.model_id}", request.name)
    forced = bool(request.reason) and not verdict.passed
    promoted = verdict.passed or forced
    _store_verdict(case, tracker, trial, version)
    if promoted:
        gain = f"{shown(verdict.metric, verdict.gain.difference, '+')} {label_of(verdict.metric)}"
        why = request.reason if forced else f"passed the gate: {gain}"
        _crown(case, Move("force" if forced else "promote", version, case.before, why))
    outcome = {f"{PREFIX}outcome": "forced" if forced else "promoted" if promoted else "held back"}
    tracker.set_tags(outcome)
    case.tag(version, outcome)
    return Promotion(
        name=request.name,
        version=version,
        previous=case.before,
        opponent=trial.opponent,
        promoted=promoted,
        forced=forced,
        verdict=verdict,
        manifest=trial.challenger.manifest,
        gate=case.gate.digest,
        run_id=tracker.run_id,
    )


def _crown(case: Case, move: Move) -> None:
    """Move the alias; if another promotion was faster, record that on the version."""
    try:
        case.lock.renew()
        ChampionHistory(case.client, case.request.name).move(move)
    except InputError as error:
        case.tag(move.version, {f"{PREFIX}outcome": f"not moved: {error}"})
        raise


def _record(case: Case, tracker: Tracker, trial: Trial, version: int) -> GateRecord:
    verdict, gain, manifest = trial.verdict, trial.verdict.gain, trial.challenger.manifest
    return GateRecord(
        version=f"{case.request.name}/{version}",
        verdict="passed" if verdict.passed else "failed",
        failed="; ".join(verdict.failed),
        opponent=trial.opponent,
        previous_champion="none" if case.before is None else str(case.before),
        metric=verdict.metric,
        gain=f"{gain.difference:.6f}",
        interval=f"{gain.low:.6f} to {gain.high:.6f}",
        p_value=f"{gain.p_value:.6f}",
        videos=str(manifest.size),
        manifest=manifest.to_json(),
        digest=case.gate.digest,
        run_id=str(tracker.run_id),
        reason="" if verdict.passed else case.request.reason,
    )


def _store_verdict(case: Case, tracker: Tracker, trial: Trial, version: int) -> None:
    """On the version: tags `gate.…`, the table as its description, and the files in its model under gate/WHEN; on the
    run: metrics, the files, what the challenger said."""
    name, client, verdict = case.request.name, case.client, trial.verdict
    record = _record(case, tracker, trial, version)
    text = verdict_files.markdown(verdict, (trial.challenger.label, trial.opponent), record)
    with tempfile.TemporaryDirectory() as folder:
        verdict_files.write_verdict(Path(folder), verdict, case.gate, trial.sides, record)
        client.log_model_artifacts(case.model_id, folder, record.place)
        for file in sorted(Path(folder).iterdir()):
            tracker.log_file(file, "gate")
    for old in client.get_model_version(name, str(version)).tags:
        if old.startswith(PREFIX):
            client.delete_model_version_tag(name, str(version), old)
    case.tag(version, record.tags() | {f"{PREFIX}files": record.place})
    client.update_model_version(name, str(version), description=text)
    tracker.set_tags(record.tags() | {"model": f"models:/{case.model_id}"})
    tracker.note(text)
    challenger, config = trial.sides[0], trial.challenger.config
    tracker.log_data("gate/val.json", trial.challenger.manifest.digest, "val")
    tracker.log_metrics({f"gate/{key}": value for key, value in verdict.gain._asdict().items()}, step=0)
    tracker.log_metrics({f"val/{key}": value for key, value in challenger.corpus.items()}, step=0)
    for table, rows in challenger.tables().items():
        tracker.log_table(table, rows[: config.train.probe_videos])
