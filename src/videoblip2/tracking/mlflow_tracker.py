"""The Tracker on MLflow, and how its run opens and ends.

1. One run however it was started: with MLFLOW_RUN_ID (`mlflow run`) that run is attached to, never renamed or moved.
2. Points are buffered and leave in one batch: a batch of 200 costs about as much as three single calls.
3. Parameters cannot be changed once logged, and `mlflow run` has logged its own as the user spelled them (`1e-4`).
4. SIGTERM would leave a run RUNNING for ever: it becomes an exception here, so that the run is flushed and closed.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from videoblip2.config import InputError
from videoblip2.tracking import models, store
from videoblip2.tracking.fence import Fence, is_there
from videoblip2.tracking.revision import revision_tags
from videoblip2.tracking.tracker import Stopped

FULL_BUFFER = 500
SECONDS_BETWEEN_FLUSHES = 10.0
TABLE_ROWS = 200
DIGEST_LENGTH = 36  # MLflow's limit


class Terminated(SystemExit):
    """SIGTERM, raised in the main thread as an exception; the process exits 143 as the shell expects."""


class MlflowTracker:
    """A Tracker that writes to one open MLflow run."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str, resumed: bool = False) -> None:
        self.run_id: str | None = run_id
        self._fence = Fence(client, run_id) if resumed else None
        self._client = client
        self._points: list[Metric] = []
        self._last_flush = time.monotonic()
        self._opened = int(time.time() * 1000)

    def log_config(self, config: Mapping[str, object]) -> None:
        """Log flat, dotted keys as parameters; a key that the run has stays, and another value of it becomes a tag."""
        logged = self._client.get_run(self.run_id).data.params
        new = [Param(key, _text(value)) for key, value in config.items() if key not in logged]
        self._client.log_batch(self.run_id, params=new)
        changed = {
            key: _text(value) for key, value in config.items() if key in logged and not _same(logged[key], value)
        }
        self.set_tags({f"config.{key}": value for key, value in changed.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Buffer one point a metric; the buffer is sent when it is full or ten seconds old."""
        now = int(time.time() * 1000)
        if self._fence:
            metrics = self._fence.new_points(metrics, step)
        self._points += [Metric(key, float(value), now, step) for key, value in metrics.items()]
        if len(self._points) >= FULL_BUFFER or time.monotonic() - self._last_flush > SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def log_best(self, metrics: Mapping[str, float]) -> None:
        """Log the values of the chosen checkpoint under `best/`."""
        self._client.log_batch(self.run_id, metrics=self._best(metrics))

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Log at most 200 rows as NAME.json, `video_id` first. Logging the same name again appends."""
        if self._fence:
            rows = self._fence.new_rows(name, rows)
        if not rows:
            return
        columns = list(dict.fromkeys(key for row in rows for key in row))
        columns.sort(key=lambda column: column != "video_id")
        table = {column: [row.get(column) for row in rows[:TABLE_ROWS]] for column in columns}
        self._client.log_table(self.run_id, table, f"{name.removesuffix('.json')}.json")

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def log_data(self, name: str, digest: str, context: str) -> None:
        """Record a data set as an input of the run; of a long digest the first 36 characters are kept."""
        data = Dataset(name, digest[:DIGEST_LENGTH], source_type="local", source=json.dumps({"digest": digest}))
        self._client.log_inputs(self.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def log_checkpoint(self, folder: Path, name: str, metrics: Mapping[str, float]) -> str:
        """Log a checkpoint folder as a model; its metrics go on the model, and on the run under `best/`."""
        self.flush()
        model_id = models.log_checkpoint(folder, name)
        self._client.log_batch(self.run_id, metrics=self._best(metrics, model_id))
        return f"models:/{model_id}"

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        self._client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def note(self, markdown: str) -> None:
        """Set the text at the head of the run's page."""
        self.set_tags({"mlflow.note.content": markdown})

    def flush(self) -> None:
        """Send the buffered points with a sign of life (`heartbeat`, seconds since 1970)."""
        self._last_flush = time.monotonic()
        if self._points:
            self._client.log_batch(self.run_id, self._points, tags=[RunTag("heartbeat", str(int(time.time())))])
            self._points = []

    def _best(self, metrics: Mapping[str, float], model_id: str | None = None) -> list[Metric]:
        """Make the points of the chosen checkpoint. They share one time, by which MLflow keeps an equal point once."""
        return [Metric(f"best/{key}", float(value), self._opened, 0, model_id) for key, value in metrics.items()]


@contextmanager
def mlflow_run(
    stage: str, name: str, experiment: str, resume_run_id: str | None = None, parent_run_id: str | None = None
) -> Iterator[MlflowTracker]:
    """Open (again) or attach to a run, tag it, and end it FINISHED, FAILED or KILLED with everything flushed."""
    client = store.connect(create=True)
    run_id = _start(client, name, experiment, resume_run_id, parent_run_id)
    tracker = MlflowTracker(client, run_id, resumed=run_id == resume_run_id)
    status = "FAILED"
    try:
        with _sigterm_raises():
            if resume_run_id:
                tracker.set_tags({"resumed_from": resume_run_id})
            tracker.set_tags({"stage": stage, "host": socket.gethostname(), "pid": str(os.getpid()), **revision_tags()})
            yield tracker
        status = "FINISHED"
    except (KeyboardInterrupt, Terminated, Stopped):
        status = "KILLED"
        raise
    finally:
        _close(tracker, status)


def _start(
    client: mlflow.MlflowClient, name: str, experiment: str, resume_run_id: str | None, parent_run_id: str | None
) -> str:
    """A new run, except under `mlflow run`, which has opened one, and where the run to go on with is still there."""
    if parent_run_id:
        os.environ.pop("MLFLOW_RUN_ID", None)  # MLflow would open that one instead
    elif os.environ.get("MLFLOW_RUN_ID"):
        return str(mlflow.start_run().info.run_id)
    nested = parent_run_id is not None
    if resume_run_id and is_there(client, resume_run_id):
        return str(mlflow.start_run(run_id=resume_run_id, nested=nested).info.run_id)
    if parent_run_id:
        experiment_id = str(client.get_run(parent_run_id).info.experiment_id)
    else:
        experiment_id = _experiment_id(client, experiment)
    run = mlflow.start_run(run_name=name, experiment_id=experiment_id, nested=nested, parent_run_id=parent_run_id)
    return str(run.info.run_id)


def _close(tracker: MlflowTracker, status: str) -> None:
    try:
        tracker.flush()
    finally:
        mlflow.end_run(status)


def _experiment_id(client: mlflow.MlflowClient, name: str) -> str:
    """Find or make the experiment. Artifacts of a sqlite store go beside it, wherever the command runs."""
    found = client.get_experiment_by_name(name)
    if found is None:
        root = store.artifact_root(store.tracking_uri())
        try:
            return str(client.create_experiment(name, artifact_location=(root / name).as_uri() if root else None))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process made it in between
    if found.lifecycle_stage != "active":
        raise InputError(
            f"experiment {name!r} was deleted; restore it with `mlflow experiments restore` or use another name"
        )
    return str(found.experiment_id)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Raise Terminated on SIGTERM; outside the main thread, where Python allows no handler, change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated(128 + signum)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _same(logged: str, value: object) -> bool:
    """Whether a logged text is this value in another spelling: `1e-4` and 0.0001, `True` and true, `''` and nothing."""
    text = _text(value)
    if logged.strip("'\"").lower() == text.strip("'\"").lower():
        return True
    try:
        return float(logged) == float(text)
    except ValueError:
        return False
