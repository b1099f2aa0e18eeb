"""How a message reaches MLflow: once, and with a rule for which failures of the store are temporary."""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from videoblip2.tracking.mlflow import store
from videoblip2.tracking.outbox import Batch, DataSet, File, Message, Point, Row, Table, warn

TEMPORARY = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED")
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
#: The longest that training waits for a server that hangs; MLflow's own default is minutes.
ONE_RETRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
IMPATIENT = {**ONE_RETRY, "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
MOST_POINTS, MOST_PARAMS, MOST_TAGS = 800, 100, 100  # in one call: MLflow's limits, 1000 altogether
NOISY = ("mlflow.store.db.utils", "urllib3.connectionpool")
NO_STEP = sys.maxsize  # a row without a step counts as the last one


def is_outage(error: BaseException) -> bool:
    """Whether the store may accept the same message later: it is locked, full, restarting or unreachable."""
    if isinstance(error, MlflowException):
        return error.error_code in TEMPORARY
    return isinstance(error, OSError | SQLAlchemyError) and not isinstance(error, LASTING)


@contextmanager
def impatient(limits: Mapping[str, str] = IMPATIENT) -> Iterator[None]:
    """Give up on a server soon, and without MLflow's own tracebacks; the user's own settings stay."""
    added = {name: value for name, value in limits.items() if name not in os.environ}
    levels = {name: logging.getLogger(name).level for name in NOISY}
    os.environ.update(added)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class Deduplicator:
    """Keeps what a run already has from being logged twice: the last step of each metric and table, looked up once.

    Args:
        active: False for a new run, which has nothing: everything passes and the store is not asked.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str, active: bool = True) -> None:
        self._client, self._run_id, self._active = client, run_id, active
        self._points: dict[str, int] = {}
        self._tables: dict[str, int] = {}

    def look_again(self) -> None:
        """Forget what was looked up: it is unknown whether the last messages arrived."""
        self._active, self._points, self._tables = True, {}, {}

    def new_points(self, points: Sequence[Point]) -> list[Point]:
        """The points after the last step of their metric, which they then define."""
        if not self._active:
            return list(points)
        new = []
        for point in points:
            if point[3] > self._last_point(point[0]):
                self._points[point[0]] = point[3]
                new.append(point)
        return new

    def new_rows(self, table: str, rows: Sequence[Row]) -> list[Row]:
        """The rows after the last `step` of a table; a table without steps is logged once."""
        if not self._active:
            return list(rows)
        if table not in self._tables:
            self._tables[table] = self._last_row(table)
        new = [row for row in rows if _step(row) > self._tables[table]]
        self._tables[table] = max([self._tables[table], *map(_step, new)])
        return new

    def _last_point(self, key: str) -> int:
        if key not in self._points:
            history = self._client.get_metric_history(self._run_id, key)
            self._points[key] = max((point.step for point in history), default=-1)
        return self._points[key]

    def _last_row(self, table: str) -> int:
        """-1 where the table does not exist, NO_STEP where it has no steps."""
        if not store.has_artifact(self._client, self._run_id, table):
            return -1
        with tempfile.TemporaryDirectory() as folder:
            content = json.loads(Path(self._client.download_artifacts(self._run_id, table, folder)).read_text("utf-8"))
        if "step" not in content["columns"]:
            return NO_STEP
        place = content["columns"].index("step")
        return max((int(row[place]) for row in content["data"]), default=-1)


def _step(row: Row) -> int:
    return int(str(row.get("step", NO_STEP)))


def deliver(client: mlflow.MlflowClient, run_id: str, deduplicator: Deduplicator, message: Message) -> None:
    """Send one message; points and rows that the run already has are left out."""
    with impatient(ONE_RETRY if isinstance(message, Table | File) else IMPATIENT):
        match message:
            case Batch():
                _send_batch(client, run_id, deduplicator, message)
            case Table():
                _send_table(client, run_id, deduplicator.new_rows(message.table, message.rows), message.table)
            case File():
                _send_file(client, run_id, message)
            case DataSet():
                _send_data(client, run_id, message)


def _send_batch(client: mlflow.MlflowClient, run_id: str, deduplicator: Deduplicator, batch: Batch) -> None:
    points = [Metric(*point) for point in deduplicator.new_points(batch.points)]
    points += [Metric(key, value, time, 0) for key, value, time in batch.best]
    params = [Param(key, value) for key, value in batch.params.items()]
    tags = [RunTag(key, value) for key, value in batch.tags.items()]
    while points or params or tags:
        client.log_batch(run_id, points[:MOST_POINTS], params[:MOST_PARAMS], tags[:MOST_TAGS])
        points, params, tags = points[MOST_POINTS:], params[MOST_PARAMS:], tags[MOST_TAGS:]


def _send_table(client: mlflow.MlflowClient, run_id: str, rows: Sequence[Row], table: str) -> None:
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns.sort(key=lambda column: column != "video_id")
    client.log_table(run_id, {column: [row.get(column) for row in rows] for column in columns}, table)


def _send_file(client: mlflow.MlflowClient, run_id: str, message: File) -> None:
    if message.file.exists():
        client.log_artifact(run_id, str(message.file), message.folder)
    else:
        warn(f"{message.file}: deleted before it could be sent to the store")


def _send_data(client: mlflow.MlflowClient, run_id: str, data: DataSet) -> None:
    """Two runs may name the same new data at once: MLflow looks first and then writes, and the second write fails."""
    dataset = Dataset(data.data, data.digest, source_type="local", source=data.source)
    inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)])]
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException as error:
        if "unique" not in str(error).lower():
            raise
        client.log_inputs(run_id, inputs)
