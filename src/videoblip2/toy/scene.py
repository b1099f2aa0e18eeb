"""What one toy video shows and sounds like, and which combinations each split may show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "bar", "triangle", "cross", "ring")
MOTIONS = ("left", "right", "up", "down", "orbit", "grow", "shrink", "bounce", "still")
SOUNDS = ("high", "low", "beeps", "hiss", "siren", "ticking")
SILENT, ABSENT = "silent", "absent"  # a track of zeros, and a file without an audio stream
BACKGROUNDS = ("plain", "striped", "spotted")

SECOND_OBJECT_SHARE = 0.15


@dataclass(frozen=True)
class Scene:
    """One video. Lengths are in parts of the frame's side, times in seconds."""

    video_id: str
    split: str
    colour: str
    shape: str
    motion: str
    sound: str
    loud: bool
    background: str
    size: float  # radius of the shape
    speed: float  # 1: the usual speed; see `render.path_at`
    start: tuple[float, float]  # where the path is centred, x and y
    duration: float
    second: tuple[str, str] | None  # colour and shape of a smaller object that stays still
    seed: int  # of the noise in picture and sound, and of the captions


def split_of(index: int, num_videos: int) -> str:
    """The first 70 % of the videos are for training, the next 10 % for validation, the rest for testing."""
    if index < round(0.7 * num_videos):
        return "train"
    return "validate" if index < round(0.8 * num_videos) else "test"


def combination_split(colour: str, shape: str, motion: str) -> str:
    """The one split whose videos may show this combination.

    A Latin-square rule: three of the ten residues are held out (two for testing, one for validation), so that every
    colour, every shape, every motion and every pair of them is seen in training, and no tested triple is.
    """
    residue = (COLOURS.index(colour) + SHAPES.index(shape) + MOTIONS.index(motion)) % 10
    return {4: "test", 7: "validate", 9: "test"}.get(residue, "train")


def make_scene(seed: int, index: int, num_videos: int) -> Scene:
    """The scene of video `index` in a world of `num_videos`: a pure function of its arguments."""
    rng = np.random.default_rng([seed, index])
    split = split_of(index, num_videos)
    colour, shape, motion = _combination(rng, split)
    return Scene(
        video_id=f"video{index}",
        split=split,
        colour=colour,
        shape=shape,
        motion=motion,
        sound=_sound(seed, index),
        loud=bool(rng.random() < 0.5),
        background=str(rng.choice(BACKGROUNDS)),
        size=float(rng.uniform(0.2, 0.28)),
        speed=float(rng.choice([0.7, 1.3]) + rng.uniform(-0.1, 0.1)),
        start=(float(rng.uniform(0.42, 0.58)), float(rng.uniform(0.42, 0.58))),
        duration=float(rng.choice([2.0, 2.5, 3.0])),
        second=_second(rng, colour, shape),
        seed=int(rng.integers(2**31)),
    )


def _combination(rng: np.random.Generator, split: str) -> tuple[str, str, str]:
    while True:
        drawn = str(rng.choice(COLOURS)), str(rng.choice(SHAPES)), str(rng.choice(MOTIONS))
        if combination_split(*drawn) == split:
            return drawn


def _sound(seed: int, index: int) -> str:
    """Dealt from a shuffled deck of ten: each sound once or twice, one silent and one absent among ten videos."""
    rng = np.random.default_rng([seed, index // 10, 10])
    deck = [*SOUNDS, *rng.choice(SOUNDS, size=2, replace=False), SILENT, ABSENT]
    return str(rng.permutation(deck)[index % 10])


def _second(rng: np.random.Generator, colour: str, shape: str) -> tuple[str, str] | None:
    if rng.random() >= SECOND_OBJECT_SHARE:
        return None
    others = [c for c in COLOURS if c != colour], [s for s in SHAPES if s != shape]
    return str(rng.choice(others[0])), str(rng.choice(others[1]))
