"""Toy questions: one right answer each, known from training, about what is really seen and heard."""

from dataclasses import replace

from videoblip2.captions.functions import answer_accuracy, blind_answers
from videoblip2.data.annotations import read_questions
from videoblip2.toy.scene import ABSENT, SILENT, make_scene
from videoblip2.toy.world import make_questions, question_entries, write_toy_annotations

SCENES = [make_scene(0, index, 200) for index in range(200)]


def test_answers_tell_the_scene():
    scene = replace(SCENES[0], color="red", shape="bar", motion="left", sound="hiss", loud=False, second=None)
    assert dict(make_questions(scene)) == {
        "what color is the bar?": "red",
        "what is the red shape?": "bar",
        "what is the bar doing?": "sliding",
        "what can be heard?": "noise",
        "how loud is the sound?": "quiet",
        "how many shapes are there?": "one",
        "where does the bar go?": "left",
    }
    quiet = dict(make_questions(replace(scene, sound=SILENT, motion="still", second=("blue", "ring"))))
    assert quiet["how loud is the sound?"] == "silent" and quiet["what can be heard?"] == "nothing"
    assert quiet["how many shapes are there?"] == "two" and "where does the bar go?" not in quiet
    assert make_questions(replace(scene, sound=ABSENT)) == make_questions(replace(scene, sound=SILENT))


def test_training_knows_every_answer_and_questions_alone_do_not_tell_them():
    by_split = {split: question_entries([s for s in SCENES if s.split == split], 0) for split in ("train", "test")}
    train, test = by_split["train"], by_split["test"]
    assert {e["answer"] for e in test} <= {e["answer"] for e in train}
    asked = [e["question"] for e in test]
    blind = blind_answers(asked, [e["question"] for e in train], [e["answer"] for e in train])
    assert answer_accuracy(asked, blind, [e["answer"] for e in test])["accuracy"] < 0.45


def test_files_hold_each_splits_own_videos_and_running_numbers(tmp_path):
    write_toy_annotations(tmp_path, 20, 3)
    read = {name: read_questions(tmp_path / f"{name}_qa.json") for name in ("train", "val", "test")}
    assert [len({q.video_id for q in questions}) for questions in read.values()] == [14, 2, 4]
    assert [int(q.question_id) for questions in read.values() for q in questions] == list(
        range(sum(map(len, read.values())))
    )
