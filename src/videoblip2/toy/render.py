"""Pictures and sound of a toy scene: signed distances for the shapes, sums of waves for the sounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoblip2.toy.scene import ABSENT, SILENT, Scene

SIDE = 64  # pixels
FPS = 8
RATE = 16_000  # Hz

RGB = {
    "red": (220, 40, 40),
    "green": (40, 190, 70),
    "blue": (50, 90, 230),
    "yellow": (235, 215, 50),
    "purple": (160, 60, 200),
    "white": (240, 240, 240),
}
Grid = NDArray[np.floating[Any]]


def render_frames(scene: Scene) -> NDArray[np.uint8]:
    """-> uint8 [F, 64, 64, 3] at 8 frames a second."""
    rng = np.random.default_rng([scene.seed, 0])
    backdrop = _backdrop(scene, rng)
    frames = []
    for time in np.arange(round(scene.duration * FPS)) / FPS:
        x, y, size = path_at(scene, float(time))
        canvas = _paint(backdrop, scene.shape, RGB[scene.colour], x, y, size)
        frames.append(canvas + rng.normal(0, 3, canvas.shape))
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def render_audio(scene: Scene) -> NDArray[np.float32] | None:
    """-> float32 [N] mono at 16 kHz; zeros for a silent scene, None for one without an audio stream."""
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
    """Centre x, y and radius of the moving shape, in parts of the frame's side (y points down)."""
    (x, y), size = scene.start, scene.size
    done = scene.speed * (time / scene.duration - 0.5)  # -0.5 … 0.5 at speed 1
    if scene.motion in ("left", "right"):
        x += 0.55 * done * (1 if scene.motion == "right" else -1)
    elif scene.motion in ("up", "down"):
        y += 0.55 * done * (1 if scene.motion == "down" else -1)
    elif scene.motion == "orbit":
        angle = 2 * np.pi * (0.5 * scene.speed * time + scene.seed % 8 / 8)
        x, y = x + 0.22 * float(np.cos(angle)), y + 0.22 * float(np.sin(angle))
    elif scene.motion in ("grow", "shrink"):
        size *= float(np.exp(1.1 * done * (1 if scene.motion == "grow" else -1)))
    elif scene.motion == "bounce":
        y += 0.22 - 0.44 * abs(float(np.sin(np.pi * 0.9 * scene.speed * time)))
    return x, y, size


def _backdrop(scene: Scene, rng: np.random.Generator) -> Grid:
    """Dark and tinted, plain, striped or spotted, with the second object, which does not move."""
    tint = rng.uniform(25, 60, 3).astype(np.float32)
    canvas = np.broadcast_to(tint, (SIDE, SIDE, 3)).copy()
    xs, ys = _grid()
    if scene.background == "striped":
        canvas += 22 * (np.sin((xs + ys * rng.choice([-1, 0, 1])) * 2 * np.pi * 6) > 0)[..., None]
    elif scene.background == "spotted":
        dots = (np.sin(xs * 2 * np.pi * 5) * np.sin(ys * 2 * np.pi * 5)) > 0.55
        canvas += 30 * dots[..., None]
    if scene.second is not None:
        colour, shape = scene.second
        corner = rng.choice([0.13, 0.87], size=2)
        canvas = _paint(canvas, shape, RGB[colour], float(corner[0]), float(corner[1]), 0.09)
    return canvas


def _paint(canvas: Grid, shape: str, colour: tuple[int, int, int], x: float, y: float, size: float) -> Grid:
    """Paint a shape with a soft edge of one pixel."""
    xs, ys = _grid()
    distance = _DISTANCES[shape]((xs - x) / size, (ys - y) / size) * size * SIDE  # pixels; negative inside
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    painted: Grid = canvas * (1 - cover) + np.array(colour, np.float32) * cover
    return painted


def _grid() -> tuple[Grid, Grid]:
    centres = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    xs, ys = np.meshgrid(centres, centres)
    return xs, ys


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

Wave = NDArray[np.float64]


def _tone(low: float, high: float) -> Callable[[Wave, np.random.Generator], Wave]:
    def wave(time: Wave, rng: np.random.Generator) -> Wave:
        return np.sin(2 * np.pi * rng.uniform(low, high) * time)

    return wave


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


_WAVES: dict[str, Callable[[Wave, np.random.Generator], Wave]] = {
    "high": _tone(1900, 2600),
    "low": _tone(110, 200),
    "beeps": _beeps,
    "hiss": lambda time, rng: rng.normal(0, 0.3, len(time)),
    "siren": _siren,
    "ticking": _ticking,
}
