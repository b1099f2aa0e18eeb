"""The top-5-detail selection: agreed on, detailed, distinct."""

import json

import pytest

from videoblip2.captions import DocumentFrequencies, leave_one_out
from videoblip2.config import InputError
from videoblip2.data.top5 import CONSENSUS, DETAIL, REPETITION, select_top5

AGREED = [
    "a man is cooking",
    "a man is cooking food",
    "a man is cooking food in a kitchen",
    "a man in a white shirt is cooking food in a kitchen",
    "a man is cooking rice in a pan",
]
OUTLIERS = [
    "a very long caption about something that nobody else has seen in this film at all today",
    "minecraft gameplay with commentary by a famous person on the internet",
    "zebras",
    "the weather tomorrow",
    "funny",
]
VIDEO = {
    "video_id": "video0",
    "category": 9,
    "captions": [c for pair in zip(OUTLIERS, AGREED, strict=True) for c in pair],
}
OTHER = {
    "video_id": "video1",
    "category": 3,
    "captions": ["a dog runs", "a dog runs.", "A dog runs", "a dog", "dogs", "x"],
}


def test_agreed_captions_are_chosen_over_long_outliers():
    chosen, _ = select_top5([VIDEO, OTHER]).videos
    assert set(chosen["captions"]) == set(AGREED)
    assert chosen["captions"][0] == AGREED[3]
    assert (chosen["video_id"], chosen["category"]) == ("video0", 9)


def test_scores_are_the_consensus_among_all_captions():
    videos = [VIDEO, OTHER]
    references = {video["video_id"]: video["captions"] for video in videos}
    df = DocumentFrequencies.from_references(references)
    for chosen, video in zip(select_top5(videos).videos, videos, strict=True):
        consensus = leave_one_out(references, df)[video["video_id"]]
        expected = {text: score for text, score in zip(video["captions"], consensus, strict=True)}
        assert chosen["scores"] == [expected[text] for text in chosen["captions"]]
    json.dumps(chosen)


def test_repetitions_come_last_and_are_marked():
    _, chosen = select_top5([VIDEO, OTHER]).videos
    assert chosen["captions"][0] == "a dog runs"
    assert chosen["captions"][-1] in ("a dog runs.", "A dog runs")
    assert set(chosen["captions"][1:4]) == {"a dog", "dogs", "x"}
    assert chosen["selected_by"][0] == DETAIL
    assert CONSENSUS in chosen["selected_by"]
    assert chosen["selected_by"][-1] == REPETITION


def test_new_words_decide_between_captions_of_one_length():
    longest, similar, novel = "a man in red cooks rice now", "a man in red cooks meat", "a man in blue fries meat"
    captions = [similar, "zebras", longest, "rain falls", novel, "funny"]
    chosen, _ = select_top5([{"video_id": "v", "category": 0, "captions": captions}, OTHER], keep=2).videos
    assert chosen["captions"] == [longest, novel]


def test_few_captions_are_all_kept():
    (chosen,) = select_top5([{"video_id": "v", "category": 0, "captions": ["one", "a dog runs"]}]).videos
    assert sorted(chosen["captions"]) == ["a dog runs", "one"]
    assert len(chosen["scores"]) == len(chosen["selected_by"]) == 2


def test_the_number_to_keep_is_a_choice():
    assert [len(video["captions"]) for video in select_top5([VIDEO, OTHER], keep=3).videos] == [3, 3]


def test_a_video_without_captions_is_named():
    with pytest.raises(InputError, match="video4"):
        select_top5([VIDEO, {"video_id": "video4", "category": 0, "captions": []}])
