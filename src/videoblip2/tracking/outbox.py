"""Messages to a run whose store does not answer: kept in order, sent later, and saved to a file at the end.

An outage must neither stop a training nor slow it down: after a failed attempt the next one waits 10 s, then twice as
long, up to five minutes. What is left at the end goes to a file that the same run reads when it is resumed.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from videoblip2.errors import first_line
from videoblip2.files import write_text

FIRST_WAIT, LONGEST_WAIT = 10.0, 300.0
Row = dict[str, object]
#: (metric, value, milliseconds since 1970, step)
Point = tuple[str, float, int, int]


class _Strict(BaseModel):
    """Extra keys are refused, so that a line of the file is exactly one kind of message; NaN survives the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Batch(_Strict):
    """Points, parameters and tags; best: (metric, value, milliseconds since 1970)."""

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


Message = Batch | Table | File | DataSet
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


@dataclass
class Outbox:
    """Messages to one run, delivered in order.

    Args:
        deliver: sends one message, or raises.
        is_outage: whether an exception means that the store does not answer; any other is raised.
        file: where messages survive the process; None = nowhere.
    """

    deliver: Callable[[Message], None]
    is_outage: Callable[[BaseException], bool]
    file: Path | None = None
    waiting: list[Message] = field(default_factory=list)
    _next_attempt: float = 0.0
    _wait: float = FIRST_WAIT

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
                if not self.is_outage(error):
                    self.waiting.pop(0)
                    raise
                self._postpone(error)
                return False
            self.waiting.pop(0)
        self._recover()
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

    def read(self) -> None:
        """Take over what an earlier process of this run left in the file, ahead of everything else."""
        if self.file is not None and self.file.is_file():
            lines = self.file.read_text(encoding="utf-8").splitlines()
            self.waiting = [_MESSAGE.validate_json(line) for line in lines] + self.waiting

    def _postpone(self, error: Exception) -> None:
        if self._next_attempt == 0.0:
            warn(f"the tracking store does not answer ({first_line(error)}); work continues, and logs are sent later")
        self._next_attempt = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    def _recover(self) -> None:
        if self._next_attempt:
            warn("the tracking store answers again; everything was sent")
        self._next_attempt, self._wait = 0.0, FIRST_WAIT
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def describe(messages: Sequence[Message]) -> str:
    """Such as `points 120, tables 1, files 2`."""
    batches = [message for message in messages if isinstance(message, Batch)]
    counts = {
        "points": sum(len(batch.points) + len(batch.best) for batch in batches),
        "parameters": sum(len(batch.params) for batch in batches),
        "tags": sum(len(batch.tags) for batch in batches),
    }
    for word, kind in (("tables", Table), ("files", File), ("data sets", DataSet)):
        counts[word] = sum(isinstance(message, kind) for message in messages)
    return ", ".join(f"{word} {count}" for word, count in counts.items() if count)


def warn(text: str) -> None:
    """A warning on standard error, where it is seen even when no store can be reached."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
