"""The toy world: short videos with sound, captions in MSR-VTT's files and questions in MSRVTT-QA's, from a seed.

A colored shape moves over a dark background, with a sound, with silence or without an audio stream. Every caption
names color, shape and motion; `CAPTIONS - VISUAL_ONLY` of them also say what can be heard (or that nothing can), so a
model that lacks one modality cannot match the references. No tested combination is seen in training.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from videoblip2.config import InputError
from videoblip2.data.annotations import QUESTION_FILES
from videoblip2.errors import Progress, no_progress
from videoblip2.features.media import write_video
from videoblip2.files import write_json
from videoblip2.provenance import TOY
from videoblip2.toy.scene import FPS, MOTIONS, RATE, SOUNDS, STEPS, Scene, make_scene, render_audio, render_frames

CAPTIONS, VISUAL_ONLY = 20, 2
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
SOUND_WORDS = {  # the sound, with its loudness, and its verb
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
_DOING = ("sliding", "sliding", "rising", "falling", "circling", "growing", "shrinking", "bouncing", "staying")
DOING = dict(zip(MOTIONS, _DOING, strict=True))
HEARD = dict(zip(SOUNDS, ("whistle", "hum", "beeps", "noise", "siren", "clock"), strict=True))


@dataclass(frozen=True)
class ToyWorld:
    """The files of a toy world, and what they contain."""

    videos: Path
    annotations: tuple[Path, Path]  # train and validate; test
    questions: Sequence[Path]  # train, validate, test
    counts: dict[str, int]  # videos by split
    audio: dict[str, int]  # videos by "present", "silent", "absent"


def write_toy_world(
    out: str | Path,
    num_videos: int,
    seed: int,
    progress: Progress = no_progress,
    more_tests: int = 0,
    backwards: bool = False,
) -> ToyWorld:
    """Write `num_videos` mp4 files, their annotations and questions to `out`; the same seed gives the same world.

    `more_tests` adds test videos from the same seed. Existing videos are kept, so that an interrupted call can be
    repeated and a second process can help, `backwards`. Raises `InputError` if the folder contains another world.
    """
    out, annotations = Path(out), write_toy_annotations(out, num_videos, seed, more_tests)
    scenes = make_scenes(num_videos, seed, more_tests)
    for scene in progress(scenes[:: -1 if backwards else 1], len(scenes), "rendering"):
        file = out / "videos" / f"{scene.video_id}.mp4"
        if not file.exists():
            write_video(file, render_frames(scene), FPS, render_audio(scene), RATE)
    counts, audio = Counter(scene.split for scene in scenes), Counter(scene.audio for scene in scenes)
    questions = [out / file for file in QUESTION_FILES.values()]
    return ToyWorld(out / "videos", annotations, questions, dict(counts), dict(audio))


def write_toy_annotations(out: str | Path, num_videos: int, seed: int, more_tests: int = 0) -> tuple[Path, Path]:
    """Write only the world's two annotation files (train and validate, test) and its questions."""
    out, scenes = Path(out), make_scenes(num_videos, seed, more_tests)
    by_split = {split: [s for s in scenes if s.split == split] for split in QUESTION_FILES}
    rest, first, second = by_split["train"] + by_split["validate"], out / "toy_train_val.json", out / "toy_test.json"
    documents = {first: _document(rest, 0), second: _document(by_split["test"], CAPTIONS * len(rest))}
    for path, document in documents.items():
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != document:
            raise InputError(f"{path}: {out} contains another toy world; choose another folder or delete this one")
    for path, document in documents.items():
        write_json(path, document)
    first_id = 0
    for split, file in QUESTION_FILES.items():
        entries = question_entries(by_split[split], first_id)
        write_json(out / file, entries)
        first_id += len(entries)
    return first, second


def make_scenes(num_videos: int, seed: int, more_tests: int = 0) -> list[Scene]:
    """The scenes of a world's videos."""
    return [make_scene(seed, index, num_videos) for index in range(num_videos + more_tests)]


def _document(scenes: list[Scene], first_sentence: int) -> dict[str, Any]:
    """MSR-VTT's layout: the videos, and the sentences numbered from `first_sentence`; the motion is the category."""
    videos = [
        {
            "video_id": scene.video_id,
            "id": int(scene.video_id.removeprefix("video")),
            "category": MOTIONS.index(scene.motion),
            "split": scene.split,
            "url": "",
            "start time": 0.0,
            "end time": scene.duration,
        }
        for scene in scenes
    ]
    captions = [(scene.video_id, caption) for scene in scenes for caption in make_captions(scene)]
    sentences = [
        {"sen_id": number, "video_id": video_id, "caption": caption}
        for number, (video_id, caption) in enumerate(captions, first_sentence)
    ]
    return {"info": {"description": TOY}, "videos": videos, "sentences": sentences}


def make_captions(scene: Scene) -> tuple[str, ...]:
    """Twenty distinct captions of 7 to 14 words, in random order; the same scene always gives the same captions."""
    rng = np.random.default_rng([scene.seed, 2])
    heard = WITH_SOUND if scene.audio == "present" else WITHOUT_SOUND
    captions: dict[str, None] = {}
    while len(captions) < CAPTIONS:
        templates = VISUAL if len(captions) < VISUAL_ONLY else heard
        caption = _fill(str(rng.choice(templates)), scene, rng)
        if len(caption.split()) in WORDS:
            captions[caption] = None
    return tuple(str(caption) for caption in rng.permutation(list(captions)))


def _fill(template: str, scene: Scene, rng: np.random.Generator) -> str:
    """Fill in the template's sound and picture: `a (small) red circle moves left (slowly) (near a blue bar)`."""
    sound, does = "", ""
    if scene.sound in SOUND_WORDS:
        sound, does = SOUND_WORDS[scene.sound][rng.integers(len(SOUND_WORDS[scene.sound]))]
        sound = sound.format(loud=rng.choice(LOUD_WORDS if scene.loud else SOFT_WORDS))
    size = _sometimes(rng, 0.15, "small " if scene.size < 0.24 else "large ")
    noun = rng.choice(SHAPE_WORDS[scene.shape])
    verb = rng.choice(MOTION_WORDS[scene.motion])
    speed = _sometimes(rng, 0.2, " slowly" if scene.speed < 1 else " quickly") if scene.motion != "still" else ""
    place = _sometimes(rng, 0.4, f" near a {' '.join(scene.second)}") if scene.second else ""
    place = place or _sometimes(rng, 0.12, f" on a {scene.background} background")
    return template.format(what=f"a {size}{scene.color} {noun} {verb}{speed}{place}", sound=sound, does=does)


def _sometimes(rng: np.random.Generator, share: float, text: str) -> str:
    return text if rng.random() < share else ""


def make_questions(scene: Scene) -> tuple[tuple[str, str], ...]:
    """(question, answer) pairs, a function of the scene; "where does it go?" only if the shape moves away."""
    loudness = "loud" if scene.loud else "quiet"
    pairs = [
        (f"what color is the {scene.shape}?", scene.color),
        (f"what is the {scene.color} shape?", scene.shape),
        (f"what is the {scene.shape} doing?", DOING[scene.motion]),
        ("what can be heard?", HEARD.get(scene.sound, "nothing")),
        ("how loud is the sound?", loudness if scene.audio == "present" else "silent"),
        ("how many shapes are there?", "one" if scene.second is None else "two"),
    ]
    if scene.motion in STEPS:
        pairs.append((f"where does the {scene.shape} go?", scene.motion))
    return tuple(pairs)


def question_entries(scenes: Sequence[Scene], first_id: int) -> list[dict[str, Any]]:
    """Entries in the layout of MSRVTT-QA's JSON, numbered from `first_id`; the motion is the category."""
    asked = [(scene, *pair) for scene in scenes for pair in make_questions(scene)]
    categories = [MOTIONS.index(scene.motion) for scene, *_ in asked]
    return [
        {"id": number, "video": scene.video_id, "category_id": category, "question": question, "answer": answer}
        for number, category, (scene, question, answer) in zip(count(first_id), categories, asked, strict=False)
    ]
