"""A stranger's media file: what it may be, how long and how large, before and while it is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from videoblip2.config import InputError
from videoblip2.features.media import AUDIO_TOLERANCE, Audio, Frame, decode_audio, read_header, stream_frames

#: FFmpeg options for a stranger's file: containers that hold their media themselves. A play list (HLS, concat) named
#: `.mp4` would make FFmpeg open the files and addresses that it lists.
UNTRUSTED = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,asf,ogg",
    "protocol_whitelist": "file",
}


def stream_untrusted(
    path: str | Path, fps: float, rate: int, max_seconds: float, max_pixels: int
) -> Iterator[Frame | Audio | None]:
    """A stranger's file -> its frames [H, W, 3] as `stream_frames` gives them, then its audio as `decode_audio` does.

    Length and size are judged by the header before anything is decoded, and again while decoding: headers lie. Raises
    `InputError` that names what is too much.
    """
    header = read_header(path, UNTRUSTED)
    if header.width * header.height > max_pixels:
        limit = f"more than {max_pixels} pixels a frame; scale it down"
        raise InputError(f"{path}: {header.width}x{header.height}, {limit}")
    _refuse_long(path, header.seconds, max_seconds)
    for number, frame in enumerate(stream_frames(path, fps, UNTRUSTED)):
        _refuse_long(path, number / fps, max_seconds)
        yield frame
    audio = decode_audio(path, rate, UNTRUSTED)
    _refuse_long(path, 0 if audio is None else len(audio) / rate, max_seconds + AUDIO_TOLERANCE)
    yield audio


def _refuse_long(path: str | Path, seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise InputError(f"{path}: lasts longer than {max_seconds:g} s; cut it")
