"""provenance.json of a checkpoint: what wrote it, how it was trained, on what data and features, and from which parent.

The file states its format; any other format is refused. Only this module reads and writes the file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from videoblip2 import __version__
from videoblip2.errors import InputError, refused, validated
from videoblip2.files import write_json

FILE = "provenance.json"
FORMAT = 2
ENCODERS = ("clip", "clap")
#: How the toy world's annotations describe themselves.
TOY = "VideoBLIP2 toy world"


class Record(BaseModel):
    """Frozen; fields that a later version added are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class EncoderIdentity(Record):
    """A frozen encoder. revision: commit in its hub repository. fingerprint: digest of weights and preprocessing."""

    name: str = ""
    revision: str | None = None
    fingerprint: str | None = None


class FeatureSampling(Record):
    """How videos were cut into frames and audio windows; see `features.media_features`. None = not recorded."""

    fps: float | None = None
    max_frames: int | None = None
    window_seconds: float | None = None
    frames: int | None = None
    output: str = "projected"
    tokens: str = "pooled"

    @property
    def recorded(self) -> dict[str, float | int | str | None]:
        """The fields that the file has."""
        return self.model_dump(exclude_unset=True)


class FeatureOrigin(Record):
    """What features were made with: the encoders by kind (`clip`, `clap`), and how videos were sampled.

    As JSON, encoders and `settings` are keys of one object, as in a feature store's manifest.
    """

    encoders: Mapping[str, EncoderIdentity] = Field(default_factory=dict)
    settings: FeatureSampling = FeatureSampling()

    @model_validator(mode="before")
    @classmethod
    def _from_json(cls, content: object) -> object:
        if not isinstance(content, Mapping) or "encoders" in content:
            return content
        encoders = {kind: content[kind] for kind in ENCODERS if content.get(kind)}
        return {**content, "encoders": encoders, "settings": content.get("settings") or {}}

    @model_serializer
    def _to_json(self) -> dict[str, object]:
        encoders = {kind: encoder.model_dump(exclude_none=True) for kind, encoder in self.encoders.items()}
        return {**encoders, "settings": self.settings.recorded}

    def fingerprint(self, kind: str) -> str | None:
        """The fingerprint of an encoder; None if it is not recorded."""
        return self.encoders[kind].fingerprint if kind in self.encoders else None

    def stored_in(self, folder: Path, given: Mapping[str, str | None] | None = None) -> Self:
        """The same with the current places of the encoders, for a checkpoint in `folder`.

        The place of an encoder is the one `given`; else a copy in `folder`/encoders, as in a package; else the recorded
        path; else, in a project that was moved, the end of that path below a parent of `folder`.
        """
        found = {}
        for kind, encoder in self.encoders.items():
            path, chosen = Path(encoder.name), (given or {}).get(kind)
            ends = [Path(*path.parts[start:]) for start in range(1, len(path.parts) - 1)] if path.is_absolute() else []
            moved = (parent / end for end in ends for parent in folder.resolve().parents)
            places = (folder / "encoders" / kind, path, *moved)
            name = chosen or next((str(place) for place in places if place.is_dir()), encoder.name)
            found[kind] = encoder.model_copy(update={"name": name, **({"revision": None} if chosen else {})})
        return self.model_copy(update={"encoders": found})


class Provenance(Record):
    """Where a checkpoint came from; a field is None or empty if that is not recorded.

    revision: `git.commit` and `git.dirty` of the source. parent: MODEL as `train.start_from` named it, and its
    permanent names: `parent_run_id`, `parent_version`. data: split → digest of its annotations and features.
    descriptions: those in the annotation files. kinds: what it was trained on so far, `captions` and `answers`.
    gained: the gain over its parent on the validation split, and its cost.
    """

    format: int = FORMAT
    written_by: str = ""
    stage: str | None = None
    name: str | None = None
    run_id: str | None = None
    step: int | None = None
    revision: Mapping[str, str] = Field(default_factory=dict)
    parent: str | None = None
    parent_run_id: str | None = None
    parent_version: str | None = None
    data: Mapping[str, str] = Field(default_factory=dict)
    features: FeatureOrigin | None = None
    descriptions: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    gained: str = ""

    @property
    def warning(self) -> str:
        """What a user of this checkpoint must know first; empty if nothing."""
        toy = "trained on the toy world only: it knows colored shapes and some sounds; real videos get wrong captions"
        return toy if self.descriptions == (TOY,) else ""

    @classmethod
    def read(cls, folder: Path, optional: bool = False) -> Self:
        """Read provenance.json; `optional`: an empty record if there is none. Raises InputError if it is malformed."""
        path, damaged, remedy = folder / FILE, f"checkpoint {folder}: {FILE} is damaged", "train or copy it again"
        if not path.is_file():
            if optional:
                return cls()
            raise InputError(f"checkpoint {folder}: no {FILE}; give a folder that `vb2 ce` or `vb2 scst` wrote")
        with refused(damaged, remedy, ValueError, TypeError):
            content = dict(json.loads(path.read_text(encoding="utf-8")))
        if (found := content.get("format", 0)) != FORMAT:
            writer = content.get("written_by") or "an unknown version"
            readable = f"this is videoblip2 {__version__}, which reads format {FORMAT}"
            remedy = "train again" if isinstance(found, int) and found < FORMAT else "update videoblip2"
            raise InputError(f"checkpoint {folder}: format {found}, written by {writer}; {readable}: {remedy}")
        return validated(cls, content, f"{damaged}; {remedy}")

    def write(self, folder: Path) -> None:
        """Write provenance.json to a checkpoint folder, in this version's format."""
        stamped = self.model_copy(update={"format": FORMAT, "written_by": f"videoblip2 {__version__}"})
        write_json(folder / FILE, stamped.model_dump(mode="json"))
