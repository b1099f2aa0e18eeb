"""MSR-VTT's files in, our lists out; nothing lost, and each mistake named."""

import json
import zipfile
from pathlib import Path

import pytest

from videoblip2.config import InputError
from videoblip2.data.annotations import VideoAnnotation, read_annotations, write_annotations
from videoblip2.data.prepare import prepare_captions

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "msrvtt"


def official(splits: dict[str, str]) -> dict:
    """MSR-VTT's layout, with the sentences of each video in reverse order of their numbers."""
    videos = [{"video_id": v, "category": 3, "split": s, "start time": 0, "end time": 1} for v, s in splits.items()]
    sentences = [{"sen_id": n, "video_id": v, "caption": f"{v} caption {n}"} for v in splits for n in (12, 7, 3)]
    return {"info": {}, "videos": videos, "sentences": sentences}


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


def test_prepare_sorts_captions_and_splits_videos(tmp_path):
    first = save(tmp_path / "a.json", official({"video5": "train", "video1": "train", "video2": "validate"}))
    second = tmp_path / "b.zip"
    with zipfile.ZipFile(second, "w") as archive:
        archive.writestr("readme.txt", "hello")
        archive.writestr("__MACOSX/b.json", "junk")
        archive.writestr("b.json", json.dumps(official({"video9": "test"})))
    report = prepare_captions([first, second], tmp_path / "out")
    assert report.videos == {"train": 2, "validate": 1, "test": 1} and report.captions["train"] == 6
    train = read_annotations(tmp_path / "out" / "train.json")
    assert [video.video_id for video in train] == ["video5", "video1"]
    assert train[0].captions == ("video5 caption 3", "video5 caption 7", "video5 caption 12") and train[0].category == 3
    assert read_annotations(tmp_path / "out" / "test.json")[0].video_id == "video9"


def test_a_split_that_no_file_holds_is_not_written(tmp_path):
    prepare_captions([save(tmp_path / "a.json", official({"video1": "test"}))], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test.json"]


def test_flaws_are_counted_and_kept(tmp_path):
    content = official({"video1": "train"})
    for sentence, caption in zip(content["sentences"], ["twice", "twice", " "], strict=True):
        sentence["caption"] = caption
    content["sentences"].append({"sen_id": 99, "video_id": "video1", "caption": "a\x00b"})
    report = prepare_captions([save(tmp_path / "a.json", content)], tmp_path / "out")
    assert (report.duplicate_captions, report.empty_captions, report.control_character_captions) == (1, 1, 1)
    assert report.examples["duplicate"] == "video1: 'twice'"
    assert read_annotations(tmp_path / "out" / "train.json")[0].captions == (" ", "twice", "twice", "a\x00b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (official({"video1": "train"}), "vb2 data prepare"),
        ({"videos": 1}, "not a list of videos"),
        ([], "not a list of videos"),
        ([{"captions": ["a"]}], 'no "video_id"'),
        ([{"video_id": "video7", "captions": []}], "video7 has no captions"),
        ([{"video_id": "video7"}], '"captions" of video7'),
        ([{"video_id": "video7", "captions": [3]}], '"captions" of video7'),
        ([{"video_id": "video7", "captions": ["a"]}] * 2, "video7 comes twice"),
        ([{"video_id": "video7", "category": "cats", "captions": ["a"]}], "category of video7"),
    ],
)
def test_a_bad_list_is_named(tmp_path, content, message):
    path = save(tmp_path / "train.json", content)
    with pytest.raises(InputError, match=message) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def broken(change) -> dict:
    content = official({"video1": "train", "video2": "test"})
    change(content)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not MSR-VTT's layout"),
        (broken(lambda c: c["videos"][0].pop("split")), "split"),
        (broken(lambda c: c["videos"][0].update(split="training")), "video1 has the split 'training'"),
        (broken(lambda c: c["videos"].pop()), "video2, which is not among"),
        (broken(lambda c: c.update(sentences=c["sentences"][:3])), "video2 has no captions"),
        (broken(lambda c: c["videos"].append(c["videos"][0])), "video1 comes twice"),
        (broken(lambda c: c["sentences"][0].update(caption=None)), "caption"),
    ],
)
def test_a_bad_official_file_is_named_and_nothing_written(tmp_path, content, message):
    path = save(tmp_path / "official.json", content)
    with pytest.raises(InputError, match=message) as caught:
        prepare_captions([path], tmp_path / "out")
    assert "official.json" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_annotations_are_named(tmp_path):
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(InputError, match=r"text\.json: not JSON"):
        prepare_captions([tmp_path / "text.json"], tmp_path)
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_annotations(tmp_path / "none.json")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match=r"empty\.zip: holds no \.json"):
        prepare_captions([tmp_path / "empty.zip"], tmp_path)
    path = save(tmp_path / "a.json", official({"video1": "train"}))
    with pytest.raises(InputError, match="video1 comes twice"):
        prepare_captions([path, path], tmp_path / "out")


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="MSR-VTT's annotations (../shared/data/msrvtt) are not here")
def test_the_official_zips(tmp_path):
    zips = [SHARED / "train_val_annotation.zip", SHARED / "test_videodatainfo.json.zip"]
    report = prepare_captions(zips, tmp_path)
    assert report.videos == {"train": 6513, "validate": 497, "test": 2990}
    assert sum(report.captions.values()) == 200_000 and report.duplicate_captions == 14_632
    first = read_annotations(tmp_path / "val.json")[0]
    assert (first.video_id, first.captions[0]) == ("video6513", "a family is having coversation")
