"""Which videos a command is about: files, folders, patterns, lists, standard input; and its shard of them."""

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

from videoblip2.errors import InputError, refused
from videoblip2.files import MEDIA_SUFFIXES, printable

#: How media files begin, whatever their names: (position, bytes).
SIGNATURES = (
    (4, b"ftyp"),
    (8, b"AVI "),
    (0, b"\x1a\x45\xdf\xa3"),
    (0, b"\x00\x00\x01\xba"),
    (0, b"FLV\x01"),
    (0, b"GIF8"),
)


@dataclass(frozen=True)
class VideoSource:
    """One video as the user named it (a path, or an id where features are stored); `error`: why it cannot be used."""

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
        words: files, folders (searched recursively), patterns such as `clips/**/*.mp4`, `@list.txt` with one of these a
            line, `-` for such lines on standard input. What holds no video becomes a source with an error.
        stored: words are video ids of a feature store.
        shard: (i, n): only the i-th of n parts, which depends on each video id alone.
    """
    found: dict[str, VideoSource] = {}
    for word in _lines(words):
        for source in [VideoSource(word)] if stored else _videos(word):
            found.setdefault(source.path if stored else str(Path(source.path).absolute()), source)
    return [
        source
        for source in found.values()
        if shard is None or shard_of(printable(source.video_id), shard[1]) == shard[0]
    ]


def _lines(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        if word == "-":
            if isinstance(sys.stdin, TextIOWrapper):  # a name may not be UTF-8
                sys.stdin.reconfigure(errors="surrogateescape")
            yield from _listed(sys.stdin)
        elif word.startswith("@") and not os.path.exists(word):
            remedy = "give a text file with one video per line"
            with refused(f"{word}: cannot be read", remedy, OSError, UnicodeDecodeError):
                lines = Path(word[1:]).expanduser().read_text(encoding="utf-8-sig").split("\n")
            yield from _listed(lines)
        else:
            yield word


def _listed(lines: Iterable[str]) -> Iterator[str]:
    return (text for line in lines if (text := line.strip()) and not text.startswith("#"))


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
    yield from map(VideoSource, videos)
    yield from (VideoSource(e.filename, f"{e.filename}: {e.strerror}; give a folder that can be read") for e in unread)
    if not videos and not unread:
        yield VideoSource(str(path), f"{path}: no video in this folder")


def keepable(sources: Iterable[VideoSource]) -> list[VideoSource]:
    """The sources, with an error where a store cannot keep the features, whose id is the file's name."""
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


def shard_of(video_id: str, count: int) -> int:
    """Which of `count` shards, from 1, has this video: the same on every machine and whatever the other videos."""
    return int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:8]) % count + 1


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """ "2/4" -> (2, 4). Raises `InputError` for anything but I/N with 1 <= I <= N."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard {text}: not I/N with 1 <= I <= N; give 1/4, 2/4, 3/4 and 4/4, for example")
    return int(found[1]), int(found[2])


def find_videos(paths: Iterable[str | Path]) -> list[Path]:
    """Files as given, and the media files of each folder, sorted. Raises `InputError` for a folder without any.

    In a folder, a file counts by its suffix or else by how it begins.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.glob("[!.]*") if is_media(p)) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: holds no video ({', '.join(sorted(MEDIA_SUFFIXES))}); give another folder")
        found += inside
    return found


def ignored_entries(paths: Iterable[str | Path]) -> list[Path]:
    """What `find_videos` ignores in these folders: files that are not media, and folders inside."""
    inside = (entry for path in map(Path, paths) if path.is_dir() for entry in sorted(path.glob("[!.]*")))
    return [entry for entry in inside if not is_media(entry)]


def is_media(path: Path) -> bool:
    """Whether a file is a video or a sound, by its suffix or else by how it begins."""
    if not path.is_file() or path.suffix.lower() in MEDIA_SUFFIXES:
        return path.is_file()
    head = b""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(16)
    return any(head[place:].startswith(mark) for place, mark in SIGNATURES)
