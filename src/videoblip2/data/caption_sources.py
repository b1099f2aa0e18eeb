"""Captions in the forms that data sets publish: MSR-VTT 2016 and 2017, MSVD, plain tables."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from videoblip2.config import InputError
from videoblip2.data.annotations import VideoAnnotation, some
from videoblip2.data.documents import SPLIT_WORDS, Document, media_id, rows_of, value_of

VIDEO = ("video_id", "video", "video_name", "file")
CAPTION = ("caption", "sentence", "description", "text")
MSVD_COLUMNS = {"VideoID", "Start", "End", "Language", "Description"}
_MSVD_LINE = re.compile(r"(\S+_\d+_\d+)(?:\s+(.*))?")
_MSVD_NUMBER = re.compile(r"vid(\d+)")
Entry = tuple[str, str | None, int, list[str]]  # video, split, category, captions


@dataclass
class Captions:
    """What one document says.

    videos: (split, or None if the document names none; annotation). uncaptioned: videos without captions, as in
    MSR-VTT 2017's test set.
    """

    name: str
    videos: list[tuple[str | None, VideoAnnotation]] = field(default_factory=list)
    uncaptioned: list[tuple[str, str, int]] = field(default_factory=list)  # split, id, category
    other_languages: int = 0


@dataclass(frozen=True)
class SplitList:
    """A document that says which videos belong to which split."""

    name: str
    splits: Mapping[str, str]  # video id → split


def read_captions(document: Document) -> Captions | SplitList:
    """Recognise a document by its suffix and content. Raises `InputError` for an unknown layout."""
    if document.suffix in (".csv", ".tsv", ".jsonl"):
        return _from_table(document)
    if document.suffix == ".txt":
        return _from_text(document)
    content = document.json()
    if isinstance(content, list) and content:
        return _from_table(document)
    if not isinstance(content, dict) or not isinstance(content.get("videos"), list):
        raise InputError(
            f'{document.name}: not MSR-VTT\'s layout, which has "videos" and "sentences", '
            "nor a list of video_id and captions; give the official file"
        )
    return _official(content, document.name)


def _official(content: Mapping[str, Any], name: str) -> Captions:
    """MSR-VTT's JSON, videos in its own order, captions by `sen_id`."""
    sentences, known = [], []
    for n, entry in enumerate(content.get("sentences") or [], 1):
        where = f"{name} sentence {n}"
        video, caption = _text(where, entry, "video_id"), _text(where, entry, "caption")
        place = entry.get("sen_id", n)
        if not isinstance(place, int):
            raise InputError(f"{where}: its sen_id is {place!r}, not a number; give the official file")
        sentences.append((place, n, video, caption))
    for n, entry in enumerate(content["videos"], 1):
        where = f"{name} video {n}"
        video = _text(where, entry, "video_id")
        split = split_named(_text(where, entry, "split"), f"{where}: {video}")
        known.append((split, video, _category(where, entry)))
    if not sentences:
        return Captions(name, uncaptioned=known)
    captions: dict[str, list[str]] = {}
    for _, _, video, caption in sorted(sentences):
        captions.setdefault(video, []).append(caption)
    _refuse_mismatch([video for _, video, _ in known], captions, name)
    return Captions(name, [(split, VideoAnnotation(v, category, tuple(captions[v]))) for split, v, category in known])


def _text(where: str, entry: Any, key: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise InputError(f"{where}: its {key} is {value!r}, not text; give the official file")
    return value


def _refuse_mismatch(videos: list[str], captions: Mapping[str, list[str]], name: str) -> None:
    silent = [video for video in videos if video not in captions]
    if silent:
        verb = "has no captions" if len(silent) == 1 else "have no captions"
        raise InputError(f"{name}: {some(silent)} {verb}; add one each or remove the videos")
    unknown = sorted(captions.keys() - set(videos))
    if unknown:
        raise InputError(f'{name}: captions for {some(unknown)}, which is not in "videos"; give the official file')


def split_named(word: object, where: str) -> str:
    """`val`, `valid`, `dev` … → `validate`. Raises `InputError` for an unknown word."""
    split = SPLIT_WORDS.get(str(word).strip().lower())
    if split is None:
        raise InputError(f"{where} has the split {word!r}; known are train, validate, test")
    return split


def _from_table(document: Document) -> Captions:
    """Rows of a video and a caption (or a list of captions), with an optional split and category."""
    found = Captions(document.name)
    entries: list[Entry] = []
    names: dict[str, str] = {}
    for where, named in rows_of(document):
        row = named if named.keys() >= MSVD_COLUMNS else {name.lower(): value for name, value in named.items()}
        if row.keys() >= MSVD_COLUMNS:
            if row["Language"] != "English":
                found.other_languages += 1
                continue
            video, captions = f"{row['VideoID']}_{row['Start']}_{row['End']}", [str(row["Description"])]
        else:
            video, captions = _video_and_captions(where, row, names)
        split = split_named(row["split"], f"{where}: {video}") if row.get("split") else None
        entries.append((video, split, _category(where, row), captions))
    if not entries and not found.other_languages:
        raise InputError(
            f"{document.name}: holds no rows; give a line with {VIDEO[0]} and {CAPTION[0]} for each caption"
        )
    found.videos = _grouped(entries, document)
    return found


def _video_and_captions(where: str, row: Mapping[str, Any], names: dict[str, str]) -> tuple[str, list[str]]:
    """names: the file name behind each id so far; two files must not share an id."""
    written = str(value_of(where, row, VIDEO)).strip()
    video = media_id(written)
    if not video:
        raise InputError(f"{where}: its video_id is empty; name the video")
    if written != video and names.setdefault(video, written) != written:
        raise InputError(
            f"{where}: {written} and {names[video]} have the same id, {video}; rename one, or spell them alike"
        )
    captions = row["captions"] if isinstance(row.get("captions"), list) else [value_of(where, row, CAPTION)]
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"{where}: the captions of {video} are {captions!r}; give text")
    return video, captions


def _category(where: str, row: Mapping[str, Any]) -> int:
    try:
        return int(row.get("category") or 0)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: the category is {row['category']!r}; give its number") from error


def _grouped(entries: Iterable[Entry], document: Document) -> list[tuple[str | None, VideoAnnotation]]:
    """One annotation a video, in the order of first mention."""
    captions: dict[str, list[str]] = {}
    facts: dict[str, tuple[str | None, int]] = {}
    for video, split, category, texts in entries:
        captions.setdefault(video, []).extend(texts)
        if facts.setdefault(video, (split, category))[0] != split:
            raise InputError(f"{document.name}: {video} is in {facts[video][0]} and in {split}; give it one split")
    return [
        (split, VideoAnnotation(video, category, tuple(captions[video]))) for video, (split, category) in facts.items()
    ]


def _from_text(document: Document) -> Captions | SplitList:
    """MSVD's `ID_START_END caption` lines, a list of ids, or `ID vid7` lines that number MSVD's videos."""
    lines = [(n, line) for n, line in document.lines() if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{document.name}: holds no lines; give captions or a list of video ids")
    words = [line.split() for _, line in lines]
    if all(len(pair) == 2 and _MSVD_NUMBER.fullmatch(pair[1]) for pair in words):
        # MSVD's usual 1,200 / 100 / 670 by the number in `vid7` (Venugopalan et al. 2015)
        numbers = {video: int(word.removeprefix("vid")) for video, word in words}
        bounds = {video: bisect_left((1200, 1300), number) for video, number in numbers.items()}
        return SplitList(document.name, {video: ("train", "validate", "test")[n] for video, n in bounds.items()})
    if all(len(line) == 1 for line in words) and document.split:
        return SplitList(document.name, {media_id(line[0]): document.split for line in words})
    entries: list[Entry] = []
    for number, line in lines:
        if not (match := _MSVD_LINE.fullmatch(line)):
            raise InputError(
                f"{document.name} line {number}: {line[:40]!r} is neither MSVD's `ID_START_END caption` nor, in a file "
                "named train, val or test, one video id"
            )
        entries.append((match[1], None, 0, [match[2] or ""]))
    return Captions(document.name, _grouped(entries, document))
