"""How messages reach MLflow: once each, and which failures mean that the store is only away for the moment."""

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

from videoblip2.tracking.outbox import Record, say

TEMPORARY = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED")
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
#: A training does not stand still for longer than this while a server hangs; MLflow's own default is minutes.
ONE_RETRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
IMPATIENT = {**ONE_RETRY, "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
MOST_POINTS, MOST_PARAMS, MOST_TAGS = 800, 100, 100  # in one call: MLflow's limits, 1000 in all
NOISY = ("mlflow.store.db.utils", "urllib3.connectionpool")


def is_outage(error: BaseException) -> bool:
    """Whether the store may take the same message later: it is locked, full, restarting or not reachable."""
    if isinstance(error, MlflowException):
        return error.error_code in TEMPORARY
    return isinstance(error, OSError | SQLAlchemyError) and not isinstance(error, LASTING)


@contextmanager
def impatient(limits: Mapping[str, str] = IMPATIENT) -> Iterator[None]:
    """Give up on a server soon and without MLflow's own tracebacks; what the user has set stays."""
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


NO_STEP = sys.maxsize  # such a row comes after every step, and nothing comes after it
Row = Mapping[str, object]
#: (metric, value, milliseconds since 1970, step)
Point = tuple[str, float, int, int]


class Deduplicator:
    """The last logged step of each metric and table of a run, looked up when first asked for.

    Args:
        up: a deduplicator that is down lets everything pass and asks nothing: the run is new and nothing went wrong.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str, up: bool = True) -> None:
        self._client, self._run_id, self._up = client, run_id, up
        self._points: dict[str, int] = {}
        self._tables: dict[str, int] = {}

    def raise_again(self) -> None:
        """Look everything up anew: messages were sent of which it is not known whether they arrived."""
        self._up, self._points, self._tables = True, {}, {}

    def new_points(self, points: Sequence[Point]) -> list[Point]:
        """The points after the last step of their metric, which they then are themselves."""
        if not self._up:
            return list(points)
        new = []
        for point in points:
            if point[3] > self._last_point(point[0]):
                self._points[point[0]] = point[3]
                new.append(point)
        return new

    def new_rows(self, table: str, rows: Sequence[Row]) -> list[Row]:
        """The rows after the last `step` of a table; a table without steps is logged once."""
        if not self._up:
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
        """-1 where there is no such table, NO_STEP where it has no steps."""
        if table not in [artifact.path for artifact in self._client.list_artifacts(self._run_id)]:
            return -1
        with tempfile.TemporaryDirectory() as folder:
            content = json.loads(Path(self._client.download_artifacts(self._run_id, table, folder)).read_text("utf-8"))
        if "step" not in content["columns"]:
            return NO_STEP
        place = content["columns"].index("step")
        return max((int(row[place]) for row in content["data"]), default=-1)


def _step(row: Row) -> int:
    return int(str(row.get("step", NO_STEP)))


def is_there(client: mlflow.MlflowClient, run_id: str) -> bool:
    """Whether a run can be opened again: the store knows it and it is not deleted. Any other failure is raised."""
    try:
        return str(client.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False


def deliver(client: mlflow.MlflowClient, run_id: str, deduplicator: Deduplicator, record: Record) -> None:
    """Send one message; points and rows that the run has already are left out."""
    slow = "table" in record or "file" in record
    with impatient(ONE_RETRY if slow else IMPATIENT):
        if "table" in record:
            _table(client, run_id, deduplicator, record)
        elif "file" in record:
            _file(client, run_id, record)
        elif "data" in record:
            _data(client, run_id, record)
        else:
            _batch(client, run_id, deduplicator, record)


def _data(client: mlflow.MlflowClient, run_id: str, record: Record) -> None:
    """Two runs that name the same new data at once: MLflow looks, then writes, and the later one's write fails."""
    data = Dataset(record["data"], record["digest"], source_type="local", source=record["source"])
    inputs = [DatasetInput(data, [InputTag("mlflow.data.context", record["context"])])]
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException as error:
        if "unique" not in str(error).lower():
            raise
        client.log_inputs(run_id, inputs)


def _batch(client: mlflow.MlflowClient, run_id: str, deduplicator: Deduplicator, record: Record) -> None:
    points = [Metric(*point) for point in deduplicator.new_points(record.get("points", ()))]
    points += [Metric(key, value, time, 0) for key, value, time in record.get("best", ())]
    params = [Param(key, value) for key, value in record.get("params", {}).items()]
    tags = [RunTag(key, value) for key, value in record.get("tags", {}).items()]
    while points or params or tags:
        client.log_batch(run_id, points[:MOST_POINTS], params[:MOST_PARAMS], tags[:MOST_TAGS])
        points, params, tags = points[MOST_POINTS:], params[MOST_PARAMS:], tags[MOST_TAGS:]


def _file(client: mlflow.MlflowClient, run_id: str, record: Record) -> None:
    if Path(record["file"]).exists():
        client.log_artifact(run_id, record["file"], record["folder"])
    else:
        say(f"{record['file']}: gone before it could be sent to the store")


def _table(client: mlflow.MlflowClient, run_id: str, deduplicator: Deduplicator, record: Record) -> None:
    rows = deduplicator.new_rows(record["table"], record["rows"])
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns.sort(key=lambda column: column != "video_id")
    client.log_table(run_id, {column: [row.get(column) for row in rows] for column in columns}, record["table"])
