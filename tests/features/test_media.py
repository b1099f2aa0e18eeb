"""Decoding: frames by time, audio mixed to mono, three audio situations, and files that are not videos."""

import struct
import tomllib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from packaging.requirements import Requirement

from videoblip2.config import InputError
from videoblip2.features import media
from videoblip2.features.frames import planned
from videoblip2.features.media import (
    ONE_THREAD,
    decode_audio,
    read_header,
    stream_frames,
    stream_untrusted,
    write_video,
)
from videoblip2.features.media_features import FeatureSettings, choose_frames

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "msrvtt" / "videos"
RATE = 16_000


def gray_ramp(count: int) -> np.ndarray:
    """Frame k has the gray level 10 k, which identifies a decoded frame."""
    return np.broadcast_to((np.arange(count) * 10).astype(np.uint8)[:, None, None, None], (count, 64, 48, 3))


def frames_of(path: Path, fps: float) -> np.ndarray:
    return np.stack(list(stream_frames(path, fps)))


def numbers(frames: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / 10) for frame in frames]


def tone(seconds: float, hertz: float = 440) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def mux(path: Path, times: list[float], *, seconds: float = 0, **container_options: object) -> Path:
    """A file with a video frame at each of `times` (its level is its index times 10) and a stereo tone."""
    with av.open(str(path), "w", **container_options) as container:
        video = container.add_stream("libx264", rate=100)
        video.width, video.height, video.pix_fmt = 48, 64, "yuv420p"
        video.codec_context.time_base = Fraction(1, 100)
        video.codec_context.max_b_frames = 0
        sound = container.add_stream("aac", rate=RATE, layout="stereo")
        stereo = np.stack([tone(seconds), np.zeros(round(seconds * RATE), np.float32)])
        for time, picture in zip(times, gray_ramp(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = round(time * 100), Fraction(1, 100)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if seconds:
            samples = av.AudioFrame.from_ndarray(stereo, format="fltp", layout="stereo")
            samples.sample_rate = RATE
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    return path


def test_frames_come_at_the_asked_rate(tmp_path):
    write_video(tmp_path / "v.mp4", gray_ramp(16), 8, None, RATE)
    frames = frames_of(tmp_path / "v.mp4", 4)
    assert frames.shape == (8, 64, 48, 3) and frames.dtype == np.uint8
    assert numbers(frames) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert numbers(frames_of(tmp_path / "v.mp4", 16)) == sorted([*range(16), *range(15)]), "frames are repeated"


@pytest.fixture(scope="module")
def between(tmp_path_factory):
    """Moving noise, encoded with B-frames, of which some are references and some are not."""
    level = np.random.default_rng(0).integers(0, 256, (60, 96, 96, 1)).astype(np.uint8)
    frames = np.repeat(np.stack([np.roll(level[0] // 2 + level[k] // 8, k, axis=0) for k in range(60)]), 3, axis=3)
    write_video(path := tmp_path_factory.mktemp("between") / "v.mp4", frames, 30, None, RATE)
    return path


def decoded_by(monkeypatch, path, fps, **how):
    """The frames, and how many were decoded for them."""
    count, decode = [], media.decoded
    for module in ("frames", "media"):
        name = f"videoblip2.features.{module}.decoded"
        monkeypatch.setattr(name, lambda *given: (count.append(1) or frame for frame in decode(*given)))
    frames = list(stream_frames(path, fps, **how))
    monkeypatch.undo()
    return frames, len(count)


@pytest.mark.parametrize("fps", [1, 4, 7.3, 15, 30, 60])
@pytest.mark.parametrize("options", [None, ONE_THREAD])
def test_frames_that_nobody_asked_for_are_left_out_and_the_others_are_the_same(monkeypatch, between, fps, options):
    every, most = decoded_by(monkeypatch, between, fps, watch=lambda small, time: None)
    frames, few = decoded_by(monkeypatch, between, fps, options=options)
    assert np.array_equal(frames, every) and most == 60
    assert few < 50 if fps < 10 else few <= 60


@pytest.mark.parametrize(("kept", "opened"), [(2**24, 1), (1000, 2)])
def test_a_clip_is_opened_once_and_a_film_twice(monkeypatch, between, kept, opened):
    every, count, opens = list(stream_frames(between, 4)), [], av.open
    monkeypatch.setattr("videoblip2.features.frames.KEPT", kept)
    monkeypatch.setattr(av, "open", lambda *given, **options: count.append(1) or opens(*given, **options))
    assert np.array_equal(list(stream_frames(between, 4)), every) and len(count) == opened


def test_a_choice_of_frames_is_made_by_number_before_they_are_decoded(monkeypatch, between, tmp_path):
    every, asked = list(stream_frames(between, 8)), []
    assert np.array_equal(list(stream_frames(between, 8, pick=lambda n: asked.append(n) or [0, 5, n - 1])), [
        every[0], every[5], every[-1]
    ]) and asked == [len(every)] == [16]  # fmt: skip
    mux(tmp_path / "v.ts", [k / 10 for k in range(10)])  # its parts may have clocks of their own
    assert len(list(stream_frames(tmp_path / "v.ts", 10, pick=lambda n: [0]))) == 10


@pytest.mark.parametrize("place", [0, 3, 7])
def test_where_a_promised_frame_does_not_come_all_are_decoded(monkeypatch, between, place):
    every, some = list(stream_frames(between, 4)), list(stream_frames(between, 4, pick=lambda n: range(0, n, 3)))

    def promised(container, stream, fps):
        plan = planned(container, stream, fps)
        return replace(plan, wanted=[pts + (number >= place) for number, pts in enumerate(plan.wanted)])

    monkeypatch.setattr(media, "planned", promised)
    assert np.array_equal(list(stream_frames(between, 4)), every)
    assert np.array_equal(list(stream_frames(between, 4, pick=lambda n: range(0, n, 3))), some) and len(some) == 3


def test_frames_are_nearest_in_time_not_in_number(tmp_path):
    path = mux(tmp_path / "vfr.mp4", [0, 0.1, 0.2, 0.9, 1.1, 2.4])
    assert numbers(frames_of(path, 1)) == [0, 3, 5]  # 0 s; 1 s lies between 0.9 and 1.1; 2 s is nearer to 2.4


def test_rotated_video_comes_out_upright(tmp_path):
    pictures = np.zeros((8, 64, 48, 3), np.uint8)
    pictures[:, :20, :20] = 250  # a bright corner, top left
    write_video(tmp_path / "v.mp4", pictures, 8, None, RATE)
    content = (tmp_path / "v.mp4").read_bytes()
    header = content.index(b"tkhd") + 4 + 40  # the display matrix of a version-0 track header
    quarter_clockwise = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content[:header] + quarter_clockwise + content[header + 36 :])
    frame = frames_of(tmp_path / "turned.mp4", 1)[0]
    assert frame.shape == (48, 64, 3)
    assert frame[:18, -18:].mean() > 200 and frame[:18, :18].mean() < 50, "the corner is at the top right now"


def test_max_frames_thins_over_the_whole_video(tmp_path):
    write_video(tmp_path / "v.mp4", gray_ramp(24), 8, None, RATE)
    kept = numbers(choose_frames(stream_frames(tmp_path / "v.mp4", 8), FeatureSettings(max_frames=5)))
    assert len(kept) == 5 and kept[0] == 0 and kept[-1] >= 20 and kept == sorted(kept)
    counts = [len(choose_frames(range(n), FeatureSettings(max_frames=4))) for n in (1, 4, 5, 9, 100)]
    assert counts == [1, 4, 4, 4, 4]


def test_audio_is_resampled_and_keeps_its_pitch(tmp_path):
    write_video(tmp_path / "v.mp4", gray_ramp(8), 8, tone(1.0), RATE)
    audio = decode_audio(tmp_path / "v.mp4")
    assert audio.dtype == np.float32 and audio.ndim == 1 and 48_000 <= len(audio) < 54_000
    spectrum = np.abs(np.fft.rfft(audio[:48_000]))
    assert spectrum.argmax() == pytest.approx(440, abs=2)
    assert np.abs(audio[2000:40_000]).max() == pytest.approx(0.5, abs=0.05)


def test_stereo_is_mixed_by_the_mean(tmp_path):
    audio = decode_audio(mux(tmp_path / "v.mp4", [0, 0.5, 1], seconds=1.0))
    assert np.abs(audio[5000:40_000]).max() == pytest.approx(0.25, abs=0.04)  # a tone of 0.5 on one of two channels


def test_silent_and_absent_audio_are_told_apart(tmp_path):
    write_video(tmp_path / "silent.mp4", gray_ramp(8), 8, np.zeros(RATE, np.float32), RATE)
    write_video(tmp_path / "absent.mp4", gray_ramp(8), 8, None, RATE)
    silent = decode_audio(tmp_path / "silent.mp4")
    assert len(silent) >= 48_000 and not silent.any()
    assert decode_audio(tmp_path / "absent.mp4") is None


def test_writing_is_deterministic_and_leaves_no_scraps(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, gray_ramp(8), 8, tone(1.0), RATE)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_odd_sizes_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"63x64.*even"):
        write_video(tmp_path / "v.mp4", np.zeros((2, 64, 63, 3), np.uint8), 8, None, RATE)
    assert not list(tmp_path.iterdir())


def test_mpeg4_stands_in_where_x264_is_not_built_in(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4", "aac"})
    write_video(tmp_path / "v.mp4", gray_ramp(8), 8, None, RATE)
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert numbers(frames_of(tmp_path / "v.mp4", 8)) == list(range(8))


def test_only_pyav_versions_that_can_read_files_are_allowed():
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    [allowed] = [r for r in map(Requirement, tomllib.loads(text)["project"]["dependencies"]) if r.name == "av"]
    assert av.__version__ in allowed.specifier and "17.0.0" in allowed.specifier
    assert "16.1.0" not in allowed.specifier, "its frames do not tell their transfer function"


def test_a_file_that_is_no_video_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    for decode in (lambda path: frames_of(path, 1), decode_audio):
        with pytest.raises(InputError, match=r"text\.mp4: not a readable video"):
            decode(tmp_path / "text.mp4")
        with pytest.raises(InputError, match=r"none\.mp4: no such file"):
            decode(tmp_path / "none.mp4")


def test_a_file_without_pictures_is_named(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(1.0)[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match=r"sound\.mp4: has no video stream"):
        frames_of(path, 1)
    assert decode_audio(path) is not None


@pytest.mark.parametrize("layout", ["faststart", "matroska"])
def test_of_a_truncated_file_the_rest_is_used_and_noted(tmp_path, layout):
    path = tmp_path / ("v.mkv" if layout == "matroska" else "v.mp4")
    options = {"options": {"movflags": "faststart"}} if layout == "faststart" else {}
    whole = mux(path, [k / 10 for k in range(40)], seconds=4.0, **options).read_bytes()
    for part in (0.4, 0.7, 0.9):
        path.write_bytes(whole[: int(part * len(whole))])
        caveats = []
        count = len(list(stream_frames(path, 10, caveats=caveats)))
        assert 0 < count < 40 and f"video: ends at {count / 10:.1f} of " in "; ".join(caveats)


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real videos (../shared/data/msrvtt/videos) are not here")
def test_real_videos():
    audio = {path.stem: decode_audio(path) for path in sorted(SHARED.glob("*.mp4"))}
    assert len(audio) == 12
    assert {name for name, sound in audio.items() if sound is None} == {"video7013", "video9771"}
    assert {name for name, sound in audio.items() if sound is not None and not sound.any()} == {"video7010"}
    frames = frames_of(SHARED / "video7010.mp4", 1)
    assert frames.shape == (18, 240, 525, 3) and frames.std() > 10, "stored as 320 x 240, in pixels of 1.64 : 1"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("v") / "v.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (16, 64, 48, 3), dtype=np.uint8)
    write_video(path, frames, 8, np.sin(np.arange(2 * 48_000) / 20).astype(np.float32), 48_000)
    return path


def test_frames_then_sound(video):
    *frames, sound = stream_untrusted(video, 4.0, 48_000, 10, 10**6)
    assert np.array_equal(np.stack(frames), frames_of(video, 4.0))
    assert np.array_equal(sound, decode_audio(video, 48_000))


def test_the_header_is_read(video):
    seconds, *size = read_header(video)
    assert size == [48, 64]
    assert seconds == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("seconds", "pixels", "message"), [(1.0, 10**6, "longer than 1 s"), (10, 3071, r"48x64, more than 3071 pixels")]
)
def test_too_long_and_too_large_are_refused_by_the_header_alone(video, monkeypatch, seconds, pixels, message):
    monkeypatch.setattr("videoblip2.features.media.stream_frames", lambda *given: pytest.fail("decoded"))
    with pytest.raises(InputError, match=message):
        next(stream_untrusted(video, 4.0, 48_000, seconds, pixels))


def test_a_header_that_tells_no_length_helps_nobody(tmp_path):
    """Two frames, an hour apart, in a container without a duration: at 4 frames per second, 14,400 frames."""
    path = tmp_path / "live.mkv"
    with av.open(str(path), "w", format="matroska", options={"live": "1"}) as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1)
        for second in (0, 3600):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 48, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = second, Fraction(1, 1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert read_header(path)[0] < 100
    taken = 0
    with pytest.raises(InputError, match="longer than 100 s"):
        for _ in stream_untrusted(path, 4.0, 48_000, 100, 10**6):
            taken += 1
    assert taken == 401


def test_sound_without_end_is_refused(video, monkeypatch):
    monkeypatch.setattr("videoblip2.features.media.decode_audio", lambda *given: np.zeros(48_000 * 12, np.float32))
    with pytest.raises(InputError, match="longer than"):
        list(stream_untrusted(video, 4.0, 48_000, 10, 10**6))


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:10,\n{path}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{name}'\n"]
)
def test_a_play_list_is_no_video(video, text):
    sneaky = video.with_name("list.mp4")
    sneaky.write_text(text.format(path=video, name=video.name))
    with pytest.raises(InputError, match="not a readable video"):
        list(stream_untrusted(sneaky, 4.0, 48_000, 10, 10**6))
