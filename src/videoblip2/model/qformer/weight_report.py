"""What became of every tensor when a Q-Former was loaded: one record each, a table of groups, and one line."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from typing import Literal

Status = Literal["loaded", "text", "fresh", "unused"]


@dataclass(frozen=True)
class TensorRecord:
    """One tensor: what happened to it, from which file and name, and why."""

    name: str  # in the model; for an unused tensor, its name in the file
    status: Status  # "loaded" from the checkpoint, "text" from the second file, "fresh", or "unused"
    shape: tuple[int, ...]
    source: str = ""  # its name in the file, "" when fresh
    file: str = ""  # "checkpoint" or "text", "" when fresh
    dtype: str = ""  # in the file, such as "float16"; the model always holds float32
    reason: str = ""  # why it is fresh or unused
    note: str = ""  # what else was done to it, such as "30522 rows, 1 fresh"

    @property
    def converted(self) -> bool:
        """Whether the file held it in another precision than the float32 it now has."""
        return self.status in ("loaded", "text") and self.dtype != "float32"


@dataclass(frozen=True)
class WeightReport:
    """The whole of one load. `records` follow the model's own order, the unused tensors last."""

    file: str
    layout: str
    sizes: dict[str, int]
    records: tuple[TensorRecord, ...]
    text_file: str | None = None
    text_name: str = "BERT"

    def count(self, status: Status) -> int:
        """How many tensors have this status."""
        return sum(record.status == status for record in self.records)

    def summary(self, name: str) -> str:
        """One line, such as `video Q-Former: 243 loaded, 12 re-initialised (width), 74 from BERT`."""
        parts = [f"{self.count('loaded')} loaded"]
        fresh = Counter(record.reason for record in self.records if record.status == "fresh")
        for reason, count in fresh.items():
            parts.append(f"{count} {'re-initialised' if reason == 'width' else 'freshly initialised'} ({reason})")
        if self.count("text"):
            parts.append(f"{self.count('text')} from {self.text_name}")
        noted = Counter(record.note for record in self.records if record.note)
        parts += [f"{note} in {count}" for note, count in noted.items()]
        converted = Counter(record.dtype for record in self.records if record.converted)
        parts += [f"{count} converted from {dtype} to float32" for dtype, count in sorted(converted.items())]
        return f"{name}: " + ", ".join(parts)

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """One row a tensor group: (group, tensors, parameters, what happened, from which name or why), as text."""
        groups: dict[tuple[str, str, str], list[TensorRecord]] = {}
        for record in self.records:
            key = (group_name(record.name), _outcome(record, self.text_name), _origin(record))
            groups.setdefault(key, []).append(record)
        rows = []
        for (group, outcome, origin), records in groups.items():
            parameters = sum(prod(record.shape) for record in records)
            rows.append((group, str(len(records)), f"{parameters:,}", outcome, origin))
        return rows

    def to_json(self) -> dict[str, object]:
        """The report as one JSON-ready dictionary, every tensor listed."""
        return {
            "file": self.file,
            "text_file": self.text_file,
            "layout": self.layout,
            "sizes": dict(self.sizes),
            "counts": {status: self.count(status) for status in ("loaded", "text", "fresh", "unused")},
            "tensors": [asdict(record) for record in self.records],
        }


def group_name(name: str) -> str:
    """The group of a tensor: its module, over all layers (`encoder.layer.*.output.dense`)."""
    return re.sub(r"\.(weight|bias|gamma|beta)$", "", re.sub(r"(?<![^.])\d+(?![^.])", "*", name))


def group_rows(named: Iterable[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """(group, tensors, parameters) for (tensor name, number of elements) pairs, in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for name, size in named:
        groups.setdefault(group_name(name), []).append(size)
    return [(group, len(sizes), sum(sizes)) for group, sizes in groups.items()]


def _outcome(record: TensorRecord, text_name: str) -> str:
    if record.status == "text":
        return f"from {text_name}"
    if record.status == "fresh":
        return "re-initialised" if record.reason == "width" else "freshly initialised"
    return record.status


def _origin(record: TensorRecord) -> str:
    parts = [record.reason, record.note]
    if record.status in ("loaded", "text"):
        group = group_name(record.source)
        parts.insert(0, f"renamed from {group}" if group != group_name(record.name) else "")
    elif record.status == "unused" and record.file == "text":
        parts.insert(0, "of the text file")
    if record.converted:
        parts.append(f"{record.dtype} to float32")
    return "; ".join(part for part in parts if part)
