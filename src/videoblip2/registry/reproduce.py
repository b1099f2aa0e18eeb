"""Train a run again: the same command from what the run stored, with its scores compared with the original ones.

Nothing is trained if the data have changed. A change of commit or packages is reported and does not stop it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from videoblip2.captions.metrics import METRICS, scale_of, summary_metrics
from videoblip2.config import Config, InputError, parse_config, to_yaml
from videoblip2.errors import Progress, no_progress
from videoblip2.features.store import FeatureStore
from videoblip2.overrides import read_yaml
from videoblip2.provenance import Provenance
from videoblip2.registry.lineage import parent_of, read_scores
from videoblip2.tracking import find_model
from videoblip2.tracking.source import ENVIRONMENT_FILE, environment, lock_difference, revision_tags
from videoblip2.training.record import data_digest
from videoblip2.training.stage import StageResult, run_stage
from videoblip2.training.tasks import tasks_of

STAGES = ("ce", "scst")


@dataclass(frozen=True)
class Recipe:
    """How to repeat a run. expected: its main scores. differs: what has changed since."""

    stage: str
    config: Config
    config_file: Path
    expected: Mapping[str, float]
    differs: tuple[str, ...]

    @property
    def command(self) -> str:
        return f"vb2 {self.stage} {self.config_file}"


@dataclass(frozen=True)
class Reproduction:
    """A run and its repetition. tolerance: largest difference that counts as the same, as scores are shown."""

    recipe: Recipe
    result: StageResult
    tolerance: float

    @property
    def scores(self) -> dict[str, tuple[float, float]]:
        """Metric → the expected score and the new one."""
        return {name: (value, self.result.metrics[name]) for name, value in self.recipe.expected.items()}

    @property
    def reproduced(self) -> bool:
        return all(scale_of(name) * abs(new - old) <= self.tolerance for name, (old, new) in self.scores.items())


def reproduce(
    model: str,
    tolerance: float = 0.0,
    out: Path | None = None,
    progress: Progress = no_progress,
    announce: Callable[[Recipe], None] = lambda recipe: None,
) -> Reproduction:
    """Train a run (or any MODEL that a stage made) again, as a new run, and compare its main validation scores.

    `announce` receives the recipe before training. out: folder for the new run; default the original's `run.out`.
    """
    recipe = read_recipe(model, out)
    announce(recipe)
    return Reproduction(recipe, run_stage(recipe.stage, recipe.config, progress), tolerance)


def read_recipe(model: str, out: Path | None = None) -> Recipe:
    """Stage, configuration and scores of the run behind MODEL; the configuration is also written as a file."""
    folder = find_model(model).folder
    provenance, metrics = Provenance.read(folder, optional=True), read_scores(folder)
    stage = provenance.stage
    # training computes no metrics that need more than the captions
    expected = {name: metrics[name] for name in summary_metrics(metrics) if not METRICS[name].needs}
    if stage not in STAGES or not expected:
        raise InputError(
            f"{model}: made by {stage or 'an unknown stage'}, and only runs of {' and '.join(STAGES)} can be repeated"
        )
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
    """Raise InputError if what training reads is not what the provenance says; a second task's keys end in _qa."""
    store = FeatureStore(config.data.features, config.model.modality_names)
    for (number, task), split in product(enumerate(tasks_of(config)), ("train", "val")):
        path = Path(config.data.annotations) / task.file(config.data, split)
        found = data_digest(path, store, sorted({entry.video_id for entry in task.read(path)}))
        expected = provenance.data.get(f"{split}_qa" if number else split, found)
        if found != expected:
            raise InputError(
                f"{model}: was trained on {split} data {expected}, and {path} with {store.root} is {found} now; "
                "restore that data, or train a new run with its config.yaml"
            )


def _differences(folder: Path, provenance: Provenance) -> list[str]:
    """What may change the last digits: the source, or the packages."""
    then, now = provenance.revision, revision_tags()
    changed = [
        f"{key} {then.get(key, 'not recorded')} -> {now.get(key, 'unknown')}"
        for key in ("git.commit", "git.dirty")
        if then.get(key) != now.get(key)
    ]
    file = folder / ENVIRONMENT_FILE
    packages = lock_difference(file.read_text(encoding="utf-8"), environment()) if file.is_file() else None
    return [*changed, *(["packages not recorded"] if packages is None else packages)]
