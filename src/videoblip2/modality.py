"""The table of modalities: every kind of feature that a video can have.

To add one, add an entry to `MODALITIES` and, if the package computes it, an encoder to `features`. The name is a
folder of the feature store (`audio/ID.npy`), a part of the network (`audio_branch`, `proj_audio`) and a request tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: One video's features: float32 [rows, width] by modality. A missing modality has 0 rows, or no entry.
Features: TypeAlias = Mapping[str, "NDArray[np.float32]"]
#: Returns a video's features, as a feature store's `features` does.
FeatureReader: TypeAlias = Callable[[str], Features]


@dataclass(frozen=True)
class Modality:
    """One kind of feature, and how the model uses it."""

    name: str
    width: int  # unless the configuration sets another
    extracted: bool = False  # `vb2 features extract` computes it; False = the user supplies the arrays
    required: bool = False  # every video has at least one row; if False, 0 rows mean that it is missing
    upscaled: bool = False  # a linear layer first maps it to the width of the frame features


MODALITIES = {
    entry.name: entry
    for entry in (
        Modality("video", 768, extracted=True, required=True),
        Modality("audio", 512, extracted=True, upscaled=True),
    )
}


class ExplainedWord(NamedTuple):
    """A word of a caption, and by how many nats its log-probability falls without the sound and without the picture."""

    word: str
    sound: float
    picture: float

    @property
    def needs_sound(self) -> bool:
        """Whether it is less than half as likely without the sound."""
        return self.sound > log(2)

    @property
    def needs_picture(self) -> bool:
        """Whether it is less than half as likely without the picture."""
        return self.picture > log(2)


BOTH = "both"  # short for video and audio


def modality_names(setting: str | Sequence[str]) -> tuple[str, ...]:
    """`both`, one name or several → the names in the table's order. Raises ValueError for a name not in the table."""
    if setting == BOTH:
        return "video", "audio"
    chosen = (setting,) if isinstance(setting, str) else setting
    unknown = [name for name in chosen if name not in MODALITIES]
    if unknown or not chosen:
        what = f"{unknown[0]!r} is not a modality" if unknown else "no modality"
        raise ValueError(
            f"{what}; use {BOTH} or names from {', '.join(MODALITIES)}; VB2_PLUGINS names modules that add others"
        )
    return tuple(name for name in MODALITIES if name in chosen)


def modality_setting(names: Sequence[str]) -> str | tuple[str, ...]:
    """The shortest setting that means these names: `both`, a name, or the names in the table's order."""
    ordered = modality_names(names)
    if ordered == modality_names(BOTH):
        return BOTH
    return ordered[0] if len(ordered) == 1 else ordered


def modality_label(setting: str | Sequence[str]) -> str:
    """A setting as one word, for names and tags: `both`, `audio`, `video+audio+flow`."""
    return setting if isinstance(setting, str) else "+".join(setting)
