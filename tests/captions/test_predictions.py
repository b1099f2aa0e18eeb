"""Rows of captions and answers survive their files, whatever characters they hold."""

import json

import pytest

from videoblip2.captions.predictions import AnswerRow, CaptionRow, read_rows, write_rows


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n", "\r\n"])
def test_line_separators_inside_texts_end_no_row(tmp_path, separator):
    captions = [CaptionRow(f"v{n}", f"a{separator}b", {"CIDEr": 0.5}, (f"c{separator}d", "e")) for n in range(2)]
    answers = [AnswerRow.of("v0", "7", f"what{separator}is it?", f"a{separator}", "dog")]
    for kind, rows in (("captions", captions), ("answers", answers)):
        write_rows(tmp_path / "rows.jsonl", rows)
        assert read_rows(tmp_path / "rows.jsonl", kind) == rows


def test_a_malformed_line_is_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"video_id": "v0"}) + "\n")
    with pytest.raises(ValueError, match="caption"):
        read_rows(tmp_path / "rows.jsonl", "captions")
