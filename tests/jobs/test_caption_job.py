"""A captioning job on a stand-in model: what is captioned, what fails, what is skipped; segments and sources."""

import gc
import io
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from videoblip2.captioner import Caption
from videoblip2.config import Decoding
from videoblip2.errors import InputError
from videoblip2.features.engines import VideoOutcome
from videoblip2.features.manifest import VideoNote
from videoblip2.features.sources import VideoSource, find_sources, keepable
from videoblip2.imports import threads_of_torch
from videoblip2.jobs.caption import CaptionJob, CaptionOptions, JobPlan
from videoblip2.jobs.forms import ROW, Row, write_rows
from videoblip2.jobs.segments import cut, merged, shot_changes
from videoblip2.modality import ExplainedWord


class StandIn:
    """Says how many frames and windows it was shown; remembers its batches."""

    version = "m/1"
    media_encoders = SimpleNamespace(
        settings=SimpleNamespace(fps=2.0), clip=SimpleNamespace(rows=1), every_frame=None, for_model=lambda most: None
    )
    model = SimpleNamespace(config=SimpleNamespace(max_positions=32))

    def __init__(self):
        self.batches = []

    def timeline(self, item, frames=None):
        return (frames or len(item["video"])) / 2.0, 1.0

    def caption(self, items, prompts, decoding, seeds):
        self.batches.append((len(items), prompts, seeds))
        if any(len(item["video"]) == 13 for item in items):
            raise RuntimeError("an unlucky number of frames")
        return [Caption(f"{len(item['video'])} frames", -1.0) for item in items]

    def explain(self, items, captions, prompts):
        return [tuple(ExplainedWord(word, 1.2346, -0.5) for word in caption.split()) for caption in captions]


@pytest.fixture()
def encode(monkeypatch):
    """Videos "N.mp4" have N frames; "bad.mp4" fails. Returns what was asked to skip."""
    skipped = []

    def encode_videos(files, skip, encoders, workers, watches, pause):
        for key, path in files.items():
            if skip(key, f"sha of {key}"):
                skipped.append(key)
                yield [VideoOutcome(key)]
            elif path.stem == "bad":
                yield [VideoOutcome(key, failure=f"{path}: damaged; fetch it again")]
            else:
                frames = int(path.stem)
                note = VideoNote(audio="present", source=path.name, sha256=f"sha of {key}")
                features = {"video": np.eye(64)[:frames], "audio": np.zeros((frames // 2, 4))}
                yield [VideoOutcome(key, note, features=features)]

    monkeypatch.setattr("videoblip2.features.engines.encode_videos", encode_videos)
    return skipped


def run(options=CaptionOptions(), names=("4.mp4", "bad.mp4", "6.mp4"), done=()):
    model = StandIn()
    rows = CaptionJob(model, JobPlan(options=options)).run([VideoSource(name) for name in names], dict(done))
    return model, {row.path: row for rows in rows for row in rows}


def test_a_bad_video_is_a_row_and_the_others_are_captioned(encode):
    _, rows = run()
    assert {path: row.caption for path, row in rows.items()} == {
        "4.mp4": "4 frames",
        "bad.mp4": None,
        "6.mp4": "6 frames",
    }
    assert rows["bad.mp4"].error == "bad.mp4: damaged; fetch it again"
    good = rows["6.mp4"]
    assert (good.video_id, good.start, good.end, good.score, good.ended) == ("6", 0.0, 3.0, -1.0, True)
    assert (good.model_version, good.sha256) == ("m/1", "sha of 6.mp4")


def test_words_are_explained_where_that_is_asked_for(encode, tmp_path):
    _, rows = run(CaptionOptions(explain=True))
    assert rows["4.mp4"].words == (("4", 1.2346, -0.5), ("frames", 1.2346, -0.5)) and rows["bad.mp4"].words is None
    assert str(rows["4.mp4"]) == "4.mp4: 4 frames  [sound: 4 1.2, frames 1.2]"
    for suffix in (".jsonl", ".csv", ".parquet"):
        write_rows(tmp_path / f"rows{suffix}", [rows["4.mp4"]])
    (line,) = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert ROW.validate_json(line) == rows["4.mp4"] and '"words": [["4", 1.2346, -0.5], ' in line
    assert '[[""4"", 1.2346, -0.5], ' in (tmp_path / "rows.csv").read_text()
    assert all(row.words is None for row in run()[1].values())


def test_what_cannot_be_decoded_fails_alone(encode):
    _, rows = run(CaptionOptions(batch_size=3), ("4.mp4", "13.mp4", "6.mp4", "5.mp4"))
    assert rows["13.mp4"].error == "an unlucky number of frames"
    assert [rows[name].caption for name in ("4.mp4", "6.mp4", "5.mp4")] == ["4 frames", "6 frames", "5 frames"]


def test_files_that_have_not_changed_are_skipped(encode):
    _, rows = run(done={"4.mp4": "sha of 4.mp4", "6.mp4": "of another file"})
    assert encode == ["4.mp4"] and rows.keys() == {"bad.mp4", "6.mp4"}


def test_each_question_is_asked_of_each_video(encode):
    model = StandIn()
    job = CaptionJob(model, JobPlan(options=CaptionOptions(questions=("what moves?", "who?"))))
    rows = [row for rows in job.run([VideoSource("4.mp4"), VideoSource("6.mp4")], {}) for row in rows]
    assert [(row.path, row.question) for row in rows] == [
        (path, question) for path in ("4.mp4", "6.mp4") for question in ("what moves?", "who?")
    ]
    assert all("what moves?" in prompts[0] for _, prompts, _ in model.batches)


def test_samples_have_seeds_of_their_own(encode):
    model, _ = run(CaptionOptions(Decoding(sampled=True), samples=3), ["4.mp4"])
    assert [seeds for _, _, seeds in model.batches] == [[1, 2, 3]]
    with pytest.raises(InputError, match="--samples 2: greedy and beam decoding give one"):
        CaptionOptions(samples=2)


def test_segments_cover_the_video_and_equal_neighbors_are_merged(encode):
    rows = [
        row
        for rows in CaptionJob(StandIn(), JobPlan(options=CaptionOptions(segments=2.0))).run(
            [VideoSource("10.mp4")], {}
        )
        for row in rows
    ]
    assert [(row.start, row.end, row.caption) for row in rows] == [(0.0, 4.0, "4 frames"), (4.0, 5.0, "2 frames")]


def test_stored_patch_tokens_last_as_long_as_their_frames(tmp_path):
    model, notes = StandIn(), {"a": VideoNote(frames=6, sha256="of a file")}
    item = {"video": np.ones((24, 3)), "audio": np.zeros((0, 4))}
    model.store = lambda root: SimpleNamespace(features=lambda name: item, manifest=SimpleNamespace(videos=notes))
    rows = [
        row
        for rows in CaptionJob(model, JobPlan(store=tmp_path)).run([VideoSource("a"), VideoSource("b")], {})
        for row in rows
    ]
    assert [(row.path, row.end, row.sha256) for row in rows] == [("a", 3.0, ""), ("b", 12.0, "")]


def test_with_patch_tokens_a_segment_has_whole_frames():
    frames = np.repeat(np.arange(10.0), 4)[:, None] * np.ones((1, 3))  # four patches each
    parts = cut({"video": frames}, 2.0, None, 1.5, patches=4)
    assert [(part.start, part.end) for part in parts] == [(0.0, 1.5), (1.5, 3.0), (3.0, 4.5), (4.5, 5.0)]
    assert [sorted(set(part.item["video"][:, 0])) for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert all(len(part.item["video"]) % 4 == 0 for part in parts)
    still = np.tile(np.eye(4), (6, 1))  # patches that differ, frames that do not
    assert len(cut({"video": still}, 2.0, None, None, patches=4)) == 1


def test_a_segment_hears_its_own_windows():
    item = {"video": np.zeros((10, 2)), "audio": np.arange(5)[:, None]}
    parts = cut(item, fps=2.0, window=1.0, every=2.0)
    assert [part.item["audio"].ravel().tolist() for part in parts] == [[0, 1], [2, 3], [4]]


def test_a_scene_begins_where_the_picture_changes():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 32))
    frames = np.stack([scene + 0.05 * rng.normal(size=32) for scene in [first] * 6 + [second] * 4])
    assert shot_changes(frames) == [6]
    assert shot_changes(frames[:1]) == shot_changes(np.repeat(frames[:1], 5, axis=0)) == []


def test_scenes_begin_where_frames_changed_or_halfway_between_two_that_differ():
    item = {"video": np.eye(8)[[0, 0, 0, 1, 1, 1, 1, 1]], "audio": np.arange(8)[:, None]}
    parts = cut(item, 1.0, 1.0, None)
    assert [(part.start, part.end, len(part.item["video"])) for part in parts] == [(0.0, 2.5, 3), (2.5, 8.0, 5)]
    parts = cut(item, 1.0, 1.0, None, changes=[2.2, 2.4, 6.0, 9.0])
    assert [(part.start, part.end) for part in parts] == [(0.0, 2.2), (2.2, 2.4), (2.4, 6.0), (6.0, 8.0)]
    assert [len(part.item["video"]) for part in parts] == [3, 1, 3, 2]
    assert [part.item["audio"].ravel().tolist() for part in parts] == [[0, 1, 2], [2], [2, 3, 4, 5], [6, 7]]


def test_merging_keeps_questions_apart():
    rows = [Row("a", "a", "yes", -1.0, True, n, n + 1, question=q) for n, q in ((0, "x"), (1, "x"), (1, "y"))]
    assert [(row.start, row.end, row.question) for row in merged(rows)] == [(0, 2, "x"), (1, 2, "y")]


def test_merging_keeps_samples_and_failures_and_joins_across_questions():
    rows = [Row("a", "a", "yes", -1.0, True, n, n + 1, question=q) for n in (0, 1) for q in ("x", "y")]
    assert [(row.start, row.end, row.question) for row in merged(rows)] == [(0, 2, "x"), (0, 2, "y")]
    rows = [Row("a", "a", "yes", -1.0, True, 0, 1, sample=sample) for sample in (1, 2)]
    assert merged(rows) == rows
    rows = [Row("a", "a", start=n, end=n + 1, error="memory") for n in (0, 1)]
    assert merged(rows) == rows


@pytest.mark.parametrize("segments", [0.0, -1.0, "shots"])
def test_segments_last_some_time(segments):
    with pytest.raises(InputError, match="--segments"):
        CaptionOptions(segments=segments)


def test_two_videos_of_one_name_are_not_kept_as_one():
    found = keepable(
        [
            VideoSource("x/a.mp4"),
            VideoSource("y/a.mp4"),
            VideoSource("b.mp4"),
            VideoSource("\udce9.mp4"),
            VideoSource("b", "missing"),
        ]
    )
    assert [bool(source.error) for source in found] == [True, True, False, True, True]
    assert found[-1].error == "missing"


def test_captions_wait_a_moment_for_others_to_fill_their_batch(encode):
    model, rows = run(CaptionOptions(batch_size=5), [f"{number}.mp4" for number in range(1, 9)])
    assert [size for size, *_ in model.batches] == [5, 3] and len(rows) == 8


def test_the_last_captions_are_made_with_the_pipeline_s_threads(monkeypatch):
    """The pipeline keeps its share of torch's threads until it ends."""
    before, model, seen = torch.get_num_threads(), StandIn(), []

    def encode_videos(files, *_):
        with threads_of_torch(before + 3):
            yield [VideoOutcome(key, features={"video": np.eye(4), "audio": np.zeros((2, 4))}) for key in files]
            yield []

    def caption(items, *_):
        seen.append(torch.get_num_threads())
        return StandIn.caption(model, items, *_)

    monkeypatch.setattr("videoblip2.features.engines.encode_videos", encode_videos)
    monkeypatch.setattr(model, "caption", caption)
    assert len(list(CaptionJob(model).run([VideoSource("4.mp4"), VideoSource("6.mp4")], {}))) == 2
    assert seen == [before + 3] and torch.get_num_threads() == before


def test_rows_do_not_wait_for_the_next_video(encode, monkeypatch):
    arrived = threading.Event()

    def stored(self, sources, done):
        for name, features in (("a", {"video": np.eye(4), "audio": np.zeros((2, 4))}), ("b", None)):
            yield VideoOutcome(name, features=features, failure="slow" if features is None else None)
            assert features is None or arrived.wait(30), "the first row waits for the second video"

    monkeypatch.setattr(CaptionJob, "_stored", stored)
    monkeypatch.setattr("videoblip2.jobs.caption.LINGER", 0.01)
    paths = []
    for (row,) in CaptionJob(StandIn(), JobPlan(store=Path("features"))).run([], {}):
        arrived.set()
        paths.append(row.path)
    assert paths == ["a", "b"]


def test_a_job_that_is_left_early_ends_its_threads(encode):
    before = threading.active_count()
    rows = CaptionJob(StandIn()).run([VideoSource(f"{number}.mp4") for number in range(1, 50)], {})
    next(rows)
    rows.close()
    assert threading.active_count() == before


def test_two_models_in_folders_of_one_name_are_told_apart(tmp_path):
    for name, weights in (("ce", b"1"), ("scst", b"2"), ("copy", b"1")):
        (tmp_path / name / "best").mkdir(parents=True)
        (tmp_path / name / "best/model.safetensors").write_bytes(weights)
        (tmp_path / name / "best/config.json").touch()
    ce, scst, copy = (JobPlan(str(tmp_path / name / "best")).version for name in ("ce", "scst", "copy"))
    assert ce == copy != scst and ce.startswith("best-")


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("clips/deep/b.mp4", "clips/a.webm", "clips/notes.txt", "empty/notes.txt", "c d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"0")
    (tmp_path / "list.txt").write_text("# mine\nc d.mp4\n\nclips/deep/*.mp4\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["clips"], ["clips/a.webm", "clips/deep/b.mp4"]),
        (["clips/**/*.mp4"], ["clips/deep/b.mp4"]),
        (["@list.txt"], ["c d.mp4", "clips/deep/b.mp4"]),
        (["-", "c d.mp4"], ["clips/a.webm", "clips/deep/b.mp4", "c d.mp4"]),
        (["c d.mp4", "./c d.mp4", "clips/a.webm"], ["c d.mp4", "clips/a.webm"]),
    ],
)
def test_sources_are_files_folders_patterns_lists_and_standard_input(folder, monkeypatch, words, paths):
    monkeypatch.setattr("sys.stdin", io.StringIO("clips\n"))
    assert [source.path for source in find_sources(words)] == paths


def test_what_holds_no_video_is_one_error_and_the_rest_goes_ahead(folder, capsys):
    found = find_sources(["missing.mp4", "empty", "nothing*.mp4", "c d.mp4"])
    assert "ignored in empty, not videos by suffix or content: 1 file (empty/notes.txt)" in capsys.readouterr().err
    assert [bool(source.error) for source in found] == [True, True, True, False]
    with pytest.raises(InputError, match=r"@nolist\.txt"):
        find_sources(["@nolist.txt"])


def test_an_unreadable_folder_is_one_error_and_hidden_files_are_no_videos(folder, monkeypatch):
    (folder / "clips/.trash").mkdir()
    (folder / "clips/.trash/old.mp4").write_bytes(b"0")
    scan = os.scandir

    def scandir(place):
        if str(place).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr("os.scandir", scandir)
    assert [(source.path, bool(source.error)) for source in find_sources(["clips"])] == [
        ("clips/a.webm", False),
        ("clips/deep", True),
    ]


@pytest.mark.parametrize("word", ["-", "@names.txt"])
def test_names_in_lists_need_not_be_utf8_and_may_begin_like_a_comment(folder, monkeypatch, word):
    names = b"caf\xe9.mp4\n#hash.mp4\n# hash.mp4\n"
    (folder / "#hash.mp4").write_bytes(b"0")
    (folder / "names.txt").write_bytes(names)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(names), encoding="utf-8"))
    assert [source.path for source in find_sources([word], shard=(1, 1))] == ["caf\udce9.mp4", "#hash.mp4"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_list_that_is_no_text_is_refused(folder, encoding):
    (folder / "names.txt").write_text("c d.mp4\n", encoding=encoding)
    with pytest.raises(InputError, match=r"@names\.txt: cannot be read .*; give a text file"):
        find_sources(["@names.txt"])


def test_shards_divide_the_videos(folder):
    every = [find_sources(["clips", "c d.mp4"], shard=(part, 3)) for part in (1, 2, 3)]
    assert sorted(source.path for part in every for source in part) == ["c d.mp4", "clips/a.webm", "clips/deep/b.mp4"]


def test_a_model_is_opened_without_garbage_collection_and_by_one_thread(monkeypatch):
    def load(model, encoders):
        raise InputError(f"looking for garbage: {gc.isenabled()}, threads: {torch.get_num_threads()}")

    monkeypatch.setattr("videoblip2.predict.load_captioner", load)
    with threads_of_torch(2):
        with pytest.raises(InputError, match="garbage: False, threads: 1"):
            JobPlan("m").open()
        assert gc.isenabled() and torch.get_num_threads() == 2
