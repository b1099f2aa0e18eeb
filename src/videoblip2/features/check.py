"""Is a feature store fit to use? A report on every file of every video, and what training and captioning refuse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from videoblip2.config import ModelConfig
from videoblip2.errors import InputError
from videoblip2.features.store import FeatureStore
from videoblip2.provenance import FeatureOrigin


@dataclass
class CheckReport:
    """Counts, and video ids by finding; `ok` if every video asked for can be read."""

    videos: int = 0
    frames: tuple[int, int] = (0, 0)  # fewest and most per video
    audio_windows: tuple[int, int] = (0, 0)
    silent: list[str] = field(default_factory=list)  # known from the manifest alone
    empty: list[str] = field(default_factory=list)  # an audio stream without a sample; also from the manifest
    absent: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)  # wrong width, NaN, wrong type; with the reason
    unannotated: list[str] = field(default_factory=list)  # in the store, not asked for

    @property
    def ok(self) -> bool:
        return not self.missing and not self.unusable


def check_features(root: str | Path, video_ids: Iterable[str] | None = None) -> CheckReport:
    """Read the features of `video_ids` (None: of every video in the store) and report on them.

    Raises `InputError` only if `root` is not a feature store.
    """
    store = FeatureStore(root)
    present = set(store.ids)
    wanted = list(store.ids if video_ids is None else video_ids)
    noted = {video_id: note.audio for video_id, note in store.manifest.videos.items()} if store.manifest else {}
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
        if not len(features["audio"]) and noted.get(video_id) != "empty":
            report.absent.append(video_id)
    report.silent, report.empty = ([i for i in wanted if noted.get(i) == kind] for kind in ("silent", "empty"))
    report.videos = len(frames)
    if frames:
        report.frames, report.audio_windows = (min(frames), max(frames)), (min(windows), max(windows))
    return report


def refuse_unnoted(store: FeatureStore, video_ids: Iterable[str]) -> None:
    """Raise `InputError` if an extracted store holds a video that its manifest lacks: which encoder made it?"""
    manifest = store.manifest
    if manifest is None or not manifest.known:
        return  # a user's own arrays
    if strange := [video_id for video_id in video_ids if video_id not in manifest.videos]:
        raise InputError(
            f"{store.root}: its manifest lacks {strange[0]} ({len(strange)} in all), whose features may be of another "
            "encoder; run `vb2 features extract` on them, or remove them"
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

    Nothing is refused if either does not know its encoders; frame rate and window length may differ.
    """
    stored = store.manifest.origin if store.manifest else None
    if not stored or not trained_on or "clip" not in stored.encoders or "clip" not in trained_on.encoders:
        return
    for name, has, had in (
        ("CLIP", stored.fingerprint("clip"), trained_on.fingerprint("clip")),
        ("CLAP", stored.fingerprint("clap"), trained_on.fingerprint("clap")),
        ("output", stored.settings.output, trained_on.settings.output),
        ("tokens", stored.settings.tokens, trained_on.settings.tokens),
    ):
        if has != had:
            raise InputError(
                f"{store.root}: holds features of {name} {has}, {by} was trained on those of {had}; "
                "extract with the same encoders, or use another checkpoint"
            )
