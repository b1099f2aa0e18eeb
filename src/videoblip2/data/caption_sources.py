"""Captions in the formats that data sets publish: MSR-VTT 2016 and 2017 and its copies, MSVD, VATEX, plain tables."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from videoblip2.data.annotations import SPLIT_WORDS, TABLES, Document, VideoAnnotation, media_id, value_of
from videoblip2.errors import InputError, some

VIDEO = ("video_id", "videoid", "video", "video_name", "file", "file_name", "filename", "id")
CAPTION = ("caption", "captions", "sentence", "sentences", "description", "text", "desc", "encap")
MSVD_COLUMNS = {"VideoID", "Start", "End", "Language", "Description"}
_MSVD_LINE = re.compile(r"(\S+_\d+_\d+)(?:\s+(.*))?")
_MSVD_NUMBER = re.compile(r"vid(\d+)")
Videos = list[tuple[str | None, VideoAnnotation]]  # with the split that the document gives each; None: none
Entry = tuple[str, str | None, int, list[str]]  # video, split, category, captions


@dataclass(frozen=True)
class Source:
    """What one document says: videos with captions (none in MSR-VTT 2017's test set), or the split of videos by id."""

    videos: Videos = field(default_factory=list)
    splits: Mapping[str, str] = field(default_factory=dict)
    other_languages: int = 0
    description: str = ""  # of the data set, as the document gives it


def read_captions(document: Document) -> Source:
    """Recognise a document by its suffix and content. Raises `InputError` for an unknown layout."""
    name = document.name
    if document.suffix == ".txt":
        header = {column.strip().lower() for column in re.split(r"[,;|\t]", document.lines()[0][1])}
        if header.isdisjoint(VIDEO) or header.isdisjoint(CAPTION):
            return _from_text(document)
    if document.suffix not in TABLES:
        content = document.json
        if isinstance(content, dict) and isinstance(content.get("videos"), list):
            info = content.get("info")
            described = str(info.get("description") or "") if isinstance(info, dict) else ""
            return Source(_official(content, name), description=described)
        if isinstance(content, list) and document.split and all(isinstance(video, str) for video in content):
            return Source(splits={media_id(video): document.split for video in content})
        if isinstance(content, dict) and content and content.keys() <= SPLIT_WORDS.keys():
            listed = [(video, SPLIT_WORDS[word]) for word, ids in content.items() for video in ids]
            if all(isinstance(video, str) for video, _ in listed):
                return Source(splits={media_id(video): split for video, split in listed})
        if not isinstance(content, dict | list) or not content:
            raise InputError(f"{name}: neither MSR-VTT's layout nor a list of video_id and caption; give one of them")
    return _from_rows(document)


def _official(content: Mapping[str, Any], name: str) -> Videos:
    """MSR-VTT's JSON, videos in its own order, captions by `sen_id`."""
    captions: dict[str, list[tuple[int, int, str]]] = {}
    for n, entry in enumerate(content.get("sentences") or [], 1):
        where = f"{name} sentence {n}"
        video, caption = _text(where, entry, "video_id"), _text(where, entry, "caption")
        place = entry.get("sen_id", n)
        if not isinstance(place, int):
            raise InputError(f"{where}: its sen_id is {place!r}, not a number; give the official file")
        captions.setdefault(video, []).append((place, n, caption))
    videos: Videos = []
    for n, entry in enumerate(content["videos"], 1):
        where = f"{name} video {n}"
        video = _text(where, entry, "video_id")
        texts = tuple(caption for _, _, caption in sorted(captions.get(video, [])))
        videos.append((_split(f"{where}: {video}", entry), VideoAnnotation(video, _category(where, entry), texts)))
    if captions and (silent := [video.video_id for _, video in videos if not video.captions]):
        raise InputError(f"{name}: no captions for {some(silent)}; add one each or remove the videos")
    if unknown := sorted(captions.keys() - {video.video_id for _, video in videos}):
        raise InputError(f'{name}: captions for {some(unknown)}, which is not in "videos"; give the official file')
    return videos


def _text(where: str, entry: Any, key: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise InputError(f"{where}: its {key} is {value!r}, not text; give the official file")
    return value


def _split(where: str, row: Mapping[str, Any]) -> str | None:
    """`val`, `valid`, `dev` … → `validate`; None if the row has no split. Raises `InputError` for another word."""
    word = row.get("split")
    if word and str(word).strip().lower() not in SPLIT_WORDS:
        raise InputError(f"{where} has the split {word!r}; use train, validate or test")
    return SPLIT_WORDS[str(word).strip().lower()] if word else None


def _from_rows(document: Document) -> Source:
    """Rows of a video and one or several captions, with an optional split and category; or of videos of a split."""
    rows = list(document.rows())
    if not rows:
        raise InputError(f"{document.name}: holds no rows; give a line with video_id and caption for each caption")
    columns = {_column(name) for name in rows[0][1]}
    listing = columns.isdisjoint(CAPTION) and bool(document.split or "split" in columns)
    entries: list[Entry] = []
    names: dict[str, str] = {}
    other_languages = 0
    for where, named in rows:
        row = named if named.keys() >= MSVD_COLUMNS else {_column(name): value for name, value in named.items()}
        captions = [] if listing else value_of(where, row, CAPTION)
        if row.keys() >= MSVD_COLUMNS:
            if row["Language"] != "English":
                other_languages += 1
                continue
            video = f"{row['VideoID']}_{row['Start']}_{row['End']}"
        else:
            video = _video(where, row, names)
        if isinstance(captions, str) and re.match(r"""\[\s*["']""", captions):
            raise InputError(f"{where}: the caption of {video} is a list in one cell; give a row for each, or JSON")
        captions = [captions] if isinstance(captions, str) else captions
        if not listing and not (captions and isinstance(captions, list) and all(isinstance(c, str) for c in captions)):
            raise InputError(f"{where}: the captions of {video} are {captions!r:.60}; give text, or a list of texts")
        entries.append((video, _split(f"{where}: {video}", row), _category(where, row), captions))
    videos = _grouped(entries, document.name)
    if listing:
        return Source(splits={video.video_id: split or str(document.split) for split, video in videos})
    return Source(videos, other_languages=other_languages)


def _column(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _video(where: str, row: Mapping[str, Any], names: dict[str, str]) -> str:
    """The id in a row. names: the file name behind each id so far; two files must not share an id."""
    written = str(value_of(where, row, VIDEO)).strip()
    video = media_id(written)
    if not video:
        raise InputError(f"{where}: its video_id is empty; name the video")
    if written != video and names.setdefault(video, written) != written:
        raise InputError(f"{where}: {written} and {names[video]} have the same id, {video}; rename one of the files")
    return video


def _category(where: str, row: Mapping[str, Any]) -> int:
    try:
        return int(float(row.get("category") or 0))
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: the category is {row['category']!r}; give its number") from error


def _grouped(entries: Iterable[Entry], name: str) -> Videos:
    """One annotation per video, in the order of first mention."""
    captions: dict[str, list[str]] = {}
    facts: dict[str, tuple[str | None, int]] = {}
    for video, split, category, texts in entries:
        captions.setdefault(video, []).extend(texts)
        if facts.setdefault(video, (split, category))[0] != split:
            raise InputError(f"{name}: {video} is in {facts[video][0]} and in {split}; give it one split")
    return [(split, VideoAnnotation(v, category, tuple(captions[v]))) for v, (split, category) in facts.items()]


def _from_text(document: Document) -> Source:
    """MSVD's `ID_START_END caption` lines, a list of ids, `ID vid7` lines that number MSVD's videos, or a table."""
    lines = [(n, line) for n, line in document.lines() if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{document.name}: holds no lines; give captions or a list of video ids")
    words = [line.split() for _, line in lines]
    if all(len(pair) == 2 and _MSVD_NUMBER.fullmatch(pair[1]) for pair in words):
        # MSVD's usual 1,200 / 100 / 670 by the number in `vid7` (Venugopalan et al. 2015)
        numbers = {video: int(word.removeprefix("vid")) for video, word in words}
        bounds = {video: bisect_left((1200, 1300), number) for video, number in numbers.items()}
        return Source(splits={video: ("train", "validate", "test")[n] for video, n in bounds.items()})
    if all(len(line) == 1 for line in words) and document.split:
        return Source(splits={media_id(line[0]): document.split for line in words})
    entries: list[Entry] = []
    for number, line in lines:
        if not (match := _MSVD_LINE.fullmatch(line)):
            raise InputError(
                f"{document.name} line {number}: {line[:40]!r} is neither MSVD's `ID_START_END caption` nor, in a file "
                "named train, val or test, one video id"
            )
        entries.append((match[1], None, 0, [match[2] or ""]))
    return Source(_grouped(entries, document.name))
