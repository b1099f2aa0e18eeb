"""Twenty captions for a toy scene: one truth, told in varied words, order, length and detail.

Every caption names the colour, the shape and the motion, all three; `CAPTIONS - VISUAL_ONLY` of them also say what is
heard (or that nothing is), so a model that lacks one modality cannot reach the references. Since `toy_scene` holds out
whole combinations of colour, shape and motion, no caption of a test video can be among the training captions.
"""

from __future__ import annotations

import numpy as np

from videoblip2.toy.scene import ABSENT, SILENT, Scene

CAPTIONS = 20
VISUAL_ONLY = 2
WORDS = range(7, 15)  # allowed lengths

SHAPE_WORDS = {
    "circle": ("circle", "circle", "ball"),
    "bar": ("bar", "bar", "rectangle"),
    "triangle": ("triangle",),
    "cross": ("cross",),
    "ring": ("ring",),
}
MOTION_WORDS = {
    "left": ("moves left", "moves to the left", "slides to the left"),
    "right": ("moves right", "moves to the right", "slides to the right"),
    "up": ("moves up", "rises", "floats up"),
    "down": ("moves down", "falls", "sinks down"),
    "orbit": ("moves in a circle", "goes around in circles", "goes around in a circle"),
    "grow": ("grows", "grows bigger", "gets bigger"),
    "shrink": ("shrinks", "gets smaller", "becomes smaller"),
    "bounce": ("bounces up and down", "bounces", "jumps up and down"),
    "still": ("stays still", "stays in place", "does not move"),
}
SOUND_WORDS = {  # what is heard, with its loudness, and what it does
    "high": (("a {loud} high tone", "rings"), ("a {loud} high whistle", "rings")),
    "low": (("a {loud} low tone", "hums"), ("a {loud} deep hum", "goes on")),
    "beeps": (("{loud} beeps", "repeat"), ("{loud} short beeps", "repeat")),
    "hiss": (("a {loud} hissing noise", "goes on"), ("{loud} static noise", "goes on")),
    "siren": (("a {loud} siren", "wails"), ("a {loud} rising siren", "wails")),
    "ticking": (("a {loud} clock", "ticks"), ("a {loud} ticking clock", "goes on")),
}
LOUD_WORDS, SOFT_WORDS = ("loud",), ("soft", "quiet")
WITH_SOUND = (
    "{what} while {sound} {does}",
    "{what} while {sound} {does}",
    "{what} as {sound} {does}",
    "{what} and we hear {sound}",
    "{what} with {sound} in the background",
    "{what} to the sound of {sound}",
    "{sound} {does} while {what}",
    "{sound} {does} as {what}",
    "we hear {sound} while {what}",
)
WITHOUT_SOUND = (
    "{what} in complete silence",
    "{what} in complete silence",
    "{what} without any sound",
    "{what} without any sound at all",
    "{what} and there is no sound at all",
    "{what} and nothing is heard",
    "there is no sound at all while {what}",
    "in complete silence {what}",
)
VISUAL = ("{what}", "the video shows how {what}", "in this video {what}", "we see how {what}")


def make_captions(scene: Scene) -> tuple[str, ...]:
    """Twenty distinct captions of 7 to 14 words, in random order; the same scene gives the same ones."""
    rng = np.random.default_rng([scene.seed, 2])
    heard = WITHOUT_SOUND if scene.sound in (SILENT, ABSENT) else WITH_SOUND
    captions: dict[str, None] = {}
    while len(captions) < CAPTIONS:
        templates = VISUAL if len(captions) < VISUAL_ONLY else heard
        caption = _fill(str(rng.choice(templates)), scene, rng)
        if len(caption.split()) in WORDS:
            captions[caption] = None
    return tuple(str(caption) for caption in rng.permutation(list(captions)))


def _fill(template: str, scene: Scene, rng: np.random.Generator) -> str:
    sound, does = "", ""
    if scene.sound in SOUND_WORDS:
        sound, does = SOUND_WORDS[scene.sound][rng.integers(len(SOUND_WORDS[scene.sound]))]
        sound = sound.format(loud=rng.choice(LOUD_WORDS if scene.loud else SOFT_WORDS))
    return template.format(what=_what(scene, rng), sound=sound, does=does)


def _what(scene: Scene, rng: np.random.Generator) -> str:
    """The clause on what is seen: `a (small) red circle moves left (slowly) (on a striped background)`."""
    size = _sometimes(rng, 0.15, "small " if scene.size < 0.24 else "large ")
    noun = rng.choice(SHAPE_WORDS[scene.shape])
    verb = rng.choice(MOTION_WORDS[scene.motion])
    speed = _sometimes(rng, 0.2, " slowly" if scene.speed < 1 else " quickly") if scene.motion != "still" else ""
    return f"a {size}{scene.colour} {noun} {verb}{speed}{_place(scene, rng)}"


def _place(scene: Scene, rng: np.random.Generator) -> str:
    if scene.second is not None and rng.random() < 0.4:
        return f" near a {scene.second[0]} {scene.second[1]}"
    return _sometimes(rng, 0.12, f" on a {scene.background} background")


def _sometimes(rng: np.random.Generator, share: float, text: str) -> str:
    return text if rng.random() < share else ""
