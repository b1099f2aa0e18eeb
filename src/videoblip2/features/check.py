"""Is a feature store fit to use? A report on every file of every video, and what training and captioning refuse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from videoblip2.config import ModelConfig
from videoblip2.errors import InputError
from videoblip2.features.store import FeatureStore
from videoblip2.provenance import ENCODERS, FeatureOrigin


@dataclass(frozen=True)
class CheckReport:
    """Counts, and video ids by finding; `ok` if every video asked for can be read."""

    videos: int
    frames: tuple[int, int]  # fewest and most per video
    audio_windows: tuple[int, int]
    silent: list[str]  # known from the manifest alone
    empty: list[str]  # an audio stream without samples; also from the manifest
    absent: list[str]
    missing: list[str]
    unusable: dict[str, str]  # wrong width, NaN, wrong type; with the reason
    unannotated: list[str]  # in the store, not asked for

    @property
    def ok(self) -> bool:
        return not self.missing and not self.unusable


def check_features(root: str | Path, video_ids: Iterable[str] | None = None) -> CheckReport:
    """Read the features of `video_ids` (None: of every video in the store) and report on them.

    Raises `InputError` only if `root` is not a feature store.
    """
    store = FeatureStore(root)
    wanted, present = dict.fromkeys(store.ids if video_ids is None else video_ids), set(store.ids)
    frames, windows, unusable = dict[str, int](), dict[str, int](), dict[str, str]()
    for video_id in filter(present.__contains__, wanted):
        try:
            features = store.features(video_id)
        except InputError as error:
            unusable[video_id] = str(error)
            continue
        frames[video_id], windows[video_id] = len(features["video"]), len(features.get("audio", ()))
    notes = store.manifest.videos if store.manifest else {}
    silent, empty = ([i for i in wanted if i in notes and notes[i].audio == kind] for kind in ("silent", "empty"))
    return CheckReport(
        videos=len(frames),
        frames=(min(frames.values(), default=0), max(frames.values(), default=0)),
        audio_windows=(min(windows.values(), default=0), max(windows.values(), default=0)),
        silent=silent,
        empty=empty,
        absent=[i for i in wanted if windows.get(i) == 0 and i not in empty],
        missing=[i for i in wanted if i not in present],
        unusable=unusable,
        unannotated=[i for i in store.ids if i not in wanted],
    )


def refuse_unnoted(store: FeatureStore, video_ids: Iterable[str]) -> None:
    """Raise `InputError` if an extracted store holds a video that its manifest lacks: which encoder made it?"""
    manifest = store.manifest
    if manifest is None or not manifest.known:
        return  # a user's own arrays
    if strange := [video_id for video_id in video_ids if video_id not in manifest.videos]:
        raise InputError(
            f"{store.root}: its manifest lacks {strange[0]} ({len(strange)} in all), whose features another "
            "encoder may have made; run `vb2 features extract` on them, or remove them"
        )


def refuse_other_widths(store: FeatureStore, model: ModelConfig) -> None:
    """Raise `InputError` if the features are not as wide as the configuration says."""
    for name in model.modality_names:
        if (found := store.widths[name]) != model.width(name):
            key = model.width_key(name)
            raise InputError(
                f"{store.root}: {name} features are {found} wide, {key}={model.width(name)}; "
                f"set {key}={found}, or use features of another encoder"
            )


def refuse_other_encoders(store: FeatureStore, trained_on: FeatureOrigin | None, by: str) -> None:
    """Raise `InputError` if checkpoint `by` was trained on features of other encoders than the store's.

    Nothing is refused if either does not record its encoders; frame rate and window length may differ.
    """
    stored = store.manifest.origin if store.manifest else None
    if not stored or not trained_on or "clip" not in stored.encoders or "clip" not in trained_on.encoders:
        return
    for name, has, had in (
        *((kind.upper(), stored.fingerprint(kind), trained_on.fingerprint(kind)) for kind in ENCODERS),
        *((key, getattr(stored.settings, key), getattr(trained_on.settings, key)) for key in ("output", "tokens")),
    ):
        if has != had:
            raise InputError(
                f"{store.root}: holds features of {name} {has}, {by} was trained on those of {had}; "
                "extract with the same encoders, or use another checkpoint"
            )
