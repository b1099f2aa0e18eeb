"""The picture and sound of one toy video, from distance functions and sums of waves; and the rule for splits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "bar", "triangle", "cross", "ring")
MOTIONS = ("left", "right", "up", "down", "orbit", "grow", "shrink", "bounce", "still")
SOUNDS = ("high", "low", "beeps", "hiss", "siren", "ticking")
SILENT, ABSENT = "silent", "absent"  # a track of zeros, and a file without an audio stream
BACKGROUNDS = ("plain", "striped", "spotted")

SIDE, FPS, RATE = 64, 8, 16_000  # pixels, frames per second, Hz
RGB = {
    **{"red": (220, 40, 40), "green": (40, 190, 70), "blue": (50, 90, 230)},
    **{"yellow": (235, 215, 50), "purple": (160, 60, 200), "white": (240, 240, 240)},
}
COLORS = tuple(RGB)
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x and y
Grid = NDArray[np.floating[Any]]
Wave = NDArray[np.float64]
WaveMaker = Callable[[Wave, np.random.Generator], Wave]
_CENTRES = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
GRID = np.meshgrid(_CENTRES, _CENTRES)  # x and y of the pixels


@dataclass(frozen=True)
class Scene:
    """One video. Lengths are fractions of the frame's side, times are in seconds."""

    video_id: str
    split: str
    color: str
    shape: str
    motion: str
    sound: str
    loud: bool
    background: str
    size: float  # radius of the shape
    speed: float  # 1: the usual speed; see `path_at`
    start: tuple[float, float]  # center of the path, x and y
    duration: float
    second: tuple[str, str] | None  # color and shape of a smaller, still object
    seed: int  # for the noise in picture and sound, and for the captions

    @property
    def audio(self) -> str:
        """ "present", "silent" or "absent"."""
        return self.sound if self.sound in (SILENT, ABSENT) else "present"


def combination_split(color: str, shape: str, motion: str) -> str:
    """The one split whose videos may show this combination.

    A Latin-square rule: three of the ten residues are held out (two for testing, one for validation), so that every
    color, every shape, every motion and every pair of them is seen in training, and no tested triple is.
    """
    residue = (COLORS.index(color) + SHAPES.index(shape) + MOTIONS.index(motion)) % 10
    return {4: "test", 7: "validate", 9: "test"}.get(residue, "train")


def make_scene(seed: int, index: int, num_videos: int) -> Scene:
    """The scene of video `index` in a world of `num_videos`: a pure function of its arguments.

    The first 70 % of the videos are for training, the next 10 % for validation, the rest for testing. Of ten
    videos in a row, in random order, one is silent, one has no audio, and each sound occurs once or twice.
    """
    rng = np.random.default_rng([seed, index])
    ends = {"train": round(0.7 * num_videos), "validate": round(0.8 * num_videos)}
    split = next((name for name, end in ends.items() if index < end), "test")
    while True:
        color, shape, motion = (str(rng.choice(names)) for names in (COLORS, SHAPES, MOTIONS))
        if combination_split(color, shape, motion) == split:
            break
    dealer = np.random.default_rng([seed, index // 10, 10])
    deck = dealer.permutation([*SOUNDS, *dealer.choice(SOUNDS, size=2, replace=False), SILENT, ABSENT])
    return Scene(
        video_id=f"video{index}",
        split=split,
        color=color,
        shape=shape,
        motion=motion,
        sound=str(deck[index % 10]),
        loud=bool(rng.random() < 0.5),
        background=str(rng.choice(BACKGROUNDS)),
        size=float(rng.uniform(0.2, 0.28)),
        speed=float(rng.choice([0.7, 1.3]) + rng.uniform(-0.1, 0.1)),
        start=(float(rng.uniform(0.42, 0.58)), float(rng.uniform(0.42, 0.58))),
        duration=float(rng.choice([2.0, 2.5, 3.0])),
        second=_second(rng, color, shape),
        seed=int(rng.integers(2**31)),
    )


def _second(rng: np.random.Generator, color: str, shape: str) -> tuple[str, str] | None:
    if rng.random() >= 0.15:
        return None
    return str(rng.choice([c for c in COLORS if c != color])), str(rng.choice([s for s in SHAPES if s != shape]))


def render_frames(scene: Scene) -> NDArray[np.uint8]:
    """Frames, uint8 [F, 64, 64, 3] at 8 frames per second."""
    rng = np.random.default_rng([scene.seed, 0])
    backdrop = _backdrop(scene, rng)
    frames = []
    for time in np.arange(round(scene.duration * FPS)) / FPS:
        x, y, size = path_at(scene, float(time))
        canvas = _paint(backdrop, scene.shape, RGB[scene.color], x, y, size)
        frames.append(canvas + rng.normal(0, 3, canvas.shape))
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def render_audio(scene: Scene) -> NDArray[np.float32] | None:
    """Sound, float32 [N] mono at 16 kHz; zeros for a silent scene, None for one without an audio stream."""
    if scene.sound == ABSENT:
        return None
    rng = np.random.default_rng([scene.seed, 1])
    time = np.arange(round(scene.duration * RATE)) / RATE
    if scene.sound == SILENT:
        return np.zeros(len(time), np.float32)
    level = rng.uniform(0.6, 0.9) if scene.loud else rng.uniform(0.04, 0.08)
    wave = _WAVES[scene.sound](time, rng) * level + rng.normal(0, 0.001, len(time))
    return wave.astype(np.float32)


def path_at(scene: Scene, time: float) -> tuple[float, float, float]:
    """Center x, y and radius of the moving shape, as fractions of the frame's side (y points down)."""
    (x, y), size = scene.start, scene.size
    done = scene.speed * (time / scene.duration - 0.5)  # -0.5 … 0.5 at speed 1
    if scene.motion in STEPS:
        x, y = (at + 0.55 * done * step for at, step in zip((x, y), STEPS[scene.motion], strict=True))
    elif scene.motion == "orbit":
        angle = 2 * np.pi * (0.5 * scene.speed * time + scene.seed % 8 / 8)
        x, y = x + 0.22 * float(np.cos(angle)), y + 0.22 * float(np.sin(angle))
    elif scene.motion in ("grow", "shrink"):
        size *= float(np.exp(1.1 * done * (1 if scene.motion == "grow" else -1)))
    elif scene.motion == "bounce":
        y += 0.22 - 0.44 * abs(float(np.sin(np.pi * 0.9 * scene.speed * time)))
    return x, y, size


def _backdrop(scene: Scene, rng: np.random.Generator) -> Grid:
    """A dark, tinted background, plain, striped or spotted, with the still second object."""
    tint = rng.uniform(25, 60, 3).astype(np.float32)
    canvas = np.broadcast_to(tint, (SIDE, SIDE, 3)).copy()
    xs, ys = GRID
    if scene.background == "striped":
        canvas += 22 * (np.sin((xs + ys * rng.choice([-1, 0, 1])) * 2 * np.pi * 6) > 0)[..., None]
    elif scene.background == "spotted":
        dots = (np.sin(xs * 2 * np.pi * 5) * np.sin(ys * 2 * np.pi * 5)) > 0.55
        canvas += 30 * dots[..., None]
    if scene.second is not None:
        color, shape = scene.second
        x, y = rng.choice([0.13, 0.87], size=2)
        canvas = _paint(canvas, shape, RGB[color], float(x), float(y), 0.09)
    return canvas


def _paint(canvas: Grid, shape: str, color: tuple[int, int, int], x: float, y: float, size: float) -> Grid:
    xs, ys = GRID
    distance = _DISTANCES[shape]((xs - x) / size, (ys - y) / size) * size * SIDE  # pixels; negative inside
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    painted: Grid = canvas * (1 - cover) + np.array(color, np.float32) * cover
    return painted


def _cross(x: Grid, y: Grid) -> Grid:
    along, across = np.abs(x + y) * 0.707, np.abs(x - y) * 0.707
    return np.maximum(np.minimum(along, across) - 0.22, np.maximum(along, across) - 1.15)


_DISTANCES: dict[str, Callable[[Grid, Grid], Grid]] = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "bar": lambda x, y: np.maximum(np.abs(x) - 1.1, np.abs(y) - 0.4),
    "triangle": lambda x, y: np.maximum(np.abs(x) * 0.866 - y * 0.5, y) - 0.55,
    "cross": _cross,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.8) - 0.22,
}


def _tone(low: float, high: float) -> WaveMaker:
    return lambda time, rng: np.sin(2 * np.pi * rng.uniform(low, high) * time)


def _beeps(time: Wave, rng: np.random.Generator) -> Wave:
    period = rng.uniform(0.25, 0.4)
    gate = (time + rng.uniform(0, period)) % period < 0.45 * period
    return np.sin(2 * np.pi * rng.uniform(800, 1200) * time) * gate


def _siren(time: Wave, rng: np.random.Generator) -> Wave:
    period, low = rng.uniform(0.8, 1.2), rng.uniform(400, 500)
    within = (time + rng.uniform(0, period)) % period / period  # each sweep rises by two octaves
    return np.sin(2 * np.pi * np.cumsum(low * 4**within) / RATE)


def _ticking(time: Wave, rng: np.random.Generator) -> Wave:
    period = rng.uniform(0.2, 0.33)
    since = (time + rng.uniform(0, period)) % period
    return np.exp(-since / 0.004) * rng.normal(0, 1, len(time))


_WAVES: dict[str, WaveMaker] = {
    "high": _tone(1900, 2600),
    "low": _tone(110, 200),
    "beeps": _beeps,
    "hiss": lambda time, rng: rng.normal(0, 0.3, len(time)),
    "siren": _siren,
    "ticking": _ticking,
}
