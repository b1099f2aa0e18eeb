"""The toy world: seeded, held out by combination, and captioned by what is really seen and heard."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from videoblip2.config import InputError
from videoblip2.features.media import write_video
from videoblip2.toy.scene import (
    ABSENT,
    COLORS,
    FPS,
    MOTIONS,
    RATE,
    RGB,
    SHAPES,
    SILENT,
    SOUNDS,
    combination_split,
    make_scene,
    path_at,
    render_audio,
    render_frames,
)
from videoblip2.toy.world import (
    CAPTIONS,
    LOUD_WORDS,
    MOTION_WORDS,
    SHAPE_WORDS,
    SOFT_WORDS,
    SOUND_WORDS,
    WORDS,
    make_captions,
    make_scenes,
    write_toy_world,
)

NUM = 300
SCENES = [make_scene(0, index, NUM) for index in range(NUM)]


def test_the_same_seed_gives_the_same_scene_and_another_seed_another():
    assert [make_scene(0, index, NUM) for index in range(NUM)] == SCENES
    assert make_scene(1, 0, NUM) != SCENES[0]
    np.testing.assert_array_equal(render_frames(SCENES[0]), render_frames(SCENES[0]))


def test_the_same_scene_gives_the_same_file(tmp_path):
    for frames in map(render_frames, SCENES[:12]):
        for file in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
            write_video(tmp_path / file, frames, FPS, None, RATE)
            assert (tmp_path / file).read_bytes() == (tmp_path / "a.mp4").read_bytes()


def test_tested_combinations_are_held_out_and_their_parts_are_not():
    by_split = {split: {s[:3] for s in triples(split)} for split in ("train", "validate", "test")}
    assert not by_split["train"] & by_split["test"] and not by_split["validate"] & by_split["test"]
    train = [c for c in product(COLORS, SHAPES, MOTIONS) if combination_split(*c) == "train"]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        pairs = {(c[one], c[two]) for c in product(COLORS, SHAPES, MOTIONS)}
        assert {(c[one], c[two]) for c in train} == pairs


def triples(split: str) -> list[tuple[str, str, str]]:
    return [(s.color, s.shape, s.motion) for s in SCENES if s.split == split]


def test_splits_and_audio_situations_are_in_proportion():
    assert [sum(s.split == split for s in SCENES) for split in ("train", "validate", "test")] == [210, 30, 60]
    heard = [s.sound for s in SCENES]
    assert heard.count(ABSENT) == heard.count(SILENT) == NUM // 10
    assert min(heard.count(sound) for sound in SOUNDS) >= NUM // 10
    assert 20 <= sum(s.second is not None for s in SCENES) <= 80


def test_no_caption_of_a_test_video_is_in_training():
    training = {caption for s in SCENES if s.split != "test" for caption in make_captions(s)}
    assert not [caption for s in SCENES if s.split == "test" for caption in make_captions(s) if caption in training]


@pytest.mark.parametrize("scene", SCENES[:40], ids=lambda scene: scene.video_id)
def test_captions_are_varied_and_tell_what_is_seen_and_heard(scene):
    captions = make_captions(scene)
    assert len(set(captions)) == CAPTIONS == 20
    assert all(len(caption.split()) in WORDS for caption in captions)
    assert all(scene.color in caption for caption in captions)
    assert all(any(word in caption.split() for word in SHAPE_WORDS[scene.shape]) for caption in captions)
    assert all(any(words in caption for words in MOTION_WORDS[scene.motion]) for caption in captions)
    heard = [words.format(loud="").split()[-1] for words, _ in SOUND_WORDS.get(scene.sound, ())]
    told = [c for c in captions if any(w in c for w in heard or ["silence", "sound", "nothing is heard"])]
    assert len(told) == 18
    if heard:
        assert all(any(word in c.split() for word in (LOUD_WORDS if scene.loud else SOFT_WORDS)) for c in told)
        assert not any(word in c.split() for word in (SOFT_WORDS if scene.loud else LOUD_WORDS) for c in captions)
    others = {words.format(loud="").split()[-1] for both in SOUND_WORDS.values() for words, _ in both} - {
        "tone",
        "noise",
        *heard,
    }
    assert not [c for c in captions if others & set(c.split())]


def test_the_vocabulary_is_modest():
    words = {word for scene in SCENES for caption in make_captions(scene) for word in caption.split()}
    assert 60 < len(words) < 150


def centre(frame: np.ndarray, color: str) -> tuple[float, float, int]:
    """Mean x, mean y and number of the pixels that are near to `color`."""
    near = np.abs(frame.astype(int) - RGB[color]).max(axis=-1) < 25
    ys, xs = np.nonzero(near)
    return float(xs.mean()), float(ys.mean()), len(xs)


@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)])
def test_the_shape_moves_as_the_captions_say(motion, axis, sign):
    scene = replace(SCENES[0], motion=motion, color="red", second=None)
    frames = render_frames(scene)
    assert frames.shape == (round(scene.duration * FPS), 64, 64, 3) and frames.dtype == np.uint8
    first, last = centre(frames[0], "red"), centre(frames[-1], "red")
    assert sign * (last[axis] - first[axis]) > 12 > abs(last[1 - axis] - first[1 - axis]) + 8


def test_shapes_grow_shrink_and_stay():
    sizes = {}
    for motion in ("grow", "shrink", "still"):
        frames = render_frames(replace(SCENES[0], motion=motion, color="red", second=None))
        sizes[motion] = centre(frames[-1], "red")[2] / centre(frames[0], "red")[2]
    assert sizes["grow"] > 1.8 and sizes["shrink"] < 0.6 and 0.9 < sizes["still"] < 1.1


def test_bouncing_and_circling_come_back():
    for motion in ("bounce", "orbit"):
        scene = replace(SCENES[0], motion=motion, speed=1.2, duration=3.0)
        ys = [path_at(scene, time)[1] for time in np.arange(24) / FPS]
        assert max(ys) - min(ys) > 0.3 and (np.diff(np.sign(np.diff(ys))) != 0).sum() >= 2


def test_sounds_are_what_they_are_called():
    tops, levels = {}, {}
    for sound in SOUNDS:
        audio = render_audio(replace(SCENES[0], sound=sound, loud=True, duration=2.0))
        soft = render_audio(replace(SCENES[0], sound=sound, loud=False, duration=2.0))
        assert np.sqrt(np.mean(audio**2)) > 5 * np.sqrt(np.mean(soft**2)) > 0
        assert audio.dtype == np.float32 and len(audio) == 2 * RATE and np.abs(audio).max() < 4
        spectrum = np.abs(np.fft.rfft(audio)) ** 2
        tops[sound] = float(np.argmax(spectrum)) / 2
        levels[sound] = float(np.sort(spectrum)[-40:].sum() / spectrum.sum())
    assert 1900 <= tops["high"] <= 2600 and 110 <= tops["low"] <= 200 and 780 <= tops["beeps"] <= 1220
    assert levels["high"] > 0.9 > 0.1 > levels["hiss"] and levels["ticking"] < 0.3
    assert not render_audio(replace(SCENES[0], sound=SILENT)).any()
    assert render_audio(replace(SCENES[0], sound=ABSENT)) is None


class Recorder:
    """Stands in for the mp4 writer: makes a file and remembers what it was given."""

    def __init__(self):
        self.written = {}

    def __call__(self, path, frames, fps, audio, rate):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")
        self.written[path.stem] = (frames, fps, audio, rate)


def made_world(folder, count, seed, write, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("videoblip2.toy.world.write_video", write)
        return write_toy_world(folder, count, seed, **options)


def test_a_world_is_videos_and_annotations_in_msrvtts_layout(tmp_path):
    write = Recorder()
    world = made_world(tmp_path, 20, 3, write)
    assert world.counts == {"train": 14, "validate": 2, "test": 4}
    assert world.audio == {"present": 16, "silent": 2, "absent": 2}
    assert sorted(write.written) == sorted(f"video{i}" for i in range(20))
    documents = [json.loads(path.read_text()) for path in world.annotations]
    assert [len(document["videos"]) for document in documents] == [16, 4]
    assert {video["split"] for video in documents[1]["videos"]} == {"test"}
    sentences = [sentence for document in documents for sentence in document["sentences"]]
    assert [sentence["sen_id"] for sentence in sentences] == list(range(400))
    expected = [caption for i in range(20) for caption in make_captions(make_scene(3, i, 20))]
    assert [sentence["caption"] for sentence in sentences] == expected


def test_more_test_videos_leave_the_others_as_they_are(tmp_path):
    few, more = (made_world(tmp_path / str(count), 10, 3, Recorder(), more_tests=count) for count in (0, 5))
    assert few.counts["test"] == 2 and more.counts == {**few.counts, "test": 7}
    assert few.annotations[0].read_bytes() == more.annotations[0].read_bytes()
    documents = [json.loads(world.annotations[1].read_text()) for world in (few, more)]
    assert documents[1]["sentences"][: 2 * CAPTIONS] == documents[0]["sentences"]
    combinations = {combination_split(s.color, s.shape, s.motion) for s in make_scenes(10, 3, 5)[8:]}
    assert combinations == {"test"}


def test_an_interrupted_world_is_completed(tmp_path):
    made_world(tmp_path, 10, 3, Recorder())
    (tmp_path / "videos" / "video4.mp4").unlink()
    again = Recorder()
    made_world(tmp_path, 10, 3, again)
    assert list(again.written) == ["video4"]


def test_a_second_process_renders_what_is_left_from_the_end(tmp_path):
    helper = Recorder()

    def write(path, *given):
        first(path, *given)
        if path.stem == "video6":
            made_world(tmp_path, 10, 3, helper, backwards=True)

    first = Recorder()
    made_world(tmp_path, 10, 3, write)
    assert list(first.written) == [f"video{i}" for i in range(7)] and list(helper.written) == [
        "video9",
        "video8",
        "video7",
    ]


def test_another_world_in_the_folder_is_not_touched(tmp_path):
    world = made_world(tmp_path, 10, 3, Recorder())
    before = world.annotations[0].read_bytes()
    with pytest.raises(InputError, match="another toy world"):
        made_world(tmp_path, 10, 4, Recorder())
    assert world.annotations[0].read_bytes() == before
