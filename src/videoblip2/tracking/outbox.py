"""What a run has to say while its store does not answer: kept in order, sent later, and in a file across processes.

An outage must not stop a training, nor slow it down: after a failed attempt the next one waits 10 s, then twice as
long, at most five minutes. What is left at the end goes to a file that the same run reads when it is opened again.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videoblip2.errors import first_line
from videoblip2.files import write_text

FIRST_WAIT, LONGEST_WAIT = 10.0, 300.0
#: One message as plain data; its keys say what it is: points, tags, params, table, file or data.
Record = dict[str, Any]


@dataclass
class Outbox:
    """Messages to one run, delivered in order.

    Args:
        deliver: sends one message, or raises.
        is_outage: whether an exception means that the store does not answer; any other is raised.
        file: where messages survive the process; None = nowhere.
    """

    deliver: Callable[[Record], None]
    is_outage: Callable[[BaseException], bool]
    file: Path | None = None
    waiting: list[Record] = field(default_factory=list)
    _next_attempt: float = 0.0
    _wait: float = FIRST_WAIT

    def put(self, record: Record) -> None:
        """Send a message after those that wait."""
        self.waiting.append(record)
        self.send()

    def send(self, at_once: bool = False) -> bool:
        """Send what waits, unless the last attempt has just failed; return whether nothing is left."""
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
        """Put what waits into the file, so that it survives the process; return whether that was possible."""
        if self.file is None or not self.waiting:
            return not self.waiting
        try:
            write_text(self.file, "".join(json.dumps(record) + "\n" for record in self.waiting))
        except OSError as error:
            say(f"{self.file}: cannot be written ({error.strerror}); {describe(self.waiting)} will be lost")
            return False
        return True

    def read(self) -> None:
        """Take up what an earlier process of this run left in the file, before anything else."""
        if self.file is None or not self.file.is_file():
            return
        lines = self.file.read_text(encoding="utf-8").splitlines()
        self.waiting = [json.loads(line) for line in lines] + self.waiting

    def _postpone(self, error: Exception) -> None:
        if self._next_attempt == 0.0:
            say(f"the tracking store does not answer ({first_line(error)}); going on, and what is logged is sent later")
        self._next_attempt = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    def _recover(self) -> None:
        if self._next_attempt:
            say("the tracking store answers again; everything was sent")
        self._next_attempt, self._wait = 0.0, FIRST_WAIT
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def describe(records: list[Record]) -> str:
    """Such as `points 120, tables 1, files 2`."""
    many = {"points": ("points", "best"), "parameters": ("params",), "tags": ("tags",)}
    counts = {word: sum(len(record.get(key, ())) for record in records for key in keys) for word, keys in many.items()}
    for word, key in (("tables", "table"), ("files", "file"), ("data sets", "data")):
        counts[word] = sum(key in record for record in records)
    return ", ".join(f"{word} {count}" for word, count in counts.items() if count)


def say(text: str) -> None:
    """A warning on standard error: it must be seen where no store can be reached."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
