"""Data for a run: delivered once, and retried later while the store does not answer.

An outage must neither stop nor slow training: after a failed attempt the next one waits 10 s, then twice as long, up to
five minutes. Data left at the end goes to a file that the same run reads when it is resumed.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import SQLAlchemyError

from videoblip2.errors import first_line, warn
from videoblip2.files import write_text

FIRST_WAIT, LONGEST_WAIT = 10.0, 300.0
TEMPORARY = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED")
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
#: Longest wait of training for a server that hangs; MLflow's own default is minutes.
ONE_RETRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
IMPATIENT = {**ONE_RETRY, "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
MOST_POINTS, MOST_PARAMS, MOST_TAGS = 800, 100, 99  # in one call: MLflow's limits, 1000 altogether

T = TypeVar("T")
TableRow = dict[str, object]
#: (metric, value, milliseconds since 1970, step; None = of the chosen checkpoint, replaced by later ones)
Point = tuple[str, float, int, int | None]


class Unsent(BaseModel):
    """Parts of a run that the store does not have yet; NaN is preserved in the file.

    tables: (artifact, rows). files: (path on this machine, artifact folder). data_sets: (name, digest, source, and
    train, val or test).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    points: list[Point] = []
    parameters: list[tuple[str, str]] = []
    tags: list[tuple[str, str]] = []
    tables: list[tuple[str, list[TableRow]]] = []
    files: list[tuple[Path, str | None]] = []
    data_sets: list[tuple[str, str, str, str]] = []

    def __str__(self) -> str:
        """Such as `points 120, tables 1, files 2`; empty if nothing waits."""
        return ", ".join(f"{name.replace('_', ' ')} {len(items)}" for name, items in self if items)


class Outbox:
    """Sends data to one run, skipping what a resumed run has. file: stores the rest beyond the process.

    Data that an earlier process of this run left in the file comes first. The last step of each metric is looked up
    once, and again after a failure, since it is then unknown what arrived.
    """

    def __init__(
        self, client: mlflow.MlflowClient, run_id: str, resumed: bool = True, file: Path | None = None
    ) -> None:
        self.file = file
        left = file.read_text(encoding="utf-8") if file is not None and file.is_file() else "{}"
        self.unsent = Unsent.model_validate_json(left)
        self._client, self._run_id, self._resumed = client, run_id, resumed
        self._last_steps: dict[str, int] = {}
        self._next_attempt, self._wait = 0.0, FIRST_WAIT

    def put(self, more: Unsent) -> None:
        """Queue more data, and send."""
        for name, items in more:
            getattr(self.unsent, name).extend(items)
        self.send()

    def send(self, at_once: bool = False) -> bool:
        """Send queued data, unless the last attempt failed a moment ago; return whether nothing is left."""
        if not at_once and time.monotonic() < self._next_attempt:
            return not str(self.unsent)
        try:
            self.deliver()
        except BaseException as error:
            self._resumed, self._last_steps = True, {}
            if not is_outage(error):
                raise
            if not self._next_attempt:
                warn(f"the tracking store does not answer ({first_line(error)}); work continues, logs follow later")
            self._next_attempt = time.monotonic() + self._wait
            self._wait = min(2 * self._wait, LONGEST_WAIT)
            return False
        if self._next_attempt:
            warn("the tracking store answers again; everything was sent")
        self._next_attempt, self._wait = 0.0, FIRST_WAIT
        if self.file is not None:
            self.file.unlink(missing_ok=True)
        return True

    def write(self) -> bool:
        """Save unsent data to the file, so that it survives the process; return whether that worked."""
        if self.file is None or not str(self.unsent):
            return not str(self.unsent)
        try:
            write_text(self.file, f"{self.unsent.model_dump_json()}\n")
        except OSError as error:
            warn(f"{self.file}: cannot be written ({error.strerror}); {self.unsent} will be lost")
            return False
        return True

    def deliver(self) -> None:
        """Send everything, files before the tags that name them; drop what the store permanently refuses."""
        run_id, unsent = self._run_id, self.unsent
        while unsent.tables:
            with impatient(ONE_RETRY), taken(unsent.tables) as [(name, rows)]:
                self._send_table(name, rows)
        while unsent.files:
            with impatient(ONE_RETRY), taken(unsent.files) as [(file, folder)]:
                if file.exists():
                    self._client.log_artifact(run_id, str(file), folder)
                else:
                    warn(f"{file}: deleted before it could be sent to the store")
        while unsent.data_sets:
            with impatient(), taken(unsent.data_sets) as [(name, digest, source, context)]:
                dataset = Dataset(name, digest, source_type="local", source=source)
                self._send_data([DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
        while unsent.points or unsent.parameters or unsent.tags:
            with (
                impatient(),
                taken(unsent.points, MOST_POINTS) as points,
                taken(unsent.parameters, MOST_PARAMS) as parameters,
                taken(unsent.tags, MOST_TAGS) as tags,
            ):
                metrics = [Metric(*point[:3], point[3] or 0) for point in points if self._is_new(point)]
                alive = {"heartbeat": str(int(time.time()))} if points else {}
                known = [RunTag(*tag) for tag in {**dict(tags), **alive}.items()]
                self._client.log_batch(run_id, metrics, [Param(*one) for one in dict(parameters).items()], known)

    def _is_new(self, point: Point) -> bool:
        """Whether a point is after the last step of its metric; if so, it becomes the last."""
        key, _, _, step = point
        if not self._resumed or step is None:
            return True
        if key not in self._last_steps:
            history = self._client.get_metric_history(self._run_id, key)
            self._last_steps[key] = max((point.step for point in history), default=-1)
        last, self._last_steps[key] = self._last_steps[key], max(self._last_steps[key], step)
        return step > last

    def _send_table(self, table: str, rows: list[TableRow]) -> None:
        """Append the rows after the last `step` of the table; a table without steps replaces the old one."""
        columns = sorted(dict.fromkeys(key for row in rows for key in row), key=lambda column: column != "video_id")
        if self._resumed and table in [artifact.path for artifact in self._client.list_artifacts(self._run_id)]:
            if "step" not in columns:
                data = [[row.get(name) for name in columns] for row in rows]
                self._client.log_dict(self._run_id, {"columns": columns, "data": data}, table)
                return
            logged = mlflow.artifacts.load_dict(f"runs:/{self._run_id}/{table}")
            last = max((row[logged["columns"].index("step")] for row in logged["data"]), default=-1)
            rows = [row for row in rows if int(str(row["step"])) > last]
        if rows:
            self._client.log_table(self._run_id, {name: [row.get(name) for row in rows] for name in columns}, table)

    def _send_data(self, inputs: list[DatasetInput]) -> None:
        """Two runs may name the same new data at once: MLflow checks before it writes, so the second fails."""
        try:
            self._client.log_inputs(self._run_id, inputs)
        except MlflowException as error:
            if "unique" not in str(error).lower():
                raise
            self._client.log_inputs(self._run_id, inputs)


@contextmanager
def taken(queue: list[T], most: int = 1) -> Iterator[list[T]]:
    """The first items of a queue, removed if the block succeeds, or fails with an error that a retry would meet."""
    try:
        yield queue[:most]
    except BaseException as error:
        if is_outage(error) or not isinstance(error, Exception):
            most = 0
        raise
    finally:
        del queue[:most]


def is_outage(error: BaseException) -> bool:
    """Whether a retry may succeed: the store is locked, full, restarting or unreachable."""
    if isinstance(error, MlflowException):
        return error.error_code in TEMPORARY
    return isinstance(error, OSError | SQLAlchemyError) and not isinstance(error, LASTING)


@contextmanager
def impatient(limits: Mapping[str, str] = IMPATIENT) -> Iterator[None]:
    """Use short timeouts for a server, unless the user set others."""
    added = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
