"""Videos with their captions: the JSON list that every other part reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from videoblip2.config import InputError
from videoblip2.files import write_json


class OfVideo(Protocol):
    """A video, or a question about one."""

    @property
    def video_id(self) -> str: ...


class Store(Protocol):
    """A feature store."""

    root: Path

    @property
    def ids(self) -> list[str]: ...


Entry = TypeVar("Entry", bound=OfVideo)


@dataclass(frozen=True)
class VideoAnnotation:
    """One video and its human captions (its references), in the order in which they were published."""

    video_id: str
    category: int
    captions: tuple[str, ...]


def read_annotations(path: str | Path) -> list[VideoAnnotation]:
    """Read `[{"video_id": "video0", "category": 9, "captions": ["…"]}]`; other keys (of a top-5 file) are ignored.

    Raises `InputError` for a missing file, another layout, a video without captions and a repeated video.
    """
    path = Path(path)
    entries = load_json(path)
    if isinstance(entries, dict) and "sentences" in entries:
        raise InputError(f"{path}: is in MSR-VTT's own layout; run `vb2 data prepare {path} --out DIR` first")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: not a list of videos; make it with `vb2 data prepare`")
    videos = [_video(entry, path) for entry in entries]
    refuse_duplicates((video.video_id for video in videos), path)
    return videos


def require_features(entries: list[Entry], store: Store, file: str) -> list[Entry]:
    """The entries of an annotation file, unchanged. Raises `InputError` if any video has no features."""
    known = set(store.ids)
    videos = list(dict.fromkeys(entry.video_id for entry in entries))
    missing = [video_id for video_id in videos if video_id not in known]
    if missing:
        raise InputError(
            f"{file}: {len(missing)} of {len(videos)} videos have no features in {store.root}: {some(missing)}; "
            "run `vb2 features extract` on them or remove them from the annotations; `vb2 data check` lists all"
        )
    return entries


def write_annotations(path: str | Path, videos: Iterable[VideoAnnotation]) -> None:
    """Write the list that `read_annotations` reads, atomically."""
    write_json(Path(path), [asdict(video) for video in videos])


def load_json(path: Path) -> Any:
    """A JSON file's content. Raises `InputError` for a missing file and for malformed JSON."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an annotation file")
    return parse_json(path.read_bytes(), str(path))


def parse_json(content: bytes, name: str) -> Any:
    """JSON from bytes. Raises `InputError` that gives `name`."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise InputError(f"{name}: not JSON ({error}); give an annotation file or MSR-VTT's zip") from error


def refuse_duplicates(ids: Iterable[str], where: object) -> None:
    """Raise `InputError` naming the ids that occur more than once."""
    again = [name for name, count in Counter(ids).items() if count > 1]
    if again:
        verb = "appears" if len(again) == 1 else "appear"
        raise InputError(f"{where}: {some(again)} {verb} more than once; give each one once")


def flaws(entries: Iterable[tuple[str, ...]]) -> tuple[Counter[str], dict[str, str]]:
    """Counts of duplicate, empty and control_character texts, and the first example of each.

    entries: (video, text, …). Only the first text of an entry counts as a duplicate of an earlier one of its video.
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


def some(names: Sequence[str], most: int = 5) -> str:
    """Up to `most` names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _video(entry: Any, path: Path) -> VideoAnnotation:
    if not isinstance(entry, dict) or not isinstance(entry.get("video_id"), str):
        raise InputError(f'{path}: an entry has no "video_id"; each must hold video_id, category and captions')
    video_id, captions = entry["video_id"], entry.get("captions")
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise InputError(
            f'{path}: "captions" of {video_id} is not a list of strings; make the file with `vb2 data prepare`'
        )
    if not captions:
        raise InputError(f"{path}: {video_id} has no captions; add one or remove the video")
    category = entry.get("category", 0)
    if not isinstance(category, int):
        raise InputError(f"{path}: the category of {video_id} is {category!r}; give its number")
    return VideoAnnotation(video_id, category, tuple(captions))
