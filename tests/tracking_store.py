"""An MLflow store for tests, made once a process and copied, and what the tests' own processes run on it."""

import os
import shutil
from functools import cache
from pathlib import Path

import pytest
from folders import process_folder

from videoblip2.tracking import RunSpec, open_run
from videoblip2.tracking.mlflow import store


@cache
def empty_store() -> Path:
    """The folder of an sqlite store with its tables; making them takes seconds."""
    folder = process_folder("vb2-store-")
    database = folder / "mlflow.db"
    store._first_start(f"sqlite:///{database}", database)
    return folder


def place_store(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Copy the empty store to a test's own folder and make it the one in use."""
    source = empty_store()
    for file in source.glob("mlflow.db*"):
        shutil.copy(file, folder / file.name)
    patch.chdir(folder)
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        patch.delenv(name, raising=False)
    return folder


def write_checkpoint(folder: Path) -> Path:
    """A folder with the file names of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def first_run(folder: str) -> None:
    """Open a run in a folder that may have no store yet."""
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with open_run(RunSpec("ce", "first", "toy")) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, step=1)
