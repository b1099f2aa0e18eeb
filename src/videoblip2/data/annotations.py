"""Captions and their videos: our own JSON list, and the official MSR-VTT files that it is made from."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from videoblip2.config import InputError

SPLIT_FILES = {"train": "train.json", "validate": "val.json", "test": "test.json"}


@dataclass(frozen=True)
class VideoAnnotation:
    """One video and its human captions (its references), in the order in which they were published."""

    video_id: str
    category: int
    captions: tuple[str, ...]


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare_msrvtt` read and wrote. Flaws in captions are counted, with an example each; no caption is lost."""

    videos: dict[str, int]
    captions: dict[str, int]
    files: dict[str, str]
    duplicate_captions: int = 0  # a text that its own video already has
    empty_captions: int = 0
    control_character_captions: int = 0
    examples: dict[str, str] = field(default_factory=dict)


def read_annotations(path: str | Path) -> list[VideoAnnotation]:
    """Read `[{"video_id": "video0", "category": 9, "captions": ["…"]}]`; further keys (of a top-5 file) are ignored.

    Raises `InputError` for a missing file, another layout, a video without captions and a video named twice.
    """
    path = Path(path)
    entries = _load_json(path)
    if isinstance(entries, dict) and "sentences" in entries:
        raise InputError(f"{path}: is in MSR-VTT's own layout; run `vb2 data prepare {path} --out DIR` first")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: not a list of videos; make it with `vb2 data prepare`")
    videos = [_video(entry, path) for entry in entries]
    _refuse_duplicates((video.video_id for video in videos), path)
    return videos


def write_annotations(path: str | Path, videos: Iterable[VideoAnnotation]) -> None:
    """Write the list form that `read_annotations` reads, atomically."""
    write_json(path, [asdict(video) for video in videos])


def prepare_msrvtt(paths: Sequence[str | Path], out: str | Path) -> PrepareReport:
    """Official MSR-VTT annotations (JSON, or zip files that hold it) -> train.json, val.json, test.json in `out`.

    Captions keep their published order (`sen_id`) and their exact text. A split that no file holds is not written.
    Raises `InputError` for another layout, a video that comes twice, a video without captions and captions without
    a video; nothing is written then.
    """
    splits: dict[str, list[VideoAnnotation]] = {}
    for path in paths:
        for name, content in _documents(Path(path)):
            for split, video in _official_videos(content, name):
                splits.setdefault(split, []).append(video)
    _refuse_duplicates((v.video_id for videos in splits.values() for v in videos), ", ".join(map(str, paths)))
    files = {split: Path(out) / name for split, name in SPLIT_FILES.items() if split in splits}
    for split, file in files.items():
        write_annotations(file, splits[split])
    return _report(splits, {split: str(file) for split, file in files.items()})


def write_json(path: str | Path, content: object) -> None:
    """Write JSON through a temporary file, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False, encoding="utf-8") as file:
        try:
            json.dump(content, file, ensure_ascii=False, indent=1)
            file.close()
            os.replace(file.name, path)
        finally:
            Path(file.name).unlink(missing_ok=True)


def _video(entry: Any, path: Path) -> VideoAnnotation:
    if not isinstance(entry, dict) or not isinstance(entry.get("video_id"), str):
        raise InputError(f'{path}: an entry has no "video_id"; each must hold video_id, category and captions')
    video_id, captions = entry["video_id"], entry.get("captions")
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise InputError(
            f'{path}: "captions" of {video_id} is no list of strings; make the file with `vb2 data prepare`'
        )
    if not captions:
        raise InputError(f"{path}: {video_id} has no captions; add one or take the video out")
    category = entry.get("category", 0)
    if not isinstance(category, int):
        raise InputError(f"{path}: the category of {video_id} is {category!r}; give its number")
    return VideoAnnotation(video_id, category, tuple(captions))


def _documents(path: Path) -> list[tuple[str, Any]]:
    """(name, parsed JSON) of a JSON file, or of each JSON file inside a zip."""
    if not zipfile.is_zipfile(path):
        return [(str(path), _load_json(path))]
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith(".json") and not n.startswith("__MACOSX")]
            contents = [(f"{path}/{name}", archive.read(name)) for name in names]
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:
        raise InputError(f"{path}: not a readable zip ({error}); fetch it again") from error
    if not contents:
        raise InputError(f"{path}: holds no .json file; give MSR-VTT's annotation zip")
    return [(name, _parse(content, name)) for name, content in contents]


def _official_videos(content: Any, name: str) -> list[tuple[str, VideoAnnotation]]:
    """(split, video) of one official document, in its own order."""
    if not isinstance(content, dict) or not {"videos", "sentences"} <= content.keys():
        raise InputError(f'{name}: not MSR-VTT\'s layout, which has "videos" and "sentences"; give the official file')
    captions: dict[str, list[str]] = {}
    try:
        for sentence in sorted(content["sentences"], key=lambda s: s["sen_id"]):
            if not isinstance(sentence["caption"], str):
                raise TypeError(f"caption of {sentence['video_id']} is {sentence['caption']!r}")
            captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
        videos = [(v["split"], v["video_id"], int(v.get("category", 0))) for v in content["videos"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{name}: an entry differs from MSR-VTT's layout ({error!r}); give the official file"
        ) from error
    _refuse_strangers(videos, captions, name)
    return [(split, VideoAnnotation(video, category, tuple(captions[video]))) for split, video, category in videos]


def _refuse_strangers(videos: list[tuple[str, str, int]], captions: Mapping[str, list[str]], name: str) -> None:
    for split, video, _ in videos:
        if split not in SPLIT_FILES:
            raise InputError(f"{name}: {video} has the split {split!r}; MSR-VTT has {', '.join(SPLIT_FILES)}")
        if video not in captions:
            raise InputError(f"{name}: {video} has no captions; add one or take the video out")
    unknown = captions.keys() - {video for _, video, _ in videos}
    if unknown:
        raise InputError(f'{name}: captions for {min(unknown)}, which is not among "videos"; give the official file')


def _refuse_duplicates(video_ids: Iterable[str], where: object) -> None:
    seen: set[str] = set()
    for video_id in video_ids:
        if video_id in seen:
            raise InputError(f"{where}: {video_id} comes twice; give each video once")
        seen.add(video_id)


def _report(splits: Mapping[str, list[VideoAnnotation]], files: dict[str, str]) -> PrepareReport:
    flaws: dict[str, list[str]] = {"duplicate": [], "empty": [], "control_character": []}
    for video in (video for videos in splits.values() for video in videos):
        seen: set[str] = set()
        for caption in video.captions:
            for flaw in _flaws(caption, seen):
                flaws[flaw].append(f"{video.video_id}: {caption!r}")
            seen.add(caption)
    return PrepareReport(
        videos={split: len(splits[split]) for split in files},
        captions={split: sum(len(video.captions) for video in splits[split]) for split in files},
        files=files,
        duplicate_captions=len(flaws["duplicate"]),
        empty_captions=len(flaws["empty"]),
        control_character_captions=len(flaws["control_character"]),
        examples={flaw: found[0] for flaw, found in flaws.items() if found},
    )


def _flaws(caption: str, seen: set[str]) -> list[str]:
    found = ["duplicate"] if caption in seen else []
    found += ["empty"] if not caption.strip() else []
    return found + (["control_character"] if any(not c.isprintable() for c in caption) else [])


def _load_json(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an annotation file")
    return _parse(path.read_bytes(), str(path))


def _parse(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise InputError(f"{name}: not JSON ({error}); give an annotation file or MSR-VTT's zip") from error
