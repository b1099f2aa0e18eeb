"""Where a model came from, back to the first weights, and how to train it again and compare the scores.

Reproduction is refused if the data have changed. A change of commit or packages is only reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoblip2.captions.metrics import METRICS, scale_of, summary_metrics
from videoblip2.config import Config, InputError, parse_config, to_yaml
from videoblip2.errors import Progress, no_progress
from videoblip2.features.store import FeatureStore
from videoblip2.overrides import read_yaml
from videoblip2.provenance import FeatureOrigin, Provenance
from videoblip2.registry.verdict_files import facts_of
from videoblip2.tracking import FoundModel, find_model, source
from videoblip2.tracking.mlflow.store import connect

if TYPE_CHECKING:  # a lineage needs no torch
    from videoblip2.training.state import StageResult

UNKNOWN = "not recorded"
STAGES = ("ce", "scst")  # what can be trained again


@dataclass(frozen=True)
class Ancestor:
    """One model of the lineage. data: split → digest of annotations and features. encoders: kind → name, fingerprint.
    lock: digest of the installed packages. gate: the registered version's verdict. missing: why nothing is known."""

    model: str
    version: str = ""
    folder: str = ""
    stage: str = UNKNOWN
    name: str = UNKNOWN
    run_id: str | None = None
    step: int | None = None
    commit: str = UNKNOWN
    dirty: bool | None = None
    seed: int | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)
    first_weights: Mapping[str, str] = field(default_factory=dict)
    lock: str = UNKNOWN
    parent: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    gate: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""


def lineage(model: str) -> list[Ancestor]:
    """MODEL, then the model it started from, and so on. A missing parent ends the list and says why."""
    line = [describe(find_model(model), model)]
    while parent := line[-1].parent:
        try:
            ancestor = describe(find_model(parent), parent)
        except InputError as error:
            return [*line, Ancestor(parent, missing=str(error))]
        if ancestor.folder in [each.folder for each in line]:
            return [*line, Ancestor(parent, missing="is already in this lineage: its folder was overwritten")]
        line.append(ancestor)
    return line


def describe(found: FoundModel, model: str) -> Ancestor:
    """The records of one checkpoint, and those of its run and version in the store."""
    folder = found.folder
    provenance = Provenance.read(folder, optional=True)
    config = read_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    dirty = provenance.revision.get("git.dirty")
    origin = provenance.features or FeatureOrigin()
    encoders = {kind: f"{made.name} ({made.fingerprint or UNKNOWN})" for kind, made in origin.encoders.items()}
    if settings := ", ".join(f"{key} {value}" for key, value in origin.settings.recorded.items()):
        encoders["settings"] = settings
    lock = folder / source.ENVIRONMENT_FILE
    name, _, number = found.version.partition("/")
    tags = connect().get_model_version(name, number).tags if number else {}
    return Ancestor(
        model=model,
        version=found.version,
        folder=str(folder),
        **provenance.model_dump(include={"stage", "name", "run_id", "step", "data"}, exclude_none=True),
        commit=provenance.revision.get("git.commit", UNKNOWN),
        dirty=None if dirty is None else dirty == "true",
        seed=config.get("seed"),
        encoders=encoders,
        first_weights=_first_weights(config.get("model", {}), provenance.parent),
        lock=f"{source.short_digest(lock.read_text(encoding='utf-8'))} ({lock.name})" if lock.is_file() else UNKNOWN,
        parent=parent_of(provenance),
        scores=source.read_scores(folder),
        gate=facts_of(tags),
    )


def parent_of(provenance: Provenance) -> str | None:
    """The parent as a MODEL, by a permanent name if it has one, else as `train.start_from` named it."""
    given, run_id, version = provenance.parent, provenance.parent_run_id, provenance.parent_version or ""
    if given is None:
        return None
    if version.startswith("m-") or "/" in version:
        return f"models:/{version}"
    if run_id and Provenance.read(Path(given), optional=True).run_id != run_id:
        return run_id
    return given


def _first_weights(model: Mapping[str, Any], parent: str | None) -> dict[str, str]:
    """The sources of T5 and the Q-Formers, as configured; empty for a model with a parent."""
    if parent or not model:
        return {}
    qformer = model.get("qformer", {})
    return {
        "T5": str(model.get("language_model")),
        "Q-Formers": str(qformer.get("weights") or "fresh"),
        "BERT": f"{qformer.get('bert')}{'' if qformer.get('bert_weights', True) else ', word pieces only'}",
    }


@dataclass(frozen=True)
class Recipe:
    """How to repeat a run. expected: its main scores. differs: changes since then."""

    stage: str
    config: Config
    config_file: Path
    expected: Mapping[str, float]
    differs: tuple[str, ...]

    @property
    def command(self) -> str:
        return f"vb2 {self.stage} {self.config_file}"

    def repeat(self, tolerance: float = 0.0, progress: Progress = no_progress) -> "Reproduction":
        """Train as a new run. tolerance: largest difference of printed scores that counts as equal."""
        from videoblip2.training.stage import run_stage

        result = run_stage(self.stage, self.config, progress)
        scores = {name: (value, result.metrics[name]) for name, value in self.expected.items()}
        same = all(scale_of(name) * abs(new - old) <= tolerance for name, (old, new) in scores.items())
        return Reproduction(result, scores, same)


@dataclass(frozen=True)
class Reproduction:
    """The repetition of a run. scores: metric → the expected validation score and the new one."""

    result: "StageResult"
    scores: Mapping[str, tuple[float, float]]
    reproduced: bool


def read_recipe(model: str, out: Path | None = None) -> Recipe:
    """Stage, configuration and scores of the run behind MODEL. out: replaces `run.out` for the new run."""
    folder = find_model(model).folder
    provenance, metrics = Provenance.read(folder, optional=True), source.read_scores(folder)
    stage = provenance.stage
    # training computes no metrics that need more than the captions
    expected = {name: metrics[name] for name in summary_metrics(metrics) if not METRICS[name].needs}
    if stage not in STAGES or not expected:
        made = f"made by {stage or 'an unknown stage'}"
        raise InputError(f"{model}: {made}, and only runs of {' and '.join(STAGES)} can be repeated")
    changes = {"train.start_from": parent_of(provenance), "run.out": out}
    overrides = [f"run.name=reproduce-{provenance.name}", "train.resume=null"]
    overrides += [f"{key}={value}" for key, value in changes.items() if value]
    config = parse_config(read_yaml(folder / "config.yaml"), overrides, source=str(folder / "config.yaml"))
    _same_data(model, config, provenance)
    file = Path(config.run.out) / f"{config.run.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# vb2 {stage} {file}\n{to_yaml(config)}", encoding="utf-8")
    return Recipe(stage, config, file, expected, tuple(_differences(folder, provenance)))


def _same_data(model: str, config: Config, provenance: Provenance) -> None:
    """Raise InputError if the training data differ from the provenance."""
    from videoblip2.training.record import data_digest
    from videoblip2.training.tasks import inputs_of, read_split

    store = FeatureStore(config.data.features, config.model.modality_names)
    entries = {split: read_split(config, split, store) for split in ("train", "val")}
    for name, split, path, videos in inputs_of(config, entries):
        found = data_digest(path, store, videos)
        expected = provenance.data.get(name, found)
        if found != expected:
            remedy = "restore that data, or train a new run with its config.yaml"
            place = f"{path} with {store.root}"
            raise InputError(f"{model}: was trained on {split} data {expected}, and {place} is {found} now; {remedy}")


def _differences(folder: Path, provenance: Provenance) -> list[str]:
    """Changes that may affect the last digits: of the source, or of the packages."""
    then, now = provenance.revision, source.revision_tags()
    keys = [key for key in ("git.commit", "git.dirty") if then.get(key) != now.get(key)]
    changed = [f"{key} {then.get(key, UNKNOWN)} -> {now.get(key, 'unknown')}" for key in keys]
    file = folder / source.ENVIRONMENT_FILE
    if not file.is_file():
        return [*changed, "packages not recorded"]
    return [*changed, *source.lock_difference(file.read_text(encoding="utf-8"), source.environment())]
