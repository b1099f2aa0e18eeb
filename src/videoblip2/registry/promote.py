"""Promotion: compare challenger and champion on the same validation data, store the verdict, move the alias if allowed.

A lock is held from reading the current champion until the alias has moved. Invalid input stops the promotion before
anything is written. A reason moves the alias despite a failed verdict and is stored; it never bypasses the lock.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from videoblip2.captions.metrics import label_of, shown
from videoblip2.config import InputError
from videoblip2.errors import Progress, no_progress
from videoblip2.provenance import Provenance
from videoblip2.registry import contenders, verdict_files, versions
from videoblip2.registry.contenders import Contender, ValidationManifest
from videoblip2.registry.gate import Condition, Gate, GateVerdict, Sides, judge, load_gate
from videoblip2.registry.versions import NAME, Move, PromotionLock
from videoblip2.tracking import RunSpec, find_model, open_run
from videoblip2.tracking.tracker import Tracker

TRIVIAL = {"captions": "the most typical training caption", "answers": "the most frequent training answers"}


@dataclass(frozen=True)
class Request:
    """A promotion to run. reason: why to overrule the verdict; empty = do not overrule it."""

    model: str
    name: str = NAME
    gate_file: Path | None = None
    overrides: tuple[str, ...] = ()
    reason: str = ""
    new_manifest: bool = False


@dataclass(frozen=True)
class Promotion:
    """The outcome. previous: the previous champion. opponent: the other side of the comparison. reason: why the
    verdict was overruled, empty if it was not."""

    name: str
    version: int
    previous: int | None
    opponent: str
    verdict: GateVerdict
    manifest: ValidationManifest
    gate: str
    run_id: str | None
    reason: str = ""
    who: str = field(default_factory=versions.user)
    when: str = field(default_factory=versions.now)

    @property
    def promoted(self) -> bool:
        return self.verdict.passed or self.forced

    @property
    def forced(self) -> bool:
        return bool(self.reason)

    @property
    def facts(self) -> dict[str, str]:
        """The facts for verdict.json and the version's tags; scores in the metric's own scale."""
        verdict, gain = self.verdict, self.verdict.gain
        facts = {
            "version": f"{self.name}/{self.version}",
            "verdict": "passed" if verdict.passed else "failed",
            "failed": "; ".join(verdict.failed),
            "opponent": self.opponent,
            "previous_champion": str(self.previous or "none"),
            "metric": verdict.metric,
            "gain": f"{gain.difference:.6f}",
            "interval": f"{gain.low:.6f} to {gain.high:.6f}",
            "p_value": f"{gain.p_value:.6f}",
            "videos": str(self.manifest.size),
            "manifest": self.manifest.to_json(),
            "digest": self.gate,
            "run_id": str(self.run_id),
            "reason": self.reason,
            "who": self.who,
            "when": self.when,
            "files": f"gate/{self.when.replace(':', '').replace('+0000', 'Z')}",
        }
        return {key: value for key, value in facts.items() if value}


@dataclass(frozen=True)
class Case:
    """A promotion in progress, with the lock. model_id: the challenger's logged model. before: the champion's version.
    problems: failed conditions that a reason overrules."""

    request: Request
    gate: Gate
    lock: PromotionLock
    model_id: str
    before: int | None
    challenger: Contender
    problems: list[Condition] = field(default_factory=list)


def promote(request: Request, progress: Progress = no_progress) -> Promotion:
    """Judge a logged model and register it as a version; it becomes champion if it passes, or if a reason is given."""
    gate = load_gate(request.gate_file)
    model_id = _model_id(request.model)
    with versions.promotion_lock(request.name) as lock:
        before = versions.champion(request.name)
        if before is not None and _version_of(lock, model_id) == before:
            raise InputError(f"{request.model}: is already the champion ({request.name}/{before})")
        challenger = contenders.open_contender(f"models:/{model_id}", request.model, request.overrides)
        case = Case(request, gate, lock, model_id, before, challenger)
        rival = _rival(case)
        title = f"promote-{challenger.model.captioner.provenance.name or model_id}"
        with open_run(RunSpec("promote", title, challenger.model.config.run.experiment)) as tracker:
            return _conclude(case, tracker, rival, progress)


def _model_id(model: str) -> str:
    """The logged model behind a run id or a `models:/` address. Refuses folders, which may change after logging."""
    from videoblip2.tracking.mlflow.models import logged_model

    if Path(model).exists():
        run = Provenance.read(Path(model), optional=True).run_id
        raise InputError(f"{model}: a folder; promote what a run logged: {run or 'a run id of `vb2 runs list`'}")
    return str(logged_model(model)[0].model_id)


def _version_of(lock: PromotionLock, model_id: str) -> int | None:
    """The newest version that was registered from this logged model; None if there is none."""
    found = lock.client.search_model_versions(f"name = '{lock.name}'")
    return max((int(each.version) for each in found if each.source == f"models:/{model_id}"), default=None)


def _rival(case: Case) -> Contender | None:
    """The champion, if there is one. With a reason, an obstacle to comparing becomes a failed condition."""
    if case.before is None:
        return None
    label = f"{case.request.name}/{case.before}"
    try:
        rival = contenders.open_contender(f"models:/{label}", label, case.request.overrides)
        _refuse_other_data(case, rival)
    except InputError as error:
        if not case.request.reason:
            raise
        case.problems.append(Condition("comparable with the champion", str(error), label, "yes", False))
        return None
    return rival


def _refuse_other_data(case: Case, rival: Contender) -> None:
    """Raise InputError unless both use the same validation data, the ones that the champion was promoted on."""
    challenger = case.challenger
    if found := challenger.manifest.difference(rival.manifest, case.gate.same_features):
        both = f"{challenger.label} ({challenger.paths}) and {rival.label} ({rival.paths})"
        remedy = "name the same data for both, such as data.annotations=DIR"
        raise InputError(f"{both} have {found} for validation, so their scores cannot be compared; {remedy}")
    tags = case.lock.client.get_model_version(case.request.name, str(case.before)).tags
    kept = verdict_files.facts_of(tags).get("manifest")
    if not kept or case.request.new_manifest:
        return
    if found := rival.manifest.difference(ValidationManifest(**json.loads(kept))):
        remedy = "restore them, or judge both on the new ones with --new-manifest"
        raise InputError(f"{rival.label} was promoted on {found} than {rival.paths} has now; {remedy}")


def _judge(case: Case, rival: Contender | None, progress: Progress) -> tuple[Sides, GateVerdict]:
    """Score both sides and reach a verdict, against the trivial baseline if there is no rival."""
    gate, challenger = case.gate, case.challenger
    texts = [
        {task.kind: side.say(task, challenger.entries[task.kind], progress) for task in challenger.tasks}
        for side in filter(None, (challenger, rival))
    ]
    texts += [] if rival else [contenders.say_trivial(challenger)]
    metrics = [gate.metric, *(gate.losses if rival else ())]
    one, other = (contenders.score(each, challenger, metrics) for each in texts)
    seconds: Sequence[tuple[float, float]] = ()
    if rival and gate.max_latency_ratio is not None:
        seconds = contenders.time_in_turn(challenger, rival, gate.latency_videos, progress)
    return (one, other), judge(gate, one, other, seconds, case.problems, trivial=rival is None)


def _conclude(case: Case, tracker: Tracker, rival: Contender | None, progress: Progress) -> Promotion:
    """Judge, register the version, store the verdict with it, and move the alias if allowed."""
    request, challenger = case.request, case.challenger
    sides, verdict = _judge(case, rival, progress)
    promotion = Promotion(
        name=request.name,
        version=_version_of(case.lock, case.model_id) or versions.register(f"models:/{case.model_id}", request.name),
        previous=case.before,
        opponent=rival.label if rival else " and ".join(TRIVIAL[task.kind] for task in challenger.tasks),
        verdict=verdict,
        manifest=challenger.manifest,
        gate=case.gate.digest,
        run_id=tracker.run_id,
        reason="" if verdict.passed else request.reason,
    )
    _store_verdict(case, tracker, promotion, sides)
    if promotion.promoted:
        gain = f"passed the gate: {shown(verdict.metric, verdict.gain.difference, '+')} {label_of(verdict.metric)}"
        action: Literal["force", "promote"] = "force" if promotion.forced else "promote"
        try:
            case.lock.renew()
            move = Move(action, promotion.version, case.before, promotion.reason or gain)
            versions.move_champion(request.name, move)
        except InputError as error:  # another promotion came first
            _tag(case, promotion, f"not moved: {error}")
            raise
    outcome = "forced" if promotion.forced else "promoted" if promotion.promoted else "held back"
    tracker.set_tags({"gate": outcome})
    _tag(case, promotion, outcome)
    return promotion


def _tag(case: Case, promotion: Promotion, outcome: str) -> None:
    """Tag the version with the outcome, for people, and with all facts, for the next promotion and the lineage."""
    facts = json.dumps(promotion.facts | {"outcome": outcome}, ensure_ascii=False)
    for key, value in {"gate": outcome, verdict_files.TAG: facts}.items():
        case.lock.client.set_model_version_tag(promotion.name, str(promotion.version), key, value)


def _store_verdict(case: Case, tracker: Tracker, promotion: Promotion, sides: Sides) -> None:
    """Store tags, table, files under gate/WHEN and model card on the version; files, metrics and texts on the run."""
    client, version, verdict, facts = case.lock.client, str(promotion.version), promotion.verdict, promotion.facts
    text = verdict_files.markdown(verdict, (case.challenger.label, promotion.opponent), facts)
    with tempfile.TemporaryDirectory() as folder:
        verdict_files.write_verdict(Path(folder), verdict, case.gate, sides, facts)
        client.log_model_artifacts(case.model_id, folder, facts["files"])
        for file in sorted(Path(folder).iterdir()):
            tracker.log_file(file, "gate")
        checkpoint = case.challenger.model.folder
        root = next(place for place in checkpoint.parents if (place / "MLmodel").is_file())
        if (card := verdict_files.write_card(Path(folder), checkpoint, text)) is not None:
            client.log_model_artifact(case.model_id, str(card), str(checkpoint.relative_to(root)))
    _tag(case, promotion, facts["verdict"])
    client.update_model_version(promotion.name, version, description=text)
    tracker.set_tags({"model": f"models:/{case.model_id}"})
    tracker.note(text)
    challenger = sides[0]
    tracker.log_data("gate/val.json", promotion.manifest.digest, "val")
    tracker.log_metrics({f"gate/{key}": value for key, value in verdict.gain._asdict().items()}, step=0)
    tracker.log_metrics({f"val/{key}": value for key, value in challenger.corpus.items()}, step=0)
    for table, rows in challenger.tables().items():
        tracker.log_table(table, rows[: case.challenger.model.config.train.probe_videos])


def rollback(name: str = NAME, why: str = "") -> Move:
    """Restore the previous champion and record who did it and why.

    Deleted versions are skipped. Raises InputError if there is no previous champion or its files are gone.
    """
    if (current := versions.champion(name)) is None:
        raise InputError(f"{name}: has no champion to roll back; make one with `vb2 promote RUN`")
    with versions.promotion_lock(name) as lock:
        line = versions.succession(versions.moves(name))
        existing = {int(each.version) for each in lock.client.search_model_versions(f"name = '{name}'")}
        line = versions.before(line, current) if current in line else line
        earlier = [version for version in line if version in existing - {current}]
        if not earlier:
            fault = f"{name}@champion: version {current} has no champion before it"
            raise InputError(f"{fault}; `vb2 promote RUN` makes another")
        find_model(f"models:/{name}/{earlier[-1]}")
        lock.renew()
        move = Move("rollback", earlier[-1], current, why or "no reason given")
        versions.move_champion(name, move)
        why = f"{move.when} by {move.who}: {move.why}"
        lock.client.set_model_version_tag(name, str(current), "rolled_back", why)
    return move
