"""The Tracker on MLflow, and how its run opens and ends.

1. One run however it was started: with MLFLOW_RUN_ID (`mlflow run`) that run is used, never renamed or moved. Where an
   earlier run is resumed, the empty one that `mlflow run` opened is closed and deleted.
2. Points are buffered and sent in one batch: a batch of 200 costs about as much as three single calls.
3. Parameters cannot be changed once logged, and `mlflow run` has logged its own as the user spelled them (`1e-4`).
4. SIGTERM would leave a run RUNNING for ever: here it becomes an exception, so that the run is flushed and closed.
5. Once the run is open, a store that does not answer stops nothing: messages wait in an outbox and are sent later.
   MLflow's own asynchronous logging has no such memory: what its queue cannot send is lost.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from videoblip2.config import InputError
from videoblip2.errors import first_line
from videoblip2.tracking.liveness import ProcessRecord
from videoblip2.tracking.mlflow import models, saved_state, store
from videoblip2.tracking.mlflow.delivery import ONE_RETRY, Deduplicator, deliver, impatient, is_outage
from videoblip2.tracking.outbox import Batch, DataSet, File, Message, Outbox, Point, Table, describe, warn
from videoblip2.tracking.source import revision_tags
from videoblip2.tracking.tracker import RunSpec, Stopped, Terminated, Tracker, sigterm_raises, stop_listening

FULL_BUFFER = 500
SECONDS_BETWEEN_FLUSHES = 10.0
TABLE_ROWS = 200
DIGEST_LENGTH = 36  # MLflow's limit


class MlflowTracker(Tracker):
    """A Tracker that writes to one open MLflow run.

    Args:
        resumed: the run has points already; none is logged twice.
        folder: the run's own folder; what cannot be sent is kept there.
    """

    def __init__(
        self, client: mlflow.MlflowClient, run_id: str, resumed: bool = False, folder: Path | None = None
    ) -> None:
        self.run_id = self._run_id = run_id
        self._client, self._folder = client, folder
        self._deduplicator = Deduplicator(client, run_id, active=resumed)
        self._outbox = Outbox(self._deliver, is_outage, folder / f"unsent-{run_id}.jsonl" if folder else None)
        self._outbox.read()
        self._points: list[Point] = []
        self._last_flush = time.monotonic()
        active = mlflow.active_run()
        self._began = int(active.info.start_time) if active else _now()

    def log_config(self, config: Mapping[str, object]) -> None:
        """Log flat, dotted keys as parameters; a key that the run has stays, and another value of it becomes a tag."""
        with impatient():
            logged = self._client.get_run(self._run_id).data.params
        new = {key: _text(value) for key, value in config.items() if key not in logged}
        changed = {key: value for key, value in config.items() if key in logged and not _same(logged[key], value)}
        self._outbox.put(Batch(params=new, tags={f"config.{key}": _text(value) for key, value in changed.items()}))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Buffer one point per metric; the buffer is sent when it is full or ten seconds old."""
        now = _now()
        self._points += [(key, float(value), now, step) for key, value in metrics.items()]
        if len(self._points) >= FULL_BUFFER or time.monotonic() - self._last_flush > SECONDS_BETWEEN_FLUSHES:
            self._send_points()

    def log_best(self, metrics: Mapping[str, float]) -> None:
        """Log the values of the chosen checkpoint under `best/`."""
        self._outbox.put(Batch(best=self._best(metrics)))

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Log at most 200 rows as NAME.json, `video_id` first. Logging the same name again appends."""
        if rows:
            shown = [dict(row) for row in rows[:TABLE_ROWS]]
            self._outbox.put(Table(table=f"{name.removesuffix('.json')}.json", rows=shown))

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run's artifacts."""
        self._outbox.put(File(file=path.absolute(), folder=folder))

    def log_data(self, name: str, digest: str, context: str) -> None:
        """Record a data set as an input of the run; a long digest is cut to 36 characters."""
        source = json.dumps({"digest": digest})
        self._outbox.put(DataSet(data=name, digest=digest[:DIGEST_LENGTH], source=source, context=context))

    def log_checkpoint(self, folder: Path, name: str, metrics: Mapping[str, float]) -> str:
        """Log a checkpoint folder as a model; its metrics go on the model, and on the run under `best/`.

        Raises InputError where the store does not answer, or has no room: a model cannot wait in a file.
        """
        self.flush()
        best = [mlflow.entities.Metric(key, value, moment, 0) for key, value, moment in self._best(metrics)]
        try:
            if not self._outbox.send(at_once=True):  # MLflow would try for minutes
                raise ConnectionError("earlier messages could not be sent either")
            model_id = models.log_checkpoint(folder, name)
            for metric in best:
                metric._model_id = model_id
            self._client.log_batch(self._run_id, metrics=best)
        except Exception as error:
            if not is_outage(error):
                raise
            raise InputError(
                f"{folder}: trained, but not logged as a model, since {store.tracking_uri()} does not answer "
                f"({first_line(error)}); when it does, resume={self._run_id} logs it"
            ) from error
        return f"models:/{model_id}"

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        self._outbox.put(Batch(tags={key: str(value) for key, value in tags.items()}))

    def note(self, markdown: str) -> None:
        """Set the text at the top of the run's page."""
        self.set_tags({"mlflow.note.content": markdown})

    def flush(self) -> None:
        """Send the buffered points; those that cannot be sent are written to a file."""
        self._send_points()
        self._outbox.write()

    def keep_state(self) -> None:
        """Log the run's folder to a store on another machine, so that any machine can resume the run."""
        if self._folder is not None:
            with impatient(ONE_RETRY):
                saved_state.keep_state(self._client, self._run_id, self._folder)

    def drop_state(self) -> None:
        """Delete what `keep_state` logged: the run is over."""
        with impatient(ONE_RETRY):
            saved_state.drop_state(self._client, self._run_id)

    def close(self, status: str) -> None:
        """Send everything and end the run; say what could not be sent and where it is."""
        try:
            self._send_points()
            if not self._outbox.send(at_once=True):
                self._report_unsent(self._outbox.write() and self._outbox.file is not None)
        finally:
            self._end(status)

    def _report_unsent(self, kept: bool) -> None:
        what = describe(self._outbox.waiting)
        if kept:
            warn(f"not sent: {what}; they are in {self._outbox.file}, and resume={self._run_id} sends them")
        else:
            warn(f"run {self._run_id}: lost, since the tracking store does not answer: {what}")

    def _end(self, status: str) -> None:
        try:
            with impatient():
                mlflow.end_run(status)
        except Exception as error:
            if not is_outage(error):
                raise
            warn(f"run {self._run_id} could not be closed ({first_line(error)}); `vb2 runs gc` closes it later")

    def _send_points(self) -> None:
        """With a sign of life: `heartbeat`, seconds since 1970."""
        self._last_flush = time.monotonic()
        if self._points:
            points, self._points = tuple(self._points), []
            self._outbox.put(Batch(points=points, tags={"heartbeat": str(int(time.time()))}))

    def _deliver(self, message: Message) -> None:
        try:
            deliver(self._client, self._run_id, self._deduplicator, message)
        except Exception:
            self._deduplicator.look_again()
            raise

    def _best(self, metrics: Mapping[str, float]) -> tuple[tuple[str, float, int], ...]:
        """The points of the chosen checkpoint, dated at the run's start: MLflow keeps two equal points as one."""
        return tuple((f"best/{key}", float(value), self._began) for key, value in metrics.items())


@contextmanager
def mlflow_run(spec: RunSpec) -> Iterator[MlflowTracker]:
    """Open, reopen or attach to a run, tag it, and end it FINISHED, FAILED or KILLED with everything flushed."""
    client = store.connect(create=True)
    with sigterm_raises():
        run_id = _reachable(lambda: _start(client, spec))
        tracker = MlflowTracker(client, run_id, run_id == spec.resume_run_id, spec.folder and spec.folder.absolute())
        status = "FAILED"
        try:
            tracker.set_tags({**_start_tags(spec), **revision_tags()})
            yield tracker
            status = "FINISHED"
        except (KeyboardInterrupt, Terminated, Stopped):
            status = "KILLED"
            raise
        finally:
            stop_listening()
            tracker.close(status)


def _start_tags(spec: RunSpec) -> dict[str, str]:
    tags = {"stage": spec.stage, **ProcessRecord.current().fields(), "heartbeat": str(int(time.time()))}
    if spec.resume_run_id:
        tags["resumed_from"] = spec.resume_run_id
    if spec.folder is not None:
        tags["folder"] = str(spec.folder.absolute())
    return tags


def _start(client: mlflow.MlflowClient, spec: RunSpec) -> str:
    """The run to resume where the store still has it; the one that `mlflow run` has opened; or a new one."""
    given, nested = os.environ.get("MLFLOW_RUN_ID"), spec.parent_run_id is not None
    if spec.resume_run_id and _exists(client, spec.resume_run_id):
        os.environ.pop("MLFLOW_RUN_ID", None)
        run_id = str(mlflow.start_run(run_id=spec.resume_run_id, nested=nested).info.run_id)
        if given and given != run_id and not nested:
            _retire(client, given, run_id)
        return run_id
    if spec.parent_run_id:
        os.environ.pop("MLFLOW_RUN_ID", None)  # MLflow would open that one instead
        experiment_id = str(client.get_run(spec.parent_run_id).info.experiment_id)
    elif given:
        return str(mlflow.start_run().info.run_id)
    else:
        experiment_id = _experiment_id(client, spec.experiment)
    new = {"run_name": spec.name, "experiment_id": experiment_id, "parent_run_id": spec.parent_run_id}
    return str(mlflow.start_run(nested=nested, **new).info.run_id)


def _exists(client: mlflow.MlflowClient, run_id: str) -> bool:
    """Whether the store has a run that is not deleted. Any failure but an unknown run is raised."""
    try:
        return str(client.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False


def _retire(client: mlflow.MlflowClient, run_id: str, resumed: str) -> None:
    """Close and delete the empty run that `mlflow run` opened for a training that resumes its own run."""
    client.set_tag(run_id, "continues", resumed)
    client.set_terminated(run_id, "FINISHED")
    client.delete_run(run_id)


def _reachable(start: Callable[[], str]) -> str:
    """Start a run; before anything has begun, an unavailable store is for the user to fix."""
    try:
        with impatient():
            return start()
    except Exception as error:
        if isinstance(error, InputError) or not is_outage(error):
            raise
        raise InputError(
            f"{store.tracking_uri()}: no run can be opened ({first_line(error)}); `vb2 doctor` checks the store, and "
            "run.tracking=false trains without one"
        ) from error


def _experiment_id(client: mlflow.MlflowClient, name: str) -> str:
    """Find or create the experiment. Artifacts of a sqlite store go beside it, wherever the command runs."""
    found = client.get_experiment_by_name(name)
    if found is None:
        root = store.artifact_root(store.tracking_uri())
        try:
            return str(client.create_experiment(name, artifact_location=(root / name).as_uri() if root else None))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process created it in between
    if found.lifecycle_stage != "active":
        raise InputError(
            f"experiment {name!r} was deleted; restore it with `mlflow experiments restore` or use another name"
        )
    return str(found.experiment_id)


def _now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


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
