"""MSRVTT-QA's files and users' tables in, lists of questions out; nothing is lost and each mistake is named."""

import json
from pathlib import Path

import pytest

from videoblip2.config import InputError
from videoblip2.data.annotations import Question, read_answer_map, read_questions
from videoblip2.data.prepare import prepare_questions

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "msrvtt-qa"


def save(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def entry(video=7, question="what is it?", answer="dog", **more) -> dict:
    return {"video": video, "question": question, "answer": answer, "category_id": 3, **more}


def test_every_published_form_is_read(tmp_path):
    expected = [Question("5", "video7", "what is it?", "dog")]
    assert read_questions(save(tmp_path / "a.json", [entry(id=5)])) == expected
    assert read_questions(save(tmp_path / "b.json", {"x": entry("video7", question_id="5")})) == expected
    by_video_id = {"video_id": 7, "question": "what is it?", "answer": "dog", "id": "5"}
    assert read_questions(save(tmp_path / "c.json", [by_video_id])) == expected
    assert (
        read_questions(save(tmp_path / "d.csv", "video_id,question,answer,id\nvideo7.mp4,what is it?,dog,5\n"))
        == expected
    )
    assert read_questions(save(tmp_path / "e.jsonl", json.dumps(entry("video7")))) == [
        Question("0", "video7", "what is it?", "dog")
    ]


def test_prepared_files_are_read_again_and_the_map_is_made_of_training_answers(tmp_path):
    train = [entry(1, answer="dog"), entry(2, answer="cat"), entry(3, "who?", answer="cat")]
    val = [entry(9, "who runs?", "man"), entry(9, "who runs?", "cat"), entry(1, " ", "a\x00b")]
    paths = [save(tmp_path / "msrvtt_qa_train.json", train), save(tmp_path / "val_qa.json", val)]
    report = prepare_questions(paths, tmp_path / "out")
    assert report.questions == {"train": 3, "validate": 3} and report.videos == {"train": 3, "validate": 2}
    assert report.types == {"train": {"what": 2, "who": 1}, "validate": {"who": 2, "other": 1}}
    assert (report.repeated, report.empty, report.control_character, report.shared_videos) == (1, 1, 1, 1)
    assert report.examples["repeated"] == "video9: 'who runs?' 'cat'"
    assert read_answer_map(tmp_path / "out" / "ans2label.json") == {"cat": 0, "dog": 1}
    assert report.in_map == {"train": 1.0, "validate": 1 / 3}
    assert read_questions(tmp_path / "out" / "val_qa.json") == read_questions(paths[1])


def test_a_given_answer_map_is_kept(tmp_path):
    paths = [save(tmp_path / "test_qa.json", [entry()]), save(tmp_path / "ans2label.json", {"man": 0})]
    report = prepare_questions(paths, tmp_path / "out")
    assert (report.map_from, report.in_map) == ("given", {"test": 0.0})
    assert read_answer_map(tmp_path / "out" / "ans2label.json") == {"man": 0}


def test_a_split_can_be_given(tmp_path):
    path = save(tmp_path / "mine.csv", "video_id,question,answer\nv,what?,dog\n")
    assert prepare_questions([path], tmp_path / "out", "val").questions == {"validate": 1}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["val_qa.json"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("qa.json", [entry()], "qa.json: its name has no train, val or test"),
        ("train_qa.json", [], "train_qa.json: contains no question"),
        ("train_qa.json", {"videos": [], "sentences": []}, "train_qa.json entry 1: no video or .* among id, captions"),
        ("train_qa.json", [entry(answer=None)], "train_qa.json entry 1: no answer among"),
        ("train_qa.json", [entry(answer=3)], "the answer is 3"),
        ("train_qa.json", [{"question": "q", "answer": "a"}], "no video or video_id or video_name or file among"),
        ("train_qa.json", [entry(id=1), entry(id=1)], "question ids: listed more than once: 1"),
        ("train_qa.json", ["what?"], 'entry 1: "what\\?" is not an object'),
        ("train_qa.json", {"man": 0}, "no questions; give"),
    ],
)
def test_a_bad_file_is_named_and_nothing_written(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as caught:
        prepare_questions([save(tmp_path / name, content)], tmp_path / "out")
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_files_and_wrong_maps_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: no such file; make it with `vb2 data prepare --task qa`"):
        read_questions(tmp_path / "none.json")
    with pytest.raises(InputError, match="not a mapping of answers to numbers"):
        read_answer_map(save(tmp_path / "map.json", ["man"]))
    with pytest.raises(InputError, match="--split random"):
        prepare_questions([save(tmp_path / "qa.json", [entry()])], tmp_path / "out", "random")


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="MSRVTT-QA's questions (../shared/data/msrvtt-qa) are not here")
def test_msrvtt_qas_validation_questions(tmp_path):
    report = prepare_questions([SHARED / "val_qa.json", SHARED / "ans2label.json"], tmp_path)
    assert report.questions == {"validate": 12_278} and report.videos == {"validate": 497}
    assert report.types["validate"] == {"what": 8337, "who": 3439, "how": 344, "when": 106, "where": 52}
    assert report.in_map["validate"] == pytest.approx(0.93, abs=0.001) and report.repeated == 484
    assert len(read_answer_map(tmp_path / "ans2label.json")) == 1500
