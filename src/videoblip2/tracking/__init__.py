"""Runs and checkpoints. MLflow is imported inside the functions, never with this package."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from videoblip2.config import InputError
from videoblip2.tracking.tracker import NullTracker, RunSpec, Stopped, Tracker, sigterm_raises

__all__ = [
    "FoundModel",
    "ModelMark",
    "NullTracker",
    "RunSpec",
    "Stopped",
    "Tracker",
    "find_model",
    "local_model",
    "model_mark",
    "open_run",
]


@dataclass(frozen=True)
class FoundModel:
    """A checkpoint on this machine; version: `NAME/3` (registered), `m-…` (logged by a run) or the folder's own."""

    folder: Path
    version: str


@dataclass(frozen=True)
class ModelMark:
    """Where an alias leads. written: when the files of a sqlite store changed; marks are compared without it."""

    version: str
    written: tuple[int, ...] = field(default=(), compare=False)


@contextmanager
def open_run(spec: RunSpec) -> Iterator[Tracker]:
    """Open the one run of a stage, however the stage was started.

    Under `mlflow run` (MLFLOW_RUN_ID is set) MLflow has opened the run already; the spec's name and experiment are
    then ignored. The run ends FINISHED, FAILED on an exception, or KILLED on Ctrl-C, Stopped, and SIGTERM, which raises
    `Terminated`.
    """
    if not spec.enabled:
        with sigterm_raises():
            yield NullTracker()
        return
    from videoblip2.tracking.mlflow.mlflow_tracker import mlflow_run

    with mlflow_run(spec) as tracker:
        yield tracker


def local_model(model: str | Path) -> Path:
    """Turn MODEL into a checkpoint folder on this machine; see `find_model`."""
    return find_model(model).folder


def find_model(model: str | Path) -> FoundModel:
    """Find the checkpoint folder and the version behind MODEL. Raises InputError if there is none.

    MODEL is a checkpoint folder, an MLflow run (its latest model), `models:/NAME@ALIAS`, `models:/NAME/VERSION` or
    `models:/m-…`. A local artifact store is read in place.
    """
    folder = Path(model)
    if folder.exists():
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise InputError(
                f"{model}: no checkpoint (config.json and *.safetensors) there; give the folder that training printed"
            )
        named = folder / "VERSION"  # a packaged checkpoint keeps its registered version in this file
        return FoundModel(folder, named.read_text().strip() if named.is_file() else folder.resolve().name)
    from videoblip2.tracking.mlflow.models import find_checkpoint

    return FoundModel(*find_checkpoint(str(model)))


def model_mark(model: str, last: ModelMark | None = None) -> ModelMark | None:
    """Mark what MODEL names now, for a service that asks every second: equal marks, same model; None: ask `find_model`.

    A sqlite store that nobody has written to since `last` costs a look at its files; any other, one small query.
    """
    if "@" not in model:
        return ModelMark(model) if model.startswith("models:/") else None  # a version never moves
    from videoblip2.tracking.mlflow import models, store

    try:
        written = store.written()
        if last and written and written == last.written:
            return last
        return ModelMark(models.alias_version(model), written)
    except Exception:
        return None  # `find_model` says what is wrong
