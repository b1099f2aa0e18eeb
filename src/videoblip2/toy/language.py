"""What people say about a toy scene: twenty captions, and questions with one-word answers.

Every caption names the colour, the shape and the motion; `CAPTIONS - VISUAL_ONLY` of them also say what can be heard
(or that nothing can), so a model that lacks one modality cannot match the references. Questions follow MSRVTT-QA: five
kinds are about the picture, two about the sound. Whole combinations of colour, shape and motion are kept for the test
videos (`scene.combination_split`), so no caption of a test video can be among the training captions, while every single
answer occurs in training: a model that answers has looked and listened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from videoblip2.toy.scene import ABSENT, MOTIONS, SILENT, SOUNDS, Scene

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
ANSWERS = ("sliding", "sliding", "rising", "falling", "circling", "growing", "shrinking", "bouncing", "staying")
DOING = dict(zip(MOTIONS, ANSWERS, strict=True))
HEARD = dict(zip(SOUNDS, ("whistle", "hum", "beeps", "noise", "siren", "clock"), strict=True))
DIRECTIONS = ("left", "right", "up", "down")


def make_captions(scene: Scene) -> tuple[str, ...]:
    """Twenty distinct captions of 7 to 14 words, in random order; the same scene always gives the same captions."""
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


def make_questions(scene: Scene) -> tuple[tuple[str, str], ...]:
    """(question, answer) pairs, the same for the same scene; "where does it go?" only if the shape goes anywhere."""
    silent = scene.sound in (SILENT, ABSENT)
    pairs = [
        (f"what color is the {scene.shape}?", scene.colour),
        (f"what is the {scene.colour} shape?", scene.shape),
        (f"what is the {scene.shape} doing?", DOING[scene.motion]),
        ("what can be heard?", HEARD.get(scene.sound, "nothing")),
        ("how loud is the sound?", "silent" if silent else "loud" if scene.loud else "quiet"),
        ("how many shapes are there?", "one" if scene.second is None else "two"),
    ]
    if scene.motion in DIRECTIONS:
        pairs.append((f"where does the {scene.shape} go?", scene.motion))
    return tuple(pairs)


def question_entries(scenes: Sequence[Scene], first_id: int) -> list[dict[str, Any]]:
    """Entries in the layout of MSRVTT-QA's JSON, numbered from `first_id`; the motion is the category."""
    asked = [(scene, question, answer) for scene in scenes for question, answer in make_questions(scene)]
    return [
        {
            "id": first_id + number,
            "video": scene.video_id,
            "category_id": MOTIONS.index(scene.motion),
            "question": question,
            "answer": answer,
        }
        for number, (scene, question, answer) in enumerate(asked)
    ]
