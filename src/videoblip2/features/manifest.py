"""The manifest of a feature store: encoders, settings, versions, and the source of each video.

Each run that writes to a store has a manifest of its own there, `manifest.json`, or `manifest.1-of-4.json` for a shard,
and locks it. Readers merge all manifests of a store, so parallel runs need no coordination.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, model_serializer

from videoblip2.errors import InputError, validated
from videoblip2.files import write_json
from videoblip2.provenance import ENCODERS, FeatureOrigin, Record

MAIN = "manifest.json"


class VideoNote(Record):
    """One extracted video. audio: one of `media_features.LEVELS`. sha256: of the file. at: Unix time.

    caveats: which parts of the file were skipped or changed.
    """

    frames: int | None = None
    audio_windows: int | None = None
    audio: str | None = None
    source: str = ""
    sha256: str = ""
    at: float = 0
    caveats: tuple[str, ...] = ()


class FeatureManifest(FeatureOrigin):
    """What the features of a store were made with, and from which videos. failed: video id → reason."""

    widths: Mapping[str, int] = Field(default_factory=dict)  # of each extracted modality
    dtype: str = "float32"
    sampling_rate: int | None = None
    versions: Mapping[str, str] = Field(default_factory=dict)
    imported_from: str | None = None
    videos: Mapping[str, VideoNote]
    failed: Mapping[str, str] = Field(default_factory=dict)

    @model_serializer
    def _to_json(self) -> dict[str, object]:
        names = self.model_fields_set - {*FeatureOrigin.model_fields, "videos"}
        rest = {name: getattr(self, name) for name in type(self).model_fields if name in names}
        notes = {video_id: note.model_dump(exclude_defaults=True) for video_id, note in self.videos.items()}
        return {**(self.origin.model_dump() if self.encoders else {}), **rest, "videos": notes}

    @property
    def origin(self) -> FeatureOrigin:
        """What the features were made with."""
        return FeatureOrigin(encoders=self.encoders, settings=self.settings)

    @classmethod
    def read(cls, root: Path) -> Self | None:
        """All manifests of a folder, merged; None if it has none.

        Raises InputError if one is malformed, or if two have different encoders or settings.
        """
        if root.is_file():
            raise InputError(f"{root}: is a packed file, which cannot grow; extract into a folder, and pack that")
        paths = [path for path in (root / MAIN, *sorted(root.glob("manifest.*-of-*.json"))) if path.is_file()]
        if not paths:
            return None
        manifests = [cls.parse(path.read_bytes(), path) for path in paths]
        first = manifests[0]
        for path, manifest in zip(paths, manifests, strict=True):
            if found := first.difference(manifest):
                where = f"{root}: {paths[0].name} and {path.name} differ, with {found}"
                raise InputError(f"{where}; extract into a folder for each")
        if len(manifests) == 1:
            return first
        notes = [entry for manifest in manifests for entry in manifest.videos.items()]
        videos = dict(sorted(notes, key=lambda entry: entry[1].at))  # the newest note of a video wins
        failed = {name: why for one in manifests for name, why in one.failed.items() if name not in videos}
        return first.model_copy(update={"videos": videos, "failed": failed})

    @classmethod
    def parse(cls, text: bytes, source: object, remedy: str = "delete it and extract again") -> Self:
        """Parse the content of a manifest file. Raises InputError if it is malformed."""
        try:
            return validated(cls, json.loads(text))
        except ValueError as error:
            raise InputError(f"{source}: not a manifest ({error}); {remedy}") from error

    def write(self, root: Path, name: str = MAIN) -> None:
        """Write the manifest to a store, atomically."""
        write_json(root / name, self.model_dump(), indent=1)

    def difference(self, other: FeatureManifest) -> str:
        """The first difference that one store may not have, such as "fps 4.0, not 2.0"; empty if there is none."""
        mine, others = (
            {f"a {kind} of fingerprint": manifest.fingerprint(kind) for kind in ENCODERS}
            | dict(manifest.settings)
            | {"dtype": manifest.dtype}
            for manifest in (self, other)
        )
        return next((f"{name} {mine[name]}, not {others[name]}" for name in mine if mine[name] != others[name]), "")
