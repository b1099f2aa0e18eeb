"""The toy world: short videos with sound, captions in MSR-VTT's files and questions in MSRVTT-QA's, from a seed.

A coloured shape moves over a dark background, with a sound, with silence or without an audio stream. A combination of
colour, shape and motion belongs to exactly one split (`scene.combination_split`), so every word of a test video occurs
in training, but its combination does not. Each caption names the whole combination (`language`), so no caption of a
test video occurs in training either.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoblip2.config import InputError
from videoblip2.files import write_json
from videoblip2.toy.language import make_captions, question_entries
from videoblip2.toy.render import FPS, RATE, render_audio, render_frames
from videoblip2.toy.scene import ABSENT, MOTIONS, SILENT, Scene, make_scene

WriteVideo = Callable[..., None]  # (path, frames, fps, audio, rate), as features.media.write_video
Progress = Callable[[Iterable[Scene], int, str], Iterable[Scene]]

MIN_VIDEOS = 10  # below, a split would be empty


@dataclass(frozen=True)
class ToyWorld:
    """The files of a toy world, and what they contain."""

    videos: Path
    annotations: tuple[Path, Path]  # train and validate; test
    questions: tuple[Path, Path, Path]  # train, validate, test
    counts: dict[str, int]  # videos by split
    audio: dict[str, int]  # videos by "present", "silent", "absent"


def write_toy_world(
    out: str | Path, num_videos: int, seed: int, write_video: WriteVideo, progress: Progress | None = None
) -> ToyWorld:
    """Write `num_videos` mp4 files, their annotations and questions to `out`; the same seed gives the same world.

    `write_video` is `features.media.write_video`. An interrupted call can be repeated: videos that are there are kept.
    Raises `InputError` for fewer than 10 videos and for a folder that holds another world.
    """
    out = Path(out)
    annotations = write_toy_annotations(out, num_videos, seed)
    scenes = make_scenes(num_videos, seed)
    todo = [scene for scene in scenes if not _file(out, scene).exists()]
    for scene in progress(todo, len(todo), "rendering") if progress else todo:
        write_video(_file(out, scene), render_frames(scene), FPS, render_audio(scene), RATE)
    return ToyWorld(
        videos=out / "videos",
        annotations=annotations,
        questions=_question_files(out),
        counts=dict(Counter(scene.split for scene in scenes)),
        audio=dict(Counter(s.sound if s.sound in (SILENT, ABSENT) else "present" for s in scenes)),
    )


def write_toy_annotations(out: str | Path, num_videos: int, seed: int) -> tuple[Path, Path]:
    """Write the world's two annotation files (train and validate, test) and its questions only."""
    scenes = make_scenes(num_videos, seed)
    written = _write_annotations(Path(out), scenes)
    first_id = 0
    for path, split in zip(_question_files(Path(out)), ("train", "validate", "test"), strict=True):
        entries = question_entries([scene for scene in scenes if scene.split == split], first_id)
        write_json(path, entries)
        first_id += len(entries)
    return written


def make_scenes(num_videos: int, seed: int) -> list[Scene]:
    """What each video of a world shows. Raises `InputError` for fewer than 10 videos."""
    if num_videos < MIN_VIDEOS:
        raise InputError(f"--videos {num_videos}: too few for three splits; give {MIN_VIDEOS} or more")
    return [make_scene(seed, index, num_videos) for index in range(num_videos)]


def _file(out: Path, scene: Scene) -> Path:
    return out / "videos" / f"{scene.video_id}.mp4"


def _question_files(out: Path) -> tuple[Path, Path, Path]:
    return out / "train_qa.json", out / "val_qa.json", out / "test_qa.json"


def _write_annotations(out: Path, scenes: list[Scene]) -> tuple[Path, Path]:
    test = [scene for scene in scenes if scene.split == "test"]
    rest = [scene for scene in scenes if scene.split != "test"]
    documents = {
        out / "toy_train_val.json": _document(rest, first_sentence=0),
        out / "toy_test.json": _document(test, first_sentence=sum(len(make_captions(scene)) for scene in rest)),
    }
    for path, document in documents.items():
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != document:
            raise InputError(f"{path}: {out} contains another toy world; choose another folder or delete this one")
    for path, document in documents.items():
        write_json(path, document)
    first, second = documents
    return first, second


def _document(scenes: list[Scene], first_sentence: int) -> dict[str, Any]:
    """MSR-VTT's layout: the videos, and the sentences numbered from `first_sentence`; the motion is the category."""
    videos = [
        {
            "video_id": scene.video_id,
            "id": int(scene.video_id.removeprefix("video")),
            "category": MOTIONS.index(scene.motion),
            "split": scene.split,
            "url": "",
            "start time": 0.0,
            "end time": scene.duration,
        }
        for scene in scenes
    ]
    captions = [(scene.video_id, caption) for scene in scenes for caption in make_captions(scene)]
    sentences = [
        {"sen_id": first_sentence + i, "video_id": video_id, "caption": caption}
        for i, (video_id, caption) in enumerate(captions)
    ]
    return {"info": {"description": "VideoBLIP2 toy world"}, "videos": videos, "sentences": sentences}
