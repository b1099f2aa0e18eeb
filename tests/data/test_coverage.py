"""Annotations beside features: what is on one side only is named, file by file."""

import json

import pytest

from videoblip2.config import InputError
from videoblip2.data.coverage import compare_with_features


def test_both_directions_are_named(tmp_path):
    videos = [{"video_id": v, "category": 0, "captions": ["a"]} for v in ("v1", "v2", "v3")]
    (tmp_path / "train.json").write_text(json.dumps(videos))
    asked = [{"video": v, "question": "what?", "answer": "a"} for v in ("v1", "v9", "v9")]
    (tmp_path / "val_qa.json").write_text(json.dumps(asked))
    report = compare_with_features(tmp_path, ["v1", "v3", "v5", "v4"])
    assert report.videos == {"train.json": 3, "val_qa.json": 2}
    assert report.missing == {"train.json": ["v2"], "val_qa.json": ["v9"]}
    assert report.unannotated == ["v4", "v5"] and not report.ok
    alone = compare_with_features(tmp_path / "train.json", ["v1", "v2", "v3"])
    assert alone.ok and alone.unannotated == []


def test_a_folder_without_annotations_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds none of train\.json"):
        compare_with_features(tmp_path, [])
