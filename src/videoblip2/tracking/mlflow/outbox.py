"""Messages to a run: kept in order, delivered once, retried later while the store does not answer.

An outage must neither stop a training nor slow it down: after a failed attempt the next one waits 10 s, then twice as
long, up to five minutes. What is left at the end goes to a file that the same run reads when it is resumed.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict, TypeAdapter
from sqlalchemy.exc import SQLAlchemyError

from videoblip2.errors import first_line, warn
from videoblip2.files import write_text

FIRST_WAIT, LONGEST_WAIT = 10.0, 300.0
TEMPORARY = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED")
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
#: The longest that training waits for a server that hangs; MLflow's own default is minutes.
ONE_RETRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
IMPATIENT = {**ONE_RETRY, "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
MOST_POINTS, MOST_PARAMS, MOST_TAGS = 800, 100, 100  # in one call: MLflow's limits, 1000 altogether

Row = dict[str, object]
#: (metric, value, milliseconds since 1970, step)
Point = tuple[str, float, int, int]


class _Strict(BaseModel):
    """Extra keys are refused, so that a line of the file is exactly one kind of message; NaN survives the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Values(_Strict):
    """best: (metric, value, milliseconds since 1970)."""

    points: tuple[Point, ...] = ()
    best: tuple[tuple[str, float, int], ...] = ()
    params: dict[str, str] = {}
    tags: dict[str, str] = {}


class Table(_Strict):
    """Rows of the table in the artifact `table`."""

    table: str
    rows: list[Row]


class File(_Strict):
    """A file on this machine, and the artifact folder that it goes to."""

    file: Path
    folder: str | None = None


class DataSet(_Strict):
    """A data set that the run used: its name and digest, where it came from, and `train`, `val` or `test`."""

    data: str
    digest: str
    source: str
    context: str


Message = Values | Table | File | DataSet
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


class Outbox:
    """Messages to one run, in order, without what a resumed run already has. file: where they survive the process.

    What an earlier process of this run left in the file comes first. The last step of each metric is looked up once,
    and again after a failure: what arrived is then unknown.
    """

    def __init__(
        self, client: mlflow.MlflowClient, run_id: str, resumed: bool = True, file: Path | None = None
    ) -> None:
        self.file = file
        left = file.read_text(encoding="utf-8") if file is not None and file.is_file() else ""
        self.waiting = [_MESSAGE.validate_json(line) for line in left.split("\n") if line]
        self._client, self._run_id, self._resumed = client, run_id, resumed
        self._last_steps: dict[str, int] = {}
        self._next_attempt, self._wait = 0.0, FIRST_WAIT

    def put(self, message: Message) -> None:
        """Send a message after those already waiting."""
        self.waiting.append(message)
        self.send()

    def send(self, at_once: bool = False) -> bool:
        """Send what is waiting, unless the last attempt failed a moment ago; return whether nothing is left."""
        if self.waiting and not at_once and time.monotonic() < self._next_attempt:
            return False
        while self.waiting:
            try:
                self.deliver(self.waiting[0])
            except Exception as error:
                if not is_outage(error):
                    self.waiting.pop(0)
                    raise
                if not self._next_attempt:
                    warn(f"the tracking store does not answer ({first_line(error)}); work continues, logs follow later")
                self._next_attempt = time.monotonic() + self._wait
                self._wait = min(2 * self._wait, LONGEST_WAIT)
                return False
            self.waiting.pop(0)
        if self._next_attempt:
            warn("the tracking store answers again; everything was sent")
        self._next_attempt, self._wait = 0.0, FIRST_WAIT
        if self.file is not None:
            self.file.unlink(missing_ok=True)
        return True

    def write(self) -> bool:
        """Save what is waiting to the file, so that it survives the process; return whether that was possible."""
        if self.file is None or not self.waiting:
            return not self.waiting
        try:
            write_text(self.file, "".join(f"{message.model_dump_json()}\n" for message in self.waiting))
        except OSError as error:
            warn(f"{self.file}: cannot be written ({error.strerror}); {describe(self.waiting)} will be lost")
            return False
        return True

    def deliver(self, message: Message) -> None:
        """Send one message."""
        try:
            with impatient(ONE_RETRY if isinstance(message, Table | File) else IMPATIENT):
                match message:
                    case Values():
                        self._send_batch(message)
                    case Table():
                        self._send_table(message)
                    case File(file=file) if not file.exists():
                        warn(f"{file}: deleted before it could be sent to the store")
                    case File():
                        self._client.log_artifact(self._run_id, str(message.file), message.folder)
                    case DataSet():
                        self._send_data(message)
        except Exception:
            self._resumed, self._last_steps = True, {}
            raise

    def _send_batch(self, batch: Values) -> None:
        new = [point for point in batch.points if self._is_new(point)]
        points = [Metric(*point) for point in new] + [Metric(key, value, time, 0) for key, value, time in batch.best]
        params = [Param(key, value) for key, value in batch.params.items()]
        tags = [RunTag(key, value) for key, value in batch.tags.items()]
        while points or params or tags:
            self._client.log_batch(self._run_id, points[:MOST_POINTS], params[:MOST_PARAMS], tags[:MOST_TAGS])
            points, params, tags = points[MOST_POINTS:], params[MOST_PARAMS:], tags[MOST_TAGS:]

    def _is_new(self, point: Point) -> bool:
        """Whether a point is after the last step of its metric, which it then defines."""
        key, step = point[0], point[3]
        if not self._resumed:
            return True
        if key not in self._last_steps:
            history = self._client.get_metric_history(self._run_id, key)
            self._last_steps[key] = max((point.step for point in history), default=-1)
        last, self._last_steps[key] = self._last_steps[key], max(self._last_steps[key], step)
        return step > last

    def _send_table(self, message: Table) -> None:
        """The rows after the last `step` of the table; a table without steps replaces the one that is there."""
        rows, table = message.rows, message.table
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

    def _send_data(self, data: DataSet) -> None:
        """Two runs may name the same new data at once: MLflow looks first and then writes, and the second fails."""
        dataset = Dataset(data.data, data.digest, source_type="local", source=data.source)
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)])]
        try:
            self._client.log_inputs(self._run_id, inputs)
        except MlflowException as error:
            if "unique" not in str(error).lower():
                raise
            self._client.log_inputs(self._run_id, inputs)


def is_outage(error: BaseException) -> bool:
    """Whether the store may accept the same message later: it is locked, full, restarting or unreachable."""
    if isinstance(error, MlflowException):
        return error.error_code in TEMPORARY
    return isinstance(error, OSError | SQLAlchemyError) and not isinstance(error, LASTING)


@contextmanager
def impatient(limits: Mapping[str, str] = IMPATIENT) -> Iterator[None]:
    """Give up on a server soon; the user's own settings stay."""
    added = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def describe(messages: Sequence[Message]) -> str:
    """Such as `points 120, tables 1, files 2`."""
    counts: Counter[str] = Counter()
    for message in messages:
        if isinstance(message, Values):
            points = len(message.points) + len(message.best)
            counts.update(points=points, parameters=len(message.params), tags=len(message.tags))
        else:
            counts[{Table: "tables", File: "files", DataSet: "data sets"}[type(message)]] += 1
    return ", ".join(f"{word} {count}" for word, count in counts.items() if count)
