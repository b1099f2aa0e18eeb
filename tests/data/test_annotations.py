"""The list of videos and captions: written whole, read strictly, each mistake named."""

import json
from pathlib import Path

import pytest

from videoblip2.config import InputError
from videoblip2.data.annotations import VideoAnnotation, read_annotations, write_annotations
from videoblip2.errors import some


def save(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_lists_survive_a_round_trip(tmp_path):
    videos = [VideoAnnotation("video1", 9, ("a dog in a café", "a dog")), VideoAnnotation("video2", 0, ("b",))]
    write_annotations(tmp_path / "new" / "train.json", videos)
    assert read_annotations(tmp_path / "new" / "train.json") == videos
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["train.json"]


def test_a_top5_file_is_read(tmp_path):
    entry = {"video_id": "video1", "category": 1, "captions": ["a"], "scores": [0.5], "selected_by": ["detail"]}
    assert read_annotations(save(tmp_path / "top5.json", [entry])) == [VideoAnnotation("video1", 1, ("a",))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"videos": [], "sentences": []}, "vb2 data prepare"),
        ({"videos": 1}, "not a list of videos"),
        ([], "not a list of videos"),
        ([{"captions": ["a"]}], "entry 1 video_id: Field required"),
        ([{"video_id": "video7", "captions": []}], "video7 captions: Tuple should have at least 1 item"),
        ([{"video_id": "video7"}], "video7 captions: Field required"),
        ([{"video_id": "video7", "captions": [3]}], "video7 captions 0: Input should be a valid string"),
        ([{"video_id": "video7", "captions": ["a"]}] * 2, "listed more than once: video7"),
        (
            [{"video_id": "video7", "category": "cats", "captions": ["a"]}],
            "video7 category: Input should be a valid integer",
        ),
    ],
)
def test_a_bad_list_is_named(tmp_path, content, message):
    path = save(tmp_path / "train.json", content)
    with pytest.raises(InputError, match=message) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_all_repeated_videos_are_named(tmp_path):
    entries = [{"video_id": f"video{i % 2}", "category": 1, "captions": ["a"]} for i in range(5)]
    with pytest.raises(InputError, match="listed more than once: video0, video1"):
        read_annotations(save(tmp_path / "train.json", entries))


def test_long_lists_of_names_are_cut():
    assert some(["a", "b"]) == "a, b"
    assert some(list("abcdefgh"), most=3) == "a, b, c and 5 more"
