"""What extraction notes of a store: encoders, settings, versions, and each video's source.

A run that writes to a store has a manifest of its own there, `manifest.json`, or `manifest.1-of-4.json` for a shard. It
alone writes that file, which a lock sees to, and always as a whole. Readers take all manifests of a store as one. So
runs side by side have nothing to agree on, and none can lose what another noted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from videoblip2.config import InputError
from videoblip2.files import atomic
from videoblip2.provenance import FeatureOrigin

MAIN = "manifest.json"
#: What has to be alike within one store, and what older manifests, which do not say, were made with.
SETTINGS = {
    "fps": None,
    "max_frames": None,
    "window_seconds": None,
    "frames": None,
    "output": "projected",
    "tokens": "pooled",
}


def read_manifest(root: Path) -> dict[str, Any] | None:
    """All manifests of a folder as one, None where there is none.

    Raises `InputError` for an unreadable one, and where two were made with different encoders or settings.
    """
    if root.is_file():
        raise InputError(f"{root}: a packed file, which does not grow; extract into a folder and pack that again")
    paths = [path for path in (root / MAIN, *sorted(root.glob("manifest.*-of-*.json"))) if path.is_file()]
    if not paths:
        return None
    merged = read_one(paths[0])
    for path in paths[1:]:
        other = read_one(path)
        if found := difference(merged, paths[0], other, path):
            what, first, second = found
            raise InputError(
                f"{root}: holds features of two kinds, {what} {first} in {paths[0].name} and {second} in {path.name}; "
                "extract into one folder for each"
            )
        merged["videos"] |= {
            name: note for name, note in other["videos"].items() if _at(note) >= _at(merged["videos"].get(name, {}))
        }
        merged["failed"] = merged.get("failed", {}) | other.get("failed", {})
    if len(paths) > 1:  # what failed in one run may have been done in another
        merged["failed"] = {name: why for name, why in merged["failed"].items() if name not in merged["videos"]}
    return merged


def read_one(path: Path) -> dict[str, Any]:
    """One manifest file. Raises `InputError` if it is unreadable."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete it and extract again") from error
    if not isinstance(manifest, dict) or "videos" not in manifest:
        raise InputError(f'{path}: has no "videos"; delete it and extract again')
    return manifest


def write_manifest(root: Path, manifest: dict[str, Any], name: str = MAIN) -> None:
    """Write a manifest, atomically."""
    with atomic(root / name) as file:
        file.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode())


def difference(
    first: dict[str, Any], first_path: Path, second: dict[str, Any], second_path: Path
) -> tuple[str, Any, Any] | None:
    """(name, first's value, second's value) of something that has to be alike and is not; None where all is."""
    for one, other in zip(_choices(first, first_path), _choices(second, second_path), strict=True):
        if one[1] != other[1]:
            return one[0], one[1], other[1]
    return None


def refuse_unnoted(root: Path, manifest: dict[str, Any] | None, video_ids: Iterable[str]) -> None:
    """Raise `InputError` where a store that extraction made holds a video that it did not: of which encoder is it?"""
    if not manifest or "clip" not in manifest:
        return  # a user's own arrays: nothing is known of any
    if strange := [video_id for video_id in video_ids if video_id not in manifest["videos"]]:
        raise InputError(
            f"{root}: its manifest does not note {strange[0]} ({len(strange)} such), whose features may be of another "
            "encoder; run `vb2 features extract` for them, or take them out"
        )


def noted_widths(manifest: dict[str, Any] | None) -> dict[str, int]:
    """Width of each modality that was extracted; older manifests, which do not say, are of CLIP 768 and CLAP 512."""
    if not manifest or "clip" not in manifest:
        return {}
    widths: dict[str, int] = manifest.get("widths", {"video": 768, "audio": 512})
    return widths


ENCODERS = ("CLIP", "CLAP", "output", "tokens")


def refuse_other_encoders(
    root: Path, manifest: dict[str, Any] | None, trained_on: FeatureOrigin | None, by: str
) -> None:
    """Raise `InputError` where checkpoint `by` was trained on features of other encoders than a store's.

    Nothing is said where one of the two does not know its encoders, nor about rate and length of what was encoded.
    """
    stored = FeatureOrigin.of_manifest(manifest)
    if not stored or not trained_on or "clip" not in stored.encoders or "clip" not in trained_on.encoders:
        return
    for name, has, had in zip(ENCODERS, _encoders(stored), _encoders(trained_on), strict=True):
        if has != had:
            raise InputError(
                f"{root}: holds features of {name} {has}, {by} was trained on those of {had}; "
                "extract with the same encoders, or take another checkpoint"
            )


def _encoders(origin: FeatureOrigin) -> list[object]:
    marks = [origin.fingerprint(kind) for kind in ("clip", "clap")]
    return [*marks, origin.settings.output, origin.settings.tokens]


def _choices(manifest: dict[str, Any], path: Path) -> list[tuple[str, Any]]:
    """(name, value) of all that has to be alike within one store."""
    try:
        encoders = [(f"a {kind} of fingerprint", manifest[kind]["fingerprint"]) for kind in ("clip", "clap")]
        settings = [(key, manifest["settings"].get(key, usual)) for key, usual in SETTINGS.items()]
        return [*encoders, *settings, ("dtype", manifest.get("dtype", "float32"))]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: lacks {error}; give another --out folder") from error


def _at(note: dict[str, Any]) -> float:
    return float(note.get("at", 0))
