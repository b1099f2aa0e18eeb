"""One odd part does not lose the file, one odd file does not lose the batch, and pictures are what a person sees."""

import json
import re
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from videoblip2.config import InputError
from videoblip2.features.extract import extract_features
from videoblip2.features.frames import WHITE, Pictures, _light
from videoblip2.features.media import UNTRUSTED, read_header, stream_audio, stream_frames
from videoblip2.features.sources import find_videos
from videoblip2.features.store import FeatureStore

RATE = 44_100
SIZE = 64, 48


def clip(path, seconds=4, sound=True, layout="stereo", pix="yuv420p", codec="libx264", size=SIZE, **tags):
    """Moving gray bars and a tone, at 25 frames per second; `tags` are set on the video encoder."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = *size, pix
        video.codec_context.thread_count = 1
        for key, value in tags.items():
            setattr(video.codec_context, key, value)
        audio = container.add_stream("aac", rate=RATE, layout=layout) if sound else None
        for number in range(seconds * 25):
            picture = np.full((size[1], size[0], 3), 60 + 5 * (number % 30), np.uint8)
            picture[:, : number % size[0]] = 220
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        if audio:
            wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(seconds * RATE) / RATE).astype(np.float32)
            channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
            frame = av.AudioFrame.from_ndarray(np.tile(wave, (channels, 1)), format="fltp", layout=layout)
            frame.sample_rate = RATE
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def box(kind, body):
    return struct.pack(">I4s", 8 + len(body), kind) + body


def with_cover(movie, first):
    """An mp4 with artwork in its metadata, before or after the tracks; FFmpeg shows it as a video stream."""
    jpeg = av.CodecContext.create("mjpeg", "w")
    jpeg.width, jpeg.height, jpeg.pix_fmt, jpeg.time_base = *SIZE, "yuvj420p", Fraction(1, 25)
    picture = av.VideoFrame.from_ndarray(np.full((SIZE[1], SIZE[0], 3), 128, np.uint8), format="rgb24")
    packets = [*jpeg.encode(picture.reformat(format="yuvj420p")), *jpeg.encode(None)]
    cover = box(b"covr", box(b"data", struct.pack(">II", 13, 0) + b"".join(map(bytes, packets))))
    handler = box(b"hdlr", b"\0" * 8 + b"mdirappl" + b"\0" * 9)
    tags = box(b"udta", box(b"meta", b"\0" * 4 + handler + box(b"ilst", cover)))

    def boxes(data):
        while data:
            size = struct.unpack(">I", data[:4])[0]
            yield data[:size]
            data = data[size:]

    out = b""
    for whole in boxes(movie):
        if whole[4:8] == b"moov":
            inside = [part for part in boxes(whole[8:]) if part[4:8] != b"udta"]
            inside.insert(1 if first else len(inside), tags)
            whole = box(b"moov", b"".join(inside))
        out += whole
    return out  # places in the media data stay right: moov comes behind it


def decoded(path, fps=4):
    caveats = []
    frames = list(stream_frames(path, fps, caveats=caveats))
    sound = list(stream_audio(path, caveats=caveats))
    return np.stack(frames), sum(map(len, sound)) / 48_000 if sound else None, "; ".join(caveats)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return clip(tmp_path_factory.mktemp("good") / "good.mp4").read_bytes()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Transport streams by channel layout."""
    folder = tmp_path_factory.mktemp("parts")
    return {layout: clip(folder / f"{layout}.ts", layout=layout).read_bytes() for layout in ("mono", "stereo", "5.1")}


@pytest.mark.parametrize("place", [0.1, 0.3, 0.6])
def test_a_bad_spot_is_skipped_and_noted(good, tmp_path, place):
    start = good.find(b"mdat")
    at = start + int((len(good) - start) * place)
    (tmp_path / "v.mp4").write_bytes(good[:at] + b"\xff" * 64 + good[at + 64 :])
    frames, seconds, caveats = decoded(tmp_path / "v.mp4")
    assert 14 <= len(frames) <= 16 and 3.8 < seconds < 4.2
    assert re.search(r"\d damaged packets? skipped, the first at \d\.\d s", caveats)


def test_a_video_without_one_good_packet_fails_with_its_cause(good, tmp_path):
    start = good.find(b"mdat") + 4
    (tmp_path / "v.mp4").write_bytes(
        good[:start] + b"\xff" * (good.find(b"moov") - 4 - start) + good[good.find(b"moov") - 4 :]
    )
    with pytest.raises(InputError, match=r"v\.mp4: no frame could be decoded \(video: \d+ damaged packets"):
        decoded(tmp_path / "v.mp4")


@pytest.mark.parametrize(("one", "two"), [("stereo", "mono"), ("mono", "stereo"), ("stereo", "5.1"), ("mono", "mono")])
def test_recordings_that_are_joined_are_one_video(parts, tmp_path, one, two):
    """The clock restarts midway, and the channel layout may change there."""
    (tmp_path / "v.ts").write_bytes(parts[one] + parts[two])
    frames, seconds, caveats = decoded(tmp_path / "v.ts")
    assert len(frames) == 32 and 7.9 < seconds < 8.2 and not caveats
    np.testing.assert_allclose(frames[16:].mean((1, 2, 3)), frames[:16].mean((1, 2, 3)), atol=3)


def test_a_clock_that_leaps_ahead_at_the_seam_makes_no_frames(parts, tmp_path):
    with av.open(str(tmp_path / "late.ts"), "w", options={"output_ts_offset": "3600"}) as late:
        (tmp_path / "one.ts").write_bytes(parts["mono"])
        with av.open(str(tmp_path / "one.ts")) as source:
            streams = {stream.index: late.add_stream_from_template(stream) for stream in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    late.mux(packet)
    (tmp_path / "v.ts").write_bytes(parts["mono"] + (tmp_path / "late.ts").read_bytes())
    assert len(decoded(tmp_path / "v.ts")[0]) == 32


@pytest.mark.parametrize("first", [True, False])
def test_artwork_is_not_the_video(good, tmp_path, first):
    (tmp_path / "v.mp4").write_bytes(with_cover(good, first))
    frames, seconds, caveats = decoded(tmp_path / "v.mp4")
    assert len(frames) == 16 and seconds > 3.9 and not caveats and frames.std() > 20
    with av.open(str(tmp_path / "v.mp4")) as source, av.open(str(tmp_path / "song.m4a"), "w", format="ipod") as song:
        stream = song.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                song.mux(packet)
    (tmp_path / "song.m4a").write_bytes(with_cover((tmp_path / "song.m4a").read_bytes(), first))
    with pytest.raises(InputError, match=r"song\.m4a: has no video stream except its cover"):
        read_header(tmp_path / "song.m4a")


def test_codecs_that_ffmpeg_does_not_know_are_named(good, tmp_path):
    (tmp_path / "sound.mp4").write_bytes(good.replace(b"mp4a", b"apac").replace(b"esds", b"free"))
    frames, seconds, caveats = decoded(tmp_path / "sound.mp4")
    assert len(frames) == 16 and seconds is None and caveats == "audio: skipped, FFmpeg cannot decode apac"
    (tmp_path / "video.mp4").write_bytes(good.replace(b"avc1", b"zzzz").replace(b"avcC", b"free"))
    for read in (decoded, read_header):
        with pytest.raises(InputError, match=r"video\.mp4: FFmpeg cannot decode its video codec, zzzz"):
            read(tmp_path / "video.mp4")


def test_a_header_that_promises_too_much_is_noted(tmp_path):
    movie = clip(tmp_path / "v.avi", sound=False, codec="mpeg4").read_bytes()
    at = movie.find(b"strh") + 8 + 32
    (tmp_path / "v.avi").write_bytes(movie[:at] + struct.pack("<I", 250) + movie[at + 4 :])
    frames, _, caveats = decoded(tmp_path / "v.avi")
    assert len(frames) == 16 and caveats == "video: ends at 4.0 of 10.0 s, truncated"


def test_extraction_notes_what_it_skipped_and_survives_any_file(encoders, good, parts, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "fine.mp4").write_bytes(good)
    (videos / "joined.ts").write_bytes(parts["stereo"] + parts["mono"])
    (videos / "mute.mp4").write_bytes(good.replace(b"mp4a", b"apac").replace(b"esds", b"free"))
    (videos / "unknown.mp4").write_bytes(good.replace(b"avc1", b"zzzz").replace(b"avcC", b"free"))
    clip(videos / "meme.gif", seconds=1, sound=False, codec="gif", pix="rgb8")
    (videos / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    report = extract_features(find_videos([videos]), tmp_path / "out", encoders)
    assert report.done == ["fine", "joined", "meme", "mute"] and list(report.failed) == ["noise", "unknown"]
    assert report.noted == {"mute": "mute.mp4: audio: skipped, FFmpeg cannot decode apac"}
    store = FeatureStore(tmp_path / "out")
    assert store.manifest.videos["mute"].caveats == ("audio: skipped, FFmpeg cannot decode apac",)
    assert store.manifest.videos["fine"].caveats == () and store.manifest.videos["meme"].audio == "absent"
    assert len(store.array("video", "joined")) == 32 and len(store.array("video", "meme")) == 4


def test_names_that_cannot_be_stored_fail_alone(encoders, good, tmp_path):
    names = ["fine.mp4", "動画" * 20 + ".mp4", "x" * 245 + ".mp4", "caf\udce9.mp4"]
    for name in names:
        (tmp_path / name).write_bytes(good)
    report = extract_features(find_videos([tmp_path]), tmp_path / "out", encoders)
    assert sorted(report.done) == ["fine", "動画" * 20] == FeatureStore(tmp_path / "out").ids
    assert list(report.failed) == ["caf\\udce9", "x" * 245]
    assert "not UTF-8; rename" in report.failed["caf\\udce9"] and "too long" in report.failed["x" * 245]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["failed"] == report.failed


def test_a_picture_that_changes_size_midway_keeps_its_first(tmp_path):
    parts = [clip(tmp_path / f"{width}.ts", size=(width, 48)).read_bytes() for width in (64, 128)]
    (tmp_path / "v.ts").write_bytes(b"".join(parts))
    assert decoded(tmp_path / "v.ts")[0].shape == (32, 48, 64, 3)


def test_any_exception_of_one_file_is_that_files_failure(encoders, good, tmp_path, monkeypatch):
    from videoblip2.features import media

    (tmp_path / "v.mp4").write_bytes(good)
    monkeypatch.setattr(media.av, "open", lambda *given, **options: 1 / 0)
    with pytest.raises(InputError, match=r"v\.mp4: ZeroDivisionError: division by zero"):
        encoders.encode_file(tmp_path / "v.mp4")


@pytest.mark.parametrize(
    ("aspect", "width"),
    [(Fraction(64, 45), 256), (Fraction(8, 9), 160), (Fraction(1, 1), 180), (Fraction(100, 99), 180)],
)
def test_oblong_pixels_are_made_square(tmp_path, aspect, width):
    path = clip(tmp_path / "v.mp4", seconds=1, sound=False, size=(180, 144), sample_aspect_ratio=aspect)
    assert decoded(path)[0].shape == (4, 144, width, 3)
    assert read_header(path)[1:] == (width, 144)


@pytest.mark.parametrize(
    ("stored", "width"),
    [((180, 144), 180), ((180, 144), 255), ((180, 144), 256), ((181, 144), 181), ((180, 145), 255)],
)
def test_a_scaled_picture_has_the_levels_that_ffmpeg_gives_to_rgb(stored, width):
    noise = np.random.default_rng(0).integers(0, 256, (stored[1], stored[0], 3)).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format="yuv420p")
    expected = frame.reformat(width, stored[1], "rgb24").to_ndarray()
    np.testing.assert_array_equal(Pictures(Fraction(width, stored[0]), []).rgb(frame), expected)


MATRICES = {  # (a, b, c, d) of x' = a x + c y, y' = b x + d y, and the corner of the frame where the top left one goes
    "turned right": ((0, 1, -1, 0), (0, -1)),
    "turned left": ((0, -1, 1, 0), (-1, 0)),
    "upside down": ((-1, 0, 0, -1), (-1, -1)),
    "mirrored": ((-1, 0, 0, 1), (0, -1)),
    "flipped": ((1, 0, 0, -1), (-1, 0)),
    "transposed": ((0, 1, 1, 0), (0, 0)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_turned_and_mirrored_pictures_come_out_upright(tmp_path, name):
    (a, b, c, d), corner = MATRICES[name]
    path = clip(tmp_path / "v.mp4", seconds=1, sound=False, size=(64, 48))
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=8)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[:16, :16] = 250
        container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
    movie = path.read_bytes()
    at = movie.index(b"tkhd") + 4 + 40
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(movie[:at] + matrix + movie[at + 36 :])
    [frame] = decoded(path, 1)[0]
    assert frame.shape == ((64, 48, 3) if b else (48, 64, 3)) and frame[corner].mean() > 200
    assert sum(frame[y, x].mean() > 200 for y in (0, -1) for x in (0, -1)) == 1


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_brought_to_sdr(tmp_path, transfer):
    """The code of gray at a tenth of diffuse white becomes the SDR code of that gray."""
    code = int(np.searchsorted(_light(transfer), 0.1)) / 65535
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=4)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        context = video.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 9, 9, transfer
        picture = np.full((SIZE[1], SIZE[0], 3), round(255 * code), np.uint8)
        for _ in range(4):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
    frames, _, caveats = decoded(path)
    assert caveats == "video: HDR, tone-mapped to SDR" and frames.dtype == np.uint8
    assert abs(frames.mean() - 255 * 0.1 ** (1 / 2.2)) < 6
    assert _light(16)[-1] == pytest.approx(10_000 / WHITE) and _light(18)[-1] == pytest.approx(1000 / WHITE, rel=0.01)


def test_a_color_matrix_that_cannot_be_converted_is_noted(tmp_path):
    path, seen = clip(tmp_path / "v.mp4", seconds=1, sound=False, colorspace=14), []
    frames, _, caveats = decoded(path)
    assert len(frames) == 4 and caveats == "video: color matrix 14 cannot be converted, read as BT.709"
    assert len(list(stream_frames(path, 4, watch=lambda small, time: seen.append(small.shape)))) == 4
    assert seen == [(3, 24, 32)] * 25


def test_a_gif_is_a_silent_video(tmp_path):
    path = clip(tmp_path / "meme.gif", seconds=2, sound=False, codec="gif", pix="rgb8")
    frames, seconds, caveats = decoded(path)
    assert len(frames) == 8 and seconds is None and not caveats and find_videos([tmp_path]) == [path]
    assert len(list(stream_frames(path, 4, UNTRUSTED))) == 8
    path.rename(tmp_path / "unnamed")
    assert find_videos([tmp_path]) == [tmp_path / "unnamed"]
