"""What a file of weights holds, and what became of every tensor when a Q-Former was loaded from one."""

import re
from collections import Counter
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Literal, get_args

from videoblip2.config import InputError
from videoblip2.model.tensor_files import read_tensors, sniff, weights_file
from videoblip2.model.weight_source import (
    POSITIONS,
    QUERIES,
    WORDS,
    Source,
    Tensors,
    find_qformer,
    looks_like,
    qformer_roots,
    read_sizes,
)

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

    def summary(self) -> str:
        """One line, such as `243 loaded, 12 re-initialised (width), 74 from BERT`."""
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
        return ", ".join(parts)

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """One row a tensor group: (group, tensors, parameters, what happened, from which name or why), as text."""
        groups: dict[tuple[str, str, str], list[int]] = {}
        for record in self.records:
            outcome = f"from {self.text_name}" if record.status == "text" else record.status
            if record.status == "fresh":
                outcome = "re-initialised" if record.reason == "width" else "freshly initialised"
            key = (_group(record.name), outcome, _origin(record))
            groups.setdefault(key, []).append(prod(record.shape))
        return [
            (group, str(len(sizes)), f"{sum(sizes):,}", outcome, origin)
            for (group, outcome, origin), sizes in groups.items()
        ]

    def to_json(self) -> dict[str, object]:
        """The report as one JSON-ready dictionary, every tensor listed."""
        return {
            "file": self.file,
            "text_file": self.text_file,
            "layout": self.layout,
            "sizes": dict(self.sizes),
            "counts": {status: self.count(status) for status in get_args(Status)},
            "tensors": [asdict(record) for record in self.records],
        }


def _group(name: str) -> str:
    """The group of a tensor: its module, over all layers (`encoder.layer.*.output.dense`)."""
    return re.sub(r"\.(weight|bias|gamma|beta)$", "", re.sub(r"(?<![^.])\d+(?![^.])", "*", name))


def _origin(record: TensorRecord) -> str:
    parts = [record.reason, record.note]
    if record.status in ("loaded", "text"):
        group = _group(record.source)
        parts.insert(0, f"renamed from {group}" if group != _group(record.name) else "")
    elif record.status == "unused" and record.file == "text":
        parts.insert(0, "of the text file")
    if record.converted:
        parts.append(f"{record.dtype} to float32")
    return "; ".join(filter(None, parts))


@dataclass(frozen=True)
class QFormerFound:
    """One Q-Former in the file; `sizes` are those that its tensors show, `problem` says why it cannot be loaded."""

    prefix: str
    layout: str
    text_branch: bool
    query_tokens: tuple[int, ...] | None
    sizes: dict[str, int]
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """A file of weights, described; `groups` are (group, tensors, parameters)."""

    file: str
    format: str
    looks_like: str
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    qformers: tuple[QFormerFound, ...]
    groups: tuple[tuple[str, int, int], ...]


def inspect_weights(path: Path | str) -> Inspection:
    """Describe a file or folder of weights without loading it; InputError for what cannot be opened."""
    file = weights_file(path)
    tensors = read_tensors(file)
    found = tuple(_found(tensors, str(file), root) for root in qformer_roots(tensors))
    groups: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(_group(name), []).append(tensor.numel())
    return Inspection(
        file=str(file),
        format=sniff(file),
        looks_like=", ".join(one.layout for one in found) or looks_like(tensors),
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        dtypes=dict(Counter(Source(*item).dtype for item in tensors.items())),
        qformers=found,
        groups=tuple((group, len(sizes), sum(sizes)) for group, sizes in groups.items()),
    )


def _found(tensors: Tensors, file: str, root: str) -> QFormerFound:
    source = find_qformer(tensors, file, root)
    queries = source.tensors.get(QUERIES)
    shape = tuple(queries.tensor.shape) if queries is not None else None
    try:
        sizes, problem = read_sizes(source), ""
        for key, name in (("vocab_size", WORDS), ("max_position_embeddings", POSITIONS)):
            if name not in source.tensors:  # the file does not show it
                del sizes[key]
    except InputError as error:
        sizes, problem = {}, str(error)
    return QFormerFound(root, source.layout, source.has_text, shape, sizes, problem)
