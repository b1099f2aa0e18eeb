"""Evaluation of captions: every video judged, predictions written whole."""

import json

import pytest

from videoblip2.captions.metrics import default_metrics
from videoblip2.captions.predictions import write_rows
from videoblip2.config import InputError
from videoblip2.evaluate import evaluate

REFERENCES = {"video0": ["a red circle moves", "the circle moves left"], "video1": ["a dog barks", "a dog is loud"]}
CAPTIONS = {"video0": "a red circle moves", "video1": "a cat"}


def test_corpus_and_per_video_scores():
    result = evaluate(CAPTIONS, REFERENCES, default_metrics(fast=True))
    first, second = (row.scores["CIDEr"] for row in result.caption_rows)
    assert first > second and result.corpus["CIDEr"] == pytest.approx((first + second) / 2)
    assert {"Bleu_4", "ROUGE_L", "distinct_1", "mean_length"} <= set(result.corpus)


def test_a_video_without_caption_is_named():
    with pytest.raises(InputError, match="video 'video1' has only"):
        evaluate({"video0": "a"}, REFERENCES, default_metrics(fast=True))


def test_predictions_file_and_table_rows(tmp_path):
    result = evaluate(CAPTIONS, REFERENCES, default_metrics(fast=True))
    path = tmp_path / "deep" / "predictions.jsonl"
    write_rows(path, result.caption_rows)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["video_id"] for row in rows] == ["video0", "video1"]
    assert rows[0]["references"] == REFERENCES["video0"]
    assert rows[0]["scores"]["CIDEr"] == result.caption_rows[0].scores["CIDEr"]
    assert next(iter(result.tables()["predictions"][0])) == "video_id"
    assert [path.name for path in path.parent.iterdir()] == ["predictions.jsonl"]
