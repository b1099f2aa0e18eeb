"""The file of a captioning job: every format, resumed from its content, complete at all times."""

import csv
import json
import resource
from dataclasses import replace

import pytest

from videoblip2.errors import InputError
from videoblip2.jobs.forms import COLUMNS, Row, subtitles, write_rows
from videoblip2.jobs.rows import RowFile, merge, read_row_file

NINE = ("path", "video_id", "caption", "score", "ended", "start", "end", "model_version", "error")
ROWS = [
    Row("a.mp4", "a", 'a "red" ball, \u2028 rolling', -0.5, True, 0.0, 2.5, "m/1", sha256="1"),
    Row("b.mp4", "b", error="b.mp4: damaged", model_version="m/1"),
]


def read(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_table(path).to_pylist()
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_form_holds_the_nine_columns_and_the_exact_text(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    write_rows(path, ROWS)
    good, bad = read(path)
    assert set(NINE) <= good.keys() and good["caption"] == ROWS[0].caption and float(good["score"]) == -0.5
    assert bad["error"] == "b.mp4: damaged" and not bad["caption"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_job_resumes_with_the_rows_it_has_and_tries_failures_again(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    with RowFile(path, "m/1", "") as file:
        file.add(ROWS)
    with RowFile(path, "m/1", "") as file:
        assert file.done == {"a.mp4": "1"}
        file.add([Row("b.mp4", "b", "a dog", -1.0, True, model_version="m/1", sha256="2")])
        file.add([Row("a.mp4", "a", "a new file", -1.0, True, model_version="m/1", sha256="3")])
        file.finish(["a.mp4", "b.mp4"])
    assert [entry["caption"] for entry in read(path)] == ["a new file", "a dog"]
    assert [entry["sha256"] for entry in read(path)] == ["3", "2"]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    path = tmp_path / "out.jsonl"
    with RowFile(path, "m/1", "") as file:
        file.add(ROWS[:1])
    with path.open("a") as text:
        text.write('{"path": "b.mp4", "capt')
    with RowFile(path, "m/1", "") as file:
        assert file.done.keys() == {"a.mp4"}
    assert len(read(path)) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_after_a_changed_file_are_on_disk_at_once(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    with RowFile(path, "m/1", "") as file:
        file.add(ROWS[:1])
    with RowFile(path, "m/1", "") as file:
        file.add([Row("a.mp4", "a", "a new file", -1.0, True, model_version="m/1", sha256="3")])
        file.add([Row("c.mp4", "c", "a cat", -1.0, True, model_version="m/1", sha256="4")])
        assert [row.path for row in read_row_file(path)] == ["a.mp4", "c.mp4"]


def test_a_job_stopped_before_its_first_row_goes_on(tmp_path):
    for _ in range(2):
        with RowFile(tmp_path / "out.csv", "m/1", "") as file:
            assert not file.done


def test_a_failure_does_not_replace_the_caption_of_an_earlier_run(tmp_path):
    path = tmp_path / "out.jsonl"
    with RowFile(path, "m/1", "") as file:
        file.add(ROWS[:1])
    with RowFile(path, "m/1", "") as file:
        file.add([Row("a.mp4", "a", error="a.mp4: no such file", model_version="m/1")])
    assert read_row_file(path) == ROWS[:1]


def test_a_video_with_a_row_that_failed_or_was_cut_short_is_done_again(tmp_path):
    path, told = tmp_path / "out.jsonl", {"model_version": "m/1", "sha256": "1"}
    good, bad = Row("a", "a", "yes", question="x", **told), Row("a", "a", error="memory", question="y", **told)
    with RowFile(path, "m/1", "") as file:
        file.add([good, bad])
    for _ in range(2):
        with RowFile(path, "m/1", "") as file:
            assert file.done == {} and file.rows == [good]
            file.add([bad])
    with RowFile(path, "m/1", "") as file:
        file.add([good, replace(bad, caption="no", error=None)])
        assert len(file.rows) == 2
    with path.open("a") as text:
        text.write('{"path": "a", "vid')
    with RowFile(path, "m/1", "") as file:
        assert file.done == {}


def test_a_full_disk_leaves_no_half_line(tmp_path):
    path = tmp_path / "out.jsonl"
    with RowFile(path, "m/1", "") as file:
        file.add(ROWS[:1])
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, limits[1]))
        try:
            with pytest.raises(InputError, match="rows already written are kept"):
                file.add(ROWS[1:])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before


@pytest.mark.parametrize(("version", "options"), [("m/2", ""), ("m/1", "beams=3")])
def test_rows_of_another_model_or_other_options_are_not_mixed(tmp_path, version, options):
    with RowFile(tmp_path / "out.jsonl", "m/1", "") as file:
        file.add([*ROWS, Row("c.mp4", "c", "x", model_version="m/1", options="")])
    with pytest.raises(InputError, match=rf"'m/1' \(greedy\) and '{version}' \({options or 'greedy'}"):
        RowFile(tmp_path / "out.jsonl", version, options)
    assert len(read(tmp_path / "out.jsonl")) == 3
    write_rows(tmp_path / "other.jsonl", [Row("d.mp4", "d", "x", model_version=version, options=options)])
    with pytest.raises(InputError, match="would mix captions"):
        merge(tmp_path / "all.jsonl", [tmp_path / "out.jsonl", tmp_path / "other.jsonl"])


def test_two_writers_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "mine.csv").write_text("my own table")
    with pytest.raises(InputError, match="did not write it"):
        RowFile(tmp_path / "mine.csv", "m/1", "")
    (tmp_path / "mine.jsonl").write_text('["not a row"]\n')
    with pytest.raises(InputError, match="line 1: not a row"):
        RowFile(tmp_path / "mine.jsonl", "m/1", "")
    (tmp_path / "one.jsonl").write_text('{"mine": 1}')
    with pytest.raises(InputError, match="last line is not a row"):
        RowFile(tmp_path / "one.jsonl", "m/1", "")
    assert (tmp_path / "one.jsonl").read_text() == '{"mine": 1}'
    with RowFile(tmp_path / "out.jsonl", "m/1", ""), pytest.raises(InputError, match="another process is writing"):
        RowFile(tmp_path / "out.jsonl", "m/1", "")
    with pytest.raises(InputError, match=r"\.xlsx is not an output format"):
        RowFile(tmp_path / "out.xlsx", "m/1", "")


def test_subtitles_have_clock_times_and_one_cue_a_row():
    rows = [Row("a", "a", "a <b> &\n\nc", start=3661.5, end=3662.0), Row("a", "a", "first", start=0.0, end=3661.5)]
    assert subtitles(rows, ".srt") == (
        "1\n00:00:00,000 --> 01:01:01,500\nfirst\n\n2\n01:01:01,500 --> 01:01:02,000\na <b> & c\n"
    )
    assert subtitles(rows, ".vtt").startswith("WEBVTT\n\n00:00:00.000 --> 01:01:01.500\nfirst\n\n")
    assert "a &lt;b&gt; &amp; c" in subtitles(rows, ".vtt")


def test_subtitles_of_several_videos_are_a_folder(tmp_path):
    path = tmp_path / "subs.srt"
    write_rows(path, ROWS[:1])
    assert path.is_file()
    write_rows(path, [ROWS[0], Row("c.mp4", "c", "a cat", start=0.0, end=1.0)])
    assert {file.name for file in path.iterdir()} == {"a.srt", "c.srt"}


def test_subtitles_of_two_files_of_one_name_are_apart(tmp_path):
    write_rows(tmp_path / "subs.vtt", [Row(f"{name}/a.mp4", "a", name, start=0.0, end=1.0) for name in ("x", "y")])
    assert {file.name for file in (tmp_path / "subs.vtt").iterdir()} == {"x-a.mp4.vtt", "y-a.mp4.vtt"}


def test_merging_keeps_what_failed_in_part_and_ignores_other_files(tmp_path):
    rows = [Row("a", "a", "x", start=0.0, end=4.0), Row("a", "a", start=4.0, end=8.0, error="memory")]
    write_rows(tmp_path / "all.1-of-1.jsonl", rows)
    write_rows(tmp_path / "all.1-of-1.old.jsonl", rows)
    assert merge(tmp_path / "all.jsonl", []) == rows


def test_shards_are_merged_and_a_missing_one_is_named(tmp_path):
    out = tmp_path / "all.jsonl"
    write_rows(tmp_path / "all.1-of-2.jsonl", ROWS)
    with pytest.raises(InputError, match=r"all\.2-of-2\.jsonl is missing"):
        merge(out, [])
    write_rows(tmp_path / "all.2-of-2.jsonl", [Row("b.mp4", "b", "a dog", model_version="m/1")])
    assert [row.caption for row in merge(out, [])] == [ROWS[0].caption, "a dog"]
    assert read_row_file(out)[1].error is None


def test_a_row_read_back_is_the_row_that_was_written(tmp_path):
    row = Row("a", "a", "x", -1.0, True, 0.0, 1.0, "m", None, "q?", 2, (("x", 0.1, 0.2),), "beams=2", "f")
    write_rows(tmp_path / "out.jsonl", [row])
    assert read_row_file(tmp_path / "out.jsonl") == [row]
    assert COLUMNS[:9] == NINE
