"""Is a feature store fit to train on? Every file of every video, and what is missing or silent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from videoblip2.config import InputError
from videoblip2.features.store import FeatureStore


@dataclass
class CheckReport:
    """Counts, and video ids by finding; `ok` where each video that was asked for can be read."""

    videos: int = 0
    frames: tuple[int, int] = (0, 0)  # least and most to a video
    audio_windows: tuple[int, int] = (0, 0)
    silent: list[str] = field(default_factory=list)  # known from the manifest alone
    empty: list[str] = field(default_factory=list)  # an audio stream without a sample; from the manifest as well
    absent: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)  # wrong width, NaN, wrong type; with the reason
    unannotated: list[str] = field(default_factory=list)  # in the store, not asked for

    @property
    def ok(self) -> bool:
        return not self.missing and not self.unusable


def check_features(root: str | Path, video_ids: Iterable[str] | None = None) -> CheckReport:
    """Read the features of `video_ids` (None: of every video in the store) and report on them.

    Raises `InputError` only where `root` is no feature store at all.
    """
    store = FeatureStore(root)
    present = set(store.ids)
    wanted = list(store.ids if video_ids is None else video_ids)
    report = CheckReport(unannotated=[i for i in store.ids if video_ids is not None and i not in set(wanted)])
    frames, windows = [], []
    for video_id in wanted:
        if video_id not in present:
            report.missing.append(video_id)
            continue
        try:
            features = store.features(video_id)
        except InputError as error:
            report.unusable[video_id] = str(error)
            continue
        frames.append(len(features["video"]))
        windows.append(len(features["audio"]))
        if not len(features["audio"]) and _noted(store, video_id) != "empty":
            report.absent.append(video_id)
    report.silent, report.empty = ([i for i in wanted if _noted(store, i) == kind] for kind in ("silent", "empty"))
    report.videos = len(frames)
    report.frames, report.audio_windows = _range(frames), _range(windows)
    return report


def _noted(store: FeatureStore, video_id: str) -> str | None:
    audio: str | None = (store.manifest or {}).get("videos", {}).get(video_id, {}).get("audio")
    return audio


def _range(counts: list[int]) -> tuple[int, int]:
    return (min(counts), max(counts)) if counts else (0, 0)
