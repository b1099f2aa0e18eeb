"""How one message reaches MLflow, and which failures mean that its store does not answer at the moment."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from videoblip2.tracking.fence import Fence
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


def deliver(client: mlflow.MlflowClient, run_id: str, fence: Fence, record: Record) -> None:
    """Send one message; points and rows that the run has already are left out."""
    slow = "table" in record or "file" in record
    with impatient(ONE_RETRY if slow else IMPATIENT):
        if "table" in record:
            _table(client, run_id, fence, record)
        elif "file" in record:
            _file(client, run_id, record)
        elif "data" in record:
            data = Dataset(record["data"], record["digest"], source_type="local", source=record["source"])
            client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", record["context"])])])
        else:
            _batch(client, run_id, fence, record)


def _batch(client: mlflow.MlflowClient, run_id: str, fence: Fence, record: Record) -> None:
    points = [Metric(*point) for point in fence.new_points(record.get("points", ()))]
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


def _table(client: mlflow.MlflowClient, run_id: str, fence: Fence, record: Record) -> None:
    rows = fence.new_rows(record["table"], record["rows"])
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns.sort(key=lambda column: column != "video_id")
    client.log_table(run_id, {column: [row.get(column) for row in rows] for column in columns}, record["table"])
