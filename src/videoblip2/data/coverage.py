"""Do annotations and features speak of the same videos?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from videoblip2.config import InputError
from videoblip2.data.annotations import read_annotations
from videoblip2.data.prepare import SPLIT_FILES
from videoblip2.data.questions import QUESTION_FILES, read_questions


@dataclass(frozen=True)
class Coverage:
    """videos: their number by annotation file. missing: those without features, by file. unannotated: the reverse."""

    videos: dict[str, int]
    missing: dict[str, list[str]]
    unannotated: list[str]

    @property
    def ok(self) -> bool:
        return not any(self.missing.values())


def compare_with_features(annotations: str | Path, feature_ids: Iterable[str]) -> Coverage:
    """Compare one annotation file, or all those of a folder, with the videos that have features.

    Raises `InputError` for a folder that holds no annotation file.
    """
    path = Path(annotations)
    names = (*SPLIT_FILES.values(), *QUESTION_FILES.values())
    files = [path / name for name in names if (path / name).is_file()] if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: holds none of {', '.join(names)}; make them with `vb2 data prepare`")
    wanted = {file.name: _video_ids(file) for file in files}
    have = set(feature_ids)
    annotated = {video for videos in wanted.values() for video in videos}
    return Coverage(
        videos={name: len(videos) for name, videos in wanted.items()},
        missing={name: [video for video in videos if video not in have] for name, videos in wanted.items()},
        unannotated=sorted(have - annotated),
    )


def _video_ids(file: Path) -> list[str]:
    read = read_questions(file) if file.stem.endswith("_qa") else read_annotations(file)
    return list(dict.fromkeys(entry.video_id for entry in read))
