"""Runs and checkpoints. MLflow is imported inside the functions, never with this package."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from videoblip2.config import Config, InputError, parse_config
from videoblip2.overrides import read_yaml
from videoblip2.tracking.tracker import RunSpec, Stopped, Tracker, sigterm_raises

__all__ = ["FoundModel", "RunSpec", "Stopped", "Tracker", "find_model", "model_config", "model_mark", "open_run"]

#: Overrides that change how a trained model is evaluated.
STILL_READ: tuple[str, ...] = ("data.", "decode.", "device=", "train.probe_videos=", "scst.all_references=")
STILL_READ += ("run.experiment=", "run.out=", "run.tracking=")


@dataclass(frozen=True)
class FoundModel:
    """A checkpoint on this machine; version: `NAME/3` (registered), `m-…` (logged by a run) or the folder's name."""

    folder: Path
    version: str


@contextmanager
def open_run(spec: RunSpec) -> Iterator[Tracker]:
    """Open the one run of a stage, however the stage was started.

    Under `mlflow run` (MLFLOW_RUN_ID is set) the run is already open, and the spec's name and experiment are
    ignored. The run ends FINISHED, FAILED on an exception, or KILLED on Ctrl-C, Stopped, and SIGTERM, which raises
    `Terminated`.
    """
    if not spec.enabled:
        with sigterm_raises():
            yield Tracker()
        return
    from videoblip2.tracking.mlflow.mlflow_tracker import mlflow_run

    with mlflow_run(spec) as tracker:
        yield tracker


def find_model(model: str | Path) -> FoundModel:
    """Find the checkpoint folder and the version behind MODEL. Raises InputError if there is none.

    MODEL is a checkpoint folder, an MLflow run (its latest model), `models:/NAME@ALIAS`, `models:/NAME/VERSION` or
    `models:/m-…`. A local artifact store is read in place.
    """
    folder = Path(model)
    if not folder.exists():
        from videoblip2.tracking.mlflow import store

        if not str(model).startswith("models:") and store.lacks_run(str(model)):
            fault = f"{model}: no such folder, and no run with that id or name in {store.tracking_uri()}"
            raise InputError(f"{fault}; `vb2 runs list` shows the runs")
        from videoblip2.tracking.mlflow.models import find_checkpoint

        return FoundModel(*find_checkpoint(str(model)))
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        wanted = "config.json and *.safetensors"
        raise InputError(f"{model}: no checkpoint ({wanted}) there; give the folder that training printed")
    named = folder / "VERSION"  # a packaged checkpoint stores its registered version in this file
    return FoundModel(folder, named.read_text().strip() if named.is_file() else folder.resolve().name)


def model_config(model: str, folder: Path, overrides: Iterable[str] = (), only: str = "") -> Config:
    """The configuration that the checkpoint of MODEL was trained with, and overrides of what is still read.

    only: the section to read; the rest, which may not fit this version, is then ignored.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"checkpoint {folder}: no config.yaml; train or copy it again")
    content = read_yaml(folder / "config.yaml")
    read = {key: value for key, value in content.items() if key == only} if only else content
    config = parse_config(read, overrides, f"{model}'s config.yaml")
    for override in overrides:
        if not override.replace(" ", "").startswith(STILL_READ):
            fault = f"override {override!r}: has no effect on a trained model"
            raise InputError(f"{fault}; set keys of data or decode, device, run.experiment or run.out, or train again")
    return config


def model_mark(model: str) -> str | None:
    """A cheap mark of what MODEL names now, for polling: equal marks, same model; None = ask `find_model`."""
    if "@" not in model:
        return model if model.startswith("models:/") else None  # a version never changes
    from videoblip2.tracking.mlflow import models

    try:
        return models.alias_version(model)
    except Exception:
        return None  # `find_model` reports the problem
