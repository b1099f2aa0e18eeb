"""The lists of videos and captions that other parts read, and what they lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from videoblip2.data.documents import Document
from videoblip2.errors import InputError, some
from videoblip2.files import write_json

Entries = TypeVar("Entries", bound=Sequence[Any])  # VideoAnnotation or Question


class Store(Protocol):
    """A feature store."""

    root: Path
    modalities: tuple[str, ...]

    @property
    def ids(self) -> list[str]: ...
    def holds(self, modality: str, video_id: str) -> bool: ...


@dataclass(frozen=True)
class VideoAnnotation:
    """One video and its human captions (its references), in the order in which they were published."""

    video_id: str
    category: int
    captions: Annotated[tuple[str, ...], Field(min_length=1)]  # checked in lists that are read


_VIDEOS = TypeAdapter(Annotated[list[VideoAnnotation], Field(min_length=1)])


def read_annotations(path: str | Path) -> list[VideoAnnotation]:
    """Read `[{"video_id": "video0", "category": 9, "captions": ["…"]}]`; other keys (of a top-5 file) are ignored.

    Raises `InputError` for a missing file, any other layout, a video without captions and a repeated video.
    """
    content = Document.open(path).json
    entries = content if isinstance(content, list) else [content]
    try:
        videos = _VIDEOS.validate_python([{"category": 0, **e} if isinstance(e, dict) else e for e in entries])
    except ValidationError as error:
        (place, *keys), problem = error.errors()[0]["loc"] or (0,), error.errors()[0]["msg"]
        entry = entries[int(place)] if entries else None
        where = entry.get("video_id", f"entry {int(place) + 1}") if isinstance(entry, dict) else f"entry {place}"
        said = f"{' '.join([str(where), *map(str, keys)])}: {problem}"
        remedy = f"`vb2 data prepare {path} --out DIR` makes one"
        raise InputError(f"{path}: not a list of videos with captions ({said}); {remedy}") from error
    refuse_duplicates((video.video_id for video in videos), path)
    return videos


def write_annotations(path: str | Path, videos: Iterable[VideoAnnotation]) -> None:
    """Write the list that `read_annotations` reads, atomically."""
    write_json(Path(path), [vars(video) for video in videos])


def require_features(entries: Entries, store: Store, file: str) -> Entries:
    """The entries of an annotation file, unchanged. Raises `InputError` if a video lacks features of a modality."""
    videos = list(dict.fromkeys(entry.video_id for entry in entries))
    if missing := [f"{len(ids)} have no {name} ({some(ids)})" for name, ids in lacking(videos, store).items() if ids]:
        raise InputError(
            f"{file}: of {len(videos)} videos, {', '.join(missing)} features in {store.root}; extract them, or leave "
            f"these videos out with `vb2 data prepare … --only-with {store.root}`; `vb2 data check` lists all"
        )
    return entries


def lacking(videos: Iterable[str], store: Store) -> dict[str, list[str]]:
    """Modality that the store is read for → the videos for which it has no array."""
    ids = list(videos)
    return {name: [video for video in ids if not store.holds(name, video)] for name in store.modalities}


def refuse_duplicates(ids: Iterable[str], where: object) -> None:
    """Raise `InputError` naming the ids that occur more than once."""
    if again := [name for name, count in Counter(ids).items() if count > 1]:
        raise InputError(f"{where}: listed more than once: {some(again)}; list each one once")


def flaws(entries: Iterable[tuple[str, ...]]) -> tuple[Counter[str], dict[str, str]]:
    """Counts of duplicate, empty and control_character texts, and the first example of each.

    entries: (video, text, …). Only an entry's first text counts as a duplicate of an earlier one of its video.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for video, *texts in entries:
        found = {
            "duplicate": (video, texts[0]) in seen,
            "empty": not all(text.strip() for text in texts),
            "control_character": not all(text.isprintable() for text in texts),
        }
        for flaw in (name for name, present in found.items() if present):
            counts[flaw] += 1
            examples.setdefault(flaw, f"{video}: {' '.join(map(repr, texts))}")
        seen.add((video, texts[0]))
    return counts, examples
