"""Find the videos that a command names: files, folders, patterns, lists, standard input; and its shard of them."""

import glob
import hashlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path

from videoblip2.errors import InputError, counted, refused, some, warn
from videoblip2.files import MEDIA_SUFFIXES, printable

#: The bytes by which media files without a known suffix are recognized: (position, bytes).
SIGNATURES = (
    (4, b"ftyp"),
    (8, b"AVI "),
    (0, b"\x1a\x45\xdf\xa3"),
    (0, b"\x00\x00\x01\xba"),
    (0, b"\x00\x00\x01\xb3"),
    (0, b"\x06\x0e\x2b\x34"),
    (0, b"FLV\x01"),
    (0, b"GIF8"),
)


@dataclass(frozen=True)
class VideoSource:
    """A video as the user named it: a path, or an id in a feature store. error: why it cannot be used."""

    path: str
    error: str = ""

    @property
    def video_id(self) -> str:
        """The file's name without a media suffix."""
        name = Path(self.path)
        return name.stem if name.suffix.lower() in MEDIA_SUFFIXES else name.name


def find_sources(words: Sequence[str], stored: bool = False, shard: tuple[int, int] | None = None) -> list[VideoSource]:
    """Videos in the order given, each once.

    Args:
        words: files, folders (searched recursively), patterns such as `clips/**/*.mp4`, `@list.txt` with one of these
            per line (`#` begins a comment), `-` for such lines on standard input. One without a video becomes a source
            with an error.
        stored: words are video ids in a feature store.
        shard: (i, n): only the i-th of n parts; see `in_shard`.
    """
    found: dict[str, VideoSource] = {}
    for word in _lines(words):
        for source in [VideoSource(word)] if stored else _videos(word):
            found.setdefault(source.path if stored else str(Path(source.path).absolute()), source)
    return [source for source in found.values() if in_shard(printable(source.video_id), shard)]


def _lines(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        if word == "-":
            if isinstance(sys.stdin, TextIOWrapper):  # names need not be UTF-8
                sys.stdin.reconfigure(errors="surrogateescape")
            lines: Iterable[str] = sys.stdin
        elif word.startswith("@") and not os.path.exists(word):
            remedy = "give a text file with one video per line"
            with refused(f"{word}: cannot be read", remedy, OSError, ValueError):
                text = Path(word[1:]).expanduser().read_text(encoding="utf-8-sig", errors="surrogateescape")
                if "\0" in text:  # a video, or UTF-16
                    raise ValueError("not text")
                lines = text.split("\n")
        else:
            yield word
            continue
        names = filter(None, map(str.strip, lines))
        yield from (name for name in names if not name.startswith("#") or os.path.exists(name))


def _videos(word: str) -> Iterator[VideoSource]:
    path = Path(word).expanduser()
    if not os.path.exists(path) and glob.has_magic(word):
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            yield VideoSource(word, f"{word}: matches no file; check the pattern")
        for match in matches:
            yield from _videos(glob.escape(match) if not os.path.exists(match) else match)
        return
    if not os.path.isdir(path):
        yield VideoSource(str(path), "" if os.path.isfile(path) else f"{path}: no such file; give the path of a video")
        return
    unread: list[OSError] = []
    files: list[Path] = []
    for place, folders, names in os.walk(path, onerror=unread.append):
        folders[:] = [name for name in folders if name[0] != "."]
        files += [Path(place, name) for name in names if name[0] != "." and os.path.isfile(Path(place, name))]
    videos = [str(file) for file in sorted(files) if is_media(file)]
    if others := sorted({*map(str, files)}.difference(videos)):
        warn(f"ignored in {path}, not videos by suffix or content: {counted(len(others), 'file')} ({some(others)})")
    yield from map(VideoSource, videos)
    yield from (VideoSource(e.filename, f"{e.filename}: {e.strerror}; give a folder that can be read") for e in unread)
    if not videos and not unread:
        yield VideoSource(str(path), f"{path}: no video in this folder")


def keepable(sources: Iterable[VideoSource]) -> list[VideoSource]:
    """The sources, with an error for those that a store cannot keep: a store's ids are file names."""
    sources, alike = list(sources), defaultdict[str, list[str]](list)
    for source in sources:
        alike[Path(source.path).stem] += [] if source.error else [source.path]
    found = []
    for source in sources:
        name, reason = Path(source.path).stem, ""
        if len(alike[name]) > 1:
            reason = f"{', '.join(alike[name])}: the same name, so one video id; rename or remove all but one"
        elif printable(name) != name:
            reason = f"{source.path}: its name is not UTF-8; rename it"
        found.append(replace(source, error=source.error or reason))
    return found


def in_shard(video_id: str, shard: tuple[int, int] | None) -> bool:
    """Whether a video is in part i of n, for shard (i, n); None = all. Depends on its id alone."""
    return shard is None or int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:8]) % shard[1] + 1 == shard[0]


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """`2/4` → (2, 4). Raises `InputError` for anything but I/N with 1 <= I <= N."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard {text}: not I/N with 1 <= I <= N; give 1/4, 2/4, 3/4 and 4/4, for example")
    return int(found[1]), int(found[2])


def find_videos(paths: Iterable[str | Path]) -> list[Path]:
    """The given files, and the media files in each given folder, sorted. Raises `InputError` for a folder without any.

    In a folder, media files are recognized by suffix or content.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.glob("[!.]*") if is_media(p)) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: no video in this folder ({', '.join(sorted(MEDIA_SUFFIXES))}); give another")
        found += inside
    return found


def ignored_entries(paths: Iterable[str | Path]) -> list[Path]:
    """The entries of these folders that `find_videos` ignores: other files, and subfolders."""
    inside = (entry for path in map(Path, paths) if path.is_dir() for entry in sorted(path.glob("[!.]*")))
    return [entry for entry in inside if not is_media(entry)]


def is_media(path: Path) -> bool:
    """Whether a path is a video or audio file, by its suffix or its first bytes."""
    if not path.is_file() or path.suffix.lower() in MEDIA_SUFFIXES:
        return path.is_file()
    head = b""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(16)
    return any(head[place:].startswith(mark) for place, mark in SIGNATURES)
