"""Which videos a job is about: files, folders, patterns, lists, standard input."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from videoblip2.errors import InputError
from videoblip2.features.extract import is_media, shard_of
from videoblip2.files import MEDIA_SUFFIXES, printable


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
            try:
                yield from _listed(Path(word[1:]).expanduser().read_text(encoding="utf-8-sig").split("\n"))
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{word}: {error}; give a text file with one video per line") from error
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
