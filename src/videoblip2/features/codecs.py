"""Whether this machine's PyAV can read the usual video files."""

import av

DECODERS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "aac", "mp3", "opus", "vorbis")


def pyav_version() -> str:
    """Such as `18.0.0 with libavcodec 62.11.100`; PyAV brings FFmpeg's libraries with it."""
    return f"{av.__version__} with libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"


def missing_decoders() -> list[str]:
    """Those of DECODERS that FFmpeg was built without."""
    return [name for name in DECODERS if not _has(name)]


def _has(name: str) -> bool:
    try:
        av.Codec(name, "r")
    except ValueError:  # PyAV's UnknownCodecError is one
        return False
    return True
