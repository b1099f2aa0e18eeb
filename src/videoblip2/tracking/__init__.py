"""Runs and checkpoints. MLflow is imported inside the functions, never with this package."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from videoblip2.config import InputError
from videoblip2.tracking.tracker import NullTracker, Stopped, Tracker, sigterm_raises

__all__ = ["FoundModel", "NullTracker", "Stopped", "Tracker", "find_model", "local_model", "open_run"]


@dataclass(frozen=True)
class FoundModel:
    """A checkpoint on this machine; version: `NAME/3` (registered), `m-…` (logged by a run) or the folder's own."""

    folder: Path
    version: str


@contextmanager
def open_run(
    stage: str,
    name: str,
    experiment: str,
    enabled: bool = True,
    resume_run_id: str | None = None,
    folder: Path | None = None,
    parent_run_id: str | None = None,
) -> Iterator[Tracker]:
    """Open the one run of a stage, however it was started; `enabled=False` gives a tracker that keeps nothing.

    Under `mlflow run` (MLFLOW_RUN_ID is set) the run that MLflow opened is used and `name` and `experiment` are not.
    The run ends FINISHED, FAILED on an exception, or KILLED on Ctrl-C, Stopped, and SIGTERM, which raises `Terminated`.

    Args:
        resume_run_id: that run is opened again, and points at or before its last logged step are not logged twice.
        folder: the run's own folder on this machine: the run names it, and what cannot be sent is kept there.
        parent_run_id: the run is a child of that one, in its experiment, and MLFLOW_RUN_ID is the parent's affair.
    """
    if not enabled:
        with sigterm_raises():
            yield NullTracker()
        return
    from videoblip2.tracking.mlflow.mlflow_tracker import mlflow_run

    with mlflow_run(stage, name, experiment, resume_run_id, folder, parent_run_id) as tracker:
        yield tracker


def local_model(model: str | Path) -> Path:
    """Turn MODEL into a checkpoint folder on this machine; see `find_model`."""
    return find_model(model).folder


def find_model(model: str | Path) -> FoundModel:
    """Find the checkpoint folder and the version behind MODEL.

    MODEL is a checkpoint folder, an MLflow run id (its newest model), `models:/NAME@ALIAS`, `models:/NAME/VERSION` or
    `models:/m-…`. A local artifact store is read in place. Raises InputError for anything else.
    """
    folder = Path(model)
    if folder.exists():
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise InputError(
                f"{model}: no checkpoint (config.json and *.safetensors); give the folder that training printed"
            )
        named = folder / "VERSION"  # in a package, a checkpoint keeps the version that it was registered as
        return FoundModel(folder, named.read_text().strip() if named.is_file() else folder.resolve().name)
    from videoblip2.tracking.mlflow.models import find_checkpoint

    return FoundModel(*find_checkpoint(str(model)))
