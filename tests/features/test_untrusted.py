"""A stranger's file: the same frames and sound as any other, and no more of them than allowed."""

from fractions import Fraction

import av
import numpy as np
import pytest

from videoblip2.config import InputError
from videoblip2.features.media import decode_audio, decode_frames, read_header, write_video
from videoblip2.features.untrusted import stream_untrusted
from videoblip2.predict import decode_media

RATE = 48_000


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("v") / "v.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (16, 64, 48, 3), dtype=np.uint8)
    write_video(path, frames, 8, np.sin(np.arange(2 * RATE) / 20).astype(np.float32), RATE)
    return path


def test_frames_then_sound(video):
    *frames, sound = decode_media(video, 4.0, 10, 10**6)
    assert np.array_equal(np.stack(frames), decode_frames(video, 4.0))
    assert np.array_equal(sound, decode_audio(video, RATE))


def test_the_header_is_read(video):
    header = read_header(video)
    assert (header.width, header.height) == (48, 64)
    assert header.seconds == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("seconds", "pixels", "message"), [(1.0, 10**6, "longer than 1 s"), (10, 3071, r"48x64, more than 3071 pixels")]
)
def test_too_long_and_too_large_are_refused_by_the_header_alone(video, monkeypatch, seconds, pixels, message):
    monkeypatch.setattr("videoblip2.features.untrusted.stream_frames", lambda *given: pytest.fail("decoded"))
    with pytest.raises(InputError, match=message):
        next(stream_untrusted(video, 4.0, RATE, seconds, pixels))


def test_a_header_that_tells_no_length_helps_nobody(tmp_path):
    """Two frames, an hour apart, in a container without a duration: at 4 a second that would be 14,400 frames."""
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
    assert read_header(path).seconds < 100
    taken = 0
    with pytest.raises(InputError, match="longer than 100 s"):
        for _ in stream_untrusted(path, 4.0, RATE, 100, 10**6):
            taken += 1
    assert taken == 401


def test_sound_without_end_is_refused(video, monkeypatch):
    monkeypatch.setattr("videoblip2.features.untrusted.decode_audio", lambda *given: np.zeros(RATE * 12, np.float32))
    with pytest.raises(InputError, match="longer than"):
        list(stream_untrusted(video, 4.0, RATE, 10, 10**6))


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:10,\n{path}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{name}'\n"]
)
def test_a_play_list_is_no_video(video, text):
    sneaky = video.with_name("list.mp4")
    sneaky.write_text(text.format(path=video, name=video.name))
    with pytest.raises(InputError, match="not a readable video"):
        list(stream_untrusted(sneaky, 4.0, RATE, 10, 10**6))
