"""`ID#start-end` is a segment of the file of ID: its frames and samples between these seconds."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from videoblip2.errors import InputError
from videoblip2.features.extract import ExtractionRun, extract_features
from videoblip2.features.media import stream_audio, stream_frames, write_video
from videoblip2.features.store import FeatureStore
from videoblip2.files import segment_of

RATE = 16_000


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """20 s at 10 frames per second: the gray level rises by 1 per frame, the loudness by 0.02 per second."""
    frames = np.arange(200, dtype=np.uint8)[:, None, None, None].repeat(64, 1).repeat(64, 2).repeat(3, 3)
    tone = np.sin(2 * np.pi * 440 * np.arange(20 * RATE) / RATE) * (0.02 * (1 + np.arange(20).repeat(RATE)))
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, frames, 10, tone.astype(np.float32), RATE)
    return path


def remuxed(path, out, **options):
    """The same packets in another container."""
    with av.open(str(path)) as source, av.open(str(out), "w", options=options) as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return out


def levels(path, span, fps=2):
    return [frame.mean() for frame in stream_frames(path, fps, span=span)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("span", [(0.0, 2.0), (7.3, 9.0), (12.5, 30.0), (3.0, 3.1)])
def test_frames_and_sound_are_those_of_the_span(film, tmp_path, suffix, span):
    path = film if suffix == "mp4" else remuxed(film, tmp_path / f"film.{suffix}")
    end = min(span[1], 20.0)
    wanted = [10 * second for second in np.arange(span[0], end, 0.5)]
    np.testing.assert_allclose(levels(path, span), wanted, atol=3)
    sound = np.concatenate(list(stream_audio(path, RATE, span=span)))
    assert abs(len(sound) / RATE - (end - span[0])) < 0.1
    if end - span[0] > 1:
        first, last = (np.abs(part).max() for part in (sound[: RATE // 10], sound[-RATE // 5 : -RATE // 10]))
        np.testing.assert_allclose([first, last], [0.02 * (1 + int(span[0])), 0.02 * (1 + int(end - 0.15))], rtol=0.2)


def test_a_clock_that_starts_late_is_counted_from_the_file_s_start(film, tmp_path):
    path = remuxed(film, tmp_path / "late.mkv", output_ts_offset="100")
    np.testing.assert_allclose(levels(path, (7.0, 8.0)), [70, 75], atol=3)


def test_a_segment_beyond_the_end_is_named(film):
    with pytest.raises(InputError, match=r"film\.mp4: ends at 20\.0 s, the segment begins at 25\.0"):
        levels(film, (25.0, 30.0))


@pytest.mark.parametrize(
    ("video_id", "parts"),
    [
        ("v_a-b#0.28-55.15", ("v_a-b", (0.28, 55.15))), ("a#1-2#3-4", ("a#1-2", (3.0, 4.0))),
        ("video7", ("video7", None)), ("a#b", ("a#b", None)), ("a#1-", ("a#1-", None)), ("#1-2", ("#1-2", None)),
    ],
)  # fmt: skip
def test_ids_of_segments(video_id, parts):
    assert segment_of(video_id) == parts


def test_a_store_of_segments(encoders, film, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("film.mp4", "other.mp4", "odd#1-2.mp4"):
        (tmp_path / "in" / name).write_bytes(film.read_bytes())
    paths, out = sorted((tmp_path / "in").iterdir()), tmp_path / "out"
    ids = ["film#2-4", "film#3-5.5", "film#19.5-20", "film", "film#30-40", "film#5-4", "odd#1-2", "gone#1-2"]
    four = replace(encoders, settings=encoders.settings.model_copy(update={"fps": 2.0}))
    report = extract_features(paths, out, four, ExtractionRun(ids=ids))
    assert report.done == ["film#2-4", "film#3-5.5", "film#19.5-20", "film", "odd#1-2"]
    assert report.missing == ["gone#1-2"] and list(report.failed) == ["film#30-40", "film#5-4"]
    assert "must end after it starts" in report.failed["film#5-4"]
    store = FeatureStore(out)
    rows = {name: (len(store.array("video", name)), len(store.array("audio", name))) for name in store.ids}
    assert rows == {
        "film": (40, 20),
        "odd#1-2": (40, 20),
        "film#2-4": (4, 2),
        "film#3-5.5": (5, 3),
        "film#19.5-20": (1, 1),
    }
    np.testing.assert_allclose(store.array("video", "film#2-4"), store.array("video", "film")[4:8], atol=1e-4)
    again = extract_features(paths, out, four, ExtractionRun(ids=[*ids[:5], "film#6-7"]))
    assert again.done == ["film#6-7"] and len(again.skipped) == 4
    few = replace(encoders, settings=encoders.settings.model_copy(update={"frames": 3}))
    extract_features(paths, tmp_path / "few", few, ExtractionRun(ids=["film#2-12"]))
    assert len(FeatureStore(tmp_path / "few").array("video", "film#2-12")) == 3


def test_the_command_takes_annotations(encoders, film, tmp_path):
    from videoblip2.cli import features

    videos = [{"video_id": name, "category": 0, "captions": ["a"]} for name in ("film#2-4", "film#9-10", "gone")]
    (tmp_path / "train.json").write_text(json.dumps(videos))
    models = ["--clip", encoders.clip.identity.name, "--clap", encoders.clap.identity.name]
    words = ["extract", film.parent, "--out", tmp_path / "out", "--annotations", tmp_path / "train.json", *models]
    run = CliRunner().invoke(features.app, [str(word) for word in words])
    assert run.exit_code == 0 and "no file for: 1 (gone)" in run.output and "2 extracted" in run.output
