"""Atomic writes, names of media files, the folders that ship with the package, and the command of the service.

After an atomic write a file is complete or unchanged, however the process ends.
"""

import json
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

#: Suffixes of video files; a video's id is its file name without the suffix.
MEDIA_SUFFIXES = {
    *(".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg"),
    *(".ts", ".m2ts", ".mts", ".wmv", ".asf", ".flv", ".3gp", ".ogv", ".gif"),
    *(".mxf", ".dv", ".m2v", ".vob", ".3g2", ".f4v", ".mpe", ".m2p"),
}


_SEGMENT = re.compile(r"(.+)#(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)")


def segment_id(video_id: str, start: float | str, end: float | str) -> str:
    """The id of a segment of a video, with its start and end in seconds: `v_abc#0.83-19.86`."""
    times = sorted(max(0.0, float(time)) for time in (start, end))
    return f"{video_id}#{'-'.join(f'{time:.3f}'.rstrip('0').rstrip('.') for time in times)}"


def segment_of(video_id: str) -> tuple[str, tuple[float, float] | None]:
    """A video's id, and its segment in seconds, None for all of it: `v_abc#0.83-19.86` → ("v_abc", (0.83, 19.86))."""
    part = _SEGMENT.fullmatch(video_id)
    return (part[1], (float(part[2]), float(part[3]))) if part else (video_id, None)


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Write a draft beside `path` that replaces it when the block ends, and is removed if the block raises.

    Creates folders as needed. Readers never see a partial file, and two writers never share a draft.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with draft.open("xb") as file:
            yield file
        os.replace(draft, path)
    except OSError as error:
        if error.filename == str(draft):  # the user knows nothing of it
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # a name that is too long
            draft.unlink()


def expand(path: str) -> str:
    """Expand `~` and `$NAME` in a path, as a shell does."""
    return os.path.expandvars(os.path.expanduser(path))


def plain_name(name: str) -> str:
    """The name of a folder. Raises ValueError for a path."""
    if name and (name != Path(name).name or name == ".."):
        raise ValueError("a path; give a plain name, and the folder as run.out")
    return name


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, content: object, indent: int | None = 2) -> None:
    """Write JSON atomically, with a newline at the end."""
    write_text(path, json_text(content, indent) + "\n")


def json_text(content: object, indent: int | None = None, default: Callable[[object], object] | None = None) -> str:
    """JSON whose only line breaks are those of its layout, even for readers that split at U+2028."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, default=default)
    text = text.translate({code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)})
    return text.encode(errors="backslashreplace").decode()  # an unpaired surrogate, from a file name that is not UTF-8


def printable(name: str) -> str:
    """The name with escapes such as `\\udce9` for bytes that are not UTF-8, which JSON cannot represent."""
    return name.encode(errors="backslashreplace").decode()


def shipped(folder: str) -> Path:
    """`experiments` or `serving`: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parents[1] / folder


SERVING = shipped("serving")
INSTALLED = SERVING.parent == Path(__file__).parent
SERVICE = f"{'videoblip2.serving' if INSTALLED else 'serving'}.service:VideoBlip2Service"


def server_command(host: str, port: int) -> list[str]:
    """The command line of the service."""
    return [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]


def server_environment(settings: Mapping[str, object]) -> dict[str, str]:
    """This process's environment with `settings`; None leaves a variable unchanged."""
    given = {name: str(value) for name, value in settings.items() if value is not None}
    folders = [] if INSTALLED else [str(SERVING.parent)]
    path = os.pathsep.join(filter(None, [*folders, os.environ.get("PYTHONPATH")]))
    return {"BENTOML_DO_NOT_TRACK": "True", **os.environ, **({"PYTHONPATH": path} if path else {}), **given}


def free_port() -> int:
    """An unused port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
