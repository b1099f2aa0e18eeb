"""Questions on a toy scene, each with one right answer of one word, in MSRVTT-QA's manner.

Colour, shape, motion, direction and number ask for the picture, two more for the sound. A test video shows a
combination that training never has, while each single answer occurs there: whoever answers has looked and listened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from videoblip2.toy.scene import ABSENT, MOTIONS, SILENT, Scene

DOING = {
    "left": "sliding",
    "right": "sliding",
    "up": "rising",
    "down": "falling",
    "orbit": "circling",
    "grow": "growing",
    "shrink": "shrinking",
    "bounce": "bouncing",
    "still": "staying",
}
HEARD = {
    "high": "whistle",
    "low": "hum",
    "beeps": "beeps",
    "hiss": "noise",
    "siren": "siren",
    "ticking": "clock",
    SILENT: "nothing",
    ABSENT: "nothing",
}
DIRECTIONS = ("left", "right", "up", "down")


def make_questions(scene: Scene) -> tuple[tuple[str, str], ...]:
    """(question, answer) pairs, the same for the same scene; `where` only where the shape goes somewhere."""
    silent = scene.sound in (SILENT, ABSENT)
    pairs = [
        (f"what color is the {scene.shape}?", scene.colour),
        (f"what is the {scene.colour} shape?", scene.shape),
        (f"what is the {scene.shape} doing?", DOING[scene.motion]),
        ("what can be heard?", HEARD[scene.sound]),
        ("how loud is the sound?", "silent" if silent else "loud" if scene.loud else "quiet"),
        ("how many shapes are there?", "one" if scene.second is None else "two"),
    ]
    if scene.motion in DIRECTIONS:
        pairs.append((f"where does the {scene.shape} go?", scene.motion))
    return tuple(pairs)


def question_entries(scenes: Sequence[Scene], first_id: int) -> list[dict[str, Any]]:
    """Entries as MSRVTT-QA's JSON has them, with running numbers; the motion stands for the category."""
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
