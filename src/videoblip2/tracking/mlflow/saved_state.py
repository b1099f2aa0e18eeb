"""The training state in the store: logged when a run is stopped, so that another machine can resume it.

A store on this machine gets no copy: the run's own folder is here as well, and a tag of the run names it.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from videoblip2.config import InputError
from videoblip2.errors import first_line
from videoblip2.tracking.liveness import ProcessRecord
from videoblip2.tracking.mlflow import store
from videoblip2.tracking.mlflow.run_records import HOW_TO_FIND, seconds_silent
from videoblip2.tracking.outbox import warn

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = "resume"
TAG = "state.logged"
PARTS = ("best", "state")
SILENT_SECONDS = 300.0  # after which a process on another machine may be dead


@dataclass(frozen=True)
class StoppedRun:
    """A run that can be resumed. `folder`: where its files were, on `host`; `logged`: the store has a copy of them."""

    run_id: str
    name: str
    stage: str
    host: str
    folder: Path | None
    logged: bool


def find_stopped_run(run_id: str) -> StoppedRun:
    """Find a run to resume. Raises InputError if it is unknown or deleted, or if its process still runs."""
    from mlflow.exceptions import MlflowException

    client = store.connect()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise InputError(
            f"resume={run_id}: no such run in {store.tracking_uri()} ({first_line(error)}); {HOW_TO_FIND}"
        ) from error
    if run.info.lifecycle_stage != "active":
        raise InputError(
            f"resume={run_id}: that run was deleted; `mlflow runs restore --run-id {run_id}` brings it back"
        )
    _check_stopped(run)
    tags = run.data.tags
    folder = Path(tags["folder"]) if "folder" in tags else None
    name = folder.name if folder else run.info.run_name
    logged = tags.get(TAG) == "true"
    return StoppedRun(run_id, name, tags.get("stage", ""), tags.get("host", "an unknown host"), folder, logged)


def _check_stopped(run: Any) -> None:
    """Two processes that write to one run would spoil it."""
    process, run_id = ProcessRecord.read(run.data.tags), run.info.run_id
    if run.info.status != "RUNNING" or process is None:
        return
    if process.is_local():
        if process.is_running() and process.pid != os.getpid():
            raise InputError(f"resume={run_id}: still running as process {process.pid}; stop it first")
    elif (silent := seconds_silent(run)) < SILENT_SECONDS:
        raise InputError(
            f"resume={run_id}: running on {process.host}, last heard of {silent:.0f} s ago; stop it first, or if it is "
            "dead, mark it as failed with `vb2 runs gc --hours 0.02`"
        )


def keep_state(client: "MlflowClient", run_id: str, folder: Path) -> None:
    """Log FOLDER/best and FOLDER/state to a store that is not on this machine. A failure is said, not raised."""
    try:
        if is_local(client.get_run(run_id).info.artifact_uri):
            return
        client.set_tag(run_id, TAG, "false")  # until it is complete
        for part in PARTS:
            if (folder / part).is_dir():
                client.log_artifacts(run_id, str(folder / part), f"{ARTIFACTS}/{part}")
        client.set_tag(run_id, TAG, "true")
    except Exception as error:
        warn(f"run {run_id}: its state could not be logged ({first_line(error)}); resume it on this machine: {folder}")


def fetch_state(run_id: str, folder: Path) -> None:
    """Download what `keep_state` logged into FOLDER, in one move; FOLDER must not have these parts yet."""
    client = store.connect()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".resume-") as draft:
        client.download_artifacts(run_id, ARTIFACTS, draft)
        for part in PARTS:
            if (Path(draft) / ARTIFACTS / part).is_dir():
                shutil.rmtree(folder / part, ignore_errors=True)
                os.replace(Path(draft) / ARTIFACTS / part, folder / part)


def drop_state(client: "MlflowClient", run_id: str) -> None:
    """Delete what `keep_state` logged, if it did."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        run = client.get_run(run_id)
        if TAG not in run.data.tags:
            return
        get_artifact_repository(run.info.artifact_uri).delete_artifacts(ARTIFACTS)
        client.delete_tag(run_id, TAG)
    except Exception as error:
        warn(f"run {run_id}: the state of its stop stays in the store ({first_line(error)})")


def is_local(address: str) -> bool:
    """Whether artifacts at this address are on this machine."""
    return urlparse(address).scheme in ("", "file")
