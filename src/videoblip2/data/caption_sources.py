"""Read captions in the published forms of data sets: a table of forms, each yielding rows, and rows to videos.

MSR-VTT (2016, 2017, copies, 1k-A's lists), MSVD, VATEX, ActivityNet, YouCook2, AudioCaps, Clotho, COCO, VALOR, VAST,
and plain tables.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from videoblip2.data import documents
from videoblip2.data.annotations import VideoAnnotation, refuse_duplicates
from videoblip2.data.documents import Document, Paths, SourceRow
from videoblip2.errors import InputError, refused, some
from videoblip2.files import segment_id, segment_of

CAPTION = (
    *("caption", "captions", "sentence", "sentences", "description", "text", "desc", "encap", "vast_cap"),
    "annotations",  # YouCook2's segments
)
NUMBERED = re.compile(r"captions?_\d+")  # Clotho's columns
MSVD_COLUMNS = {"videoid", "start", "end", "language", "description"}
#: List of items → the key of an item's id, the list of captions, and the key of the item's id there.
JOINS = {"videos": ("video_id", "sentences", "video_id"), "images": ("id", "annotations", "image_id")}
WRAPPERS = ("database", "annotations", "data")  # keys that hold all rows, in YouCook2 and others
_MSVD_LINE = re.compile(r"(\S+_\d+_\d+)(?:\s+(.*))?")
_MSVD_NUMBER = re.compile(r"vid(\d+)")
CHOICES = ("train", "val", "test", "random", "auto")
Videos = list[tuple[str | None, VideoAnnotation]]  # each with the split in the document, or None


@dataclass(frozen=True)
class CaptionFile:
    """Content of a document: videos with captions (none in MSR-VTT 2017's test set), or the split of videos by id."""

    videos: Videos = field(default_factory=list)
    splits: Mapping[str, str] = field(default_factory=dict)
    other_languages: int = 0
    description: str = ""  # of the data set, from the document


def read_captions(document: Document) -> CaptionFile:
    """Read a document, recognized by its content. Raises `InputError` for an unknown layout."""
    reader = next(reader for recognised, reader in FORMS if recognised(document))
    rows = list(reader(document))
    if not rows:
        raise InputError(f"{document.name}: contains no rows; give the video_id and text of each caption")
    columns = rows[0][1].keys()
    captioned = bool(columns & set(CAPTION)) or any(map(NUMBERED.fullmatch, columns))
    listing = not captioned and bool(document.split or columns & {"split", "subset"})
    english = [(where, row) for where, row in rows if row.get("msvd_language", "English") == "English"]
    names, captions, facts = dict[str, str](), dict[str, list[str]](), dict[str, tuple[str | None, int]]()
    for where, row in english:
        whole = _video(where, row, names)
        split, category = _split(f"{where}: {whole}", row), _number(where, row, "category")
        for video, texts in [(whole, [])] if listing else _parts(where, row, whole):
            captions.setdefault(video, []).extend(texts)
            if facts.setdefault(video, (split, category))[0] != split:
                raise InputError(f"{document.name}: {video} is in {facts[video][0]} and in {split}; give it one split")
    if listing:
        return CaptionFile(splits={video: split or str(document.split) for video, (split, _) in facts.items()})
    videos = [(split, VideoAnnotation(v, category, tuple(captions[v]))) for v, (split, category) in facts.items()]
    info = document.json["info"] if _has("info", document) else None
    described = str(info.get("description") or "") if isinstance(info, dict) else ""
    return CaptionFile(videos, other_languages=len(rows) - len(english), description=described)


def read_sources(paths: Paths, split: str | None) -> tuple[list[tuple[Document, CaptionFile]], Mapping[str, str]]:
    """The documents with captions, and the splits of videos from other documents. split: one of CHOICES."""
    if split is not None and split not in CHOICES:
        raise InputError(f"--split {split}: not one of {', '.join(CHOICES)}")
    where = ", ".join(map(str, paths))
    files = [(document, read_captions(document)) for document in documents.read_documents(paths)]
    sources = [(document, _as_list(document, found, files)) for document, found in files]
    ids = [video.video_id for _, found in sources for _, video in found.videos]
    if not ids:
        raise InputError(f"{where}: lists of ids, no captions; give the captions as well")
    refuse_duplicates((video for video in ids if not segment_of(video)[1]), where)  # ActivityNet has two of some
    # Features are stored as ID.npy, so an id must be a valid file name.
    unusable = [repr(video) for video in ids if video in ("", ".", "..") or "/" in video or not video.isprintable()]
    if unusable:
        raise InputError(f"{where}: {some(unusable)} cannot be a file name for features; rename it")
    lists: dict[str, str] = {}
    for document, found in sources:
        if found.splits and split not in (None, "auto"):
            raise InputError(f"--split {split}: {document.name} already gives the splits; use one of the two")
        for video, own in found.splits.items():
            if lists.setdefault(video, own) != own:
                raise InputError(f"{document.name}: {video} is in {own}, and in {lists[video]} by another list")
    return sources, lists


def _as_list(document: Document, found: CaptionFile, sources: Sequence[tuple[Document, CaptionFile]]) -> CaptionFile:
    """Treat a document named train, val or test that only repeats videos of the others (1k-A's test set) as a list."""
    others = [video for other, said in sources if other is not document for _, video in said.videos]
    known = {video.video_id: set(video.captions) for video in others}
    repeats = all(known.get(video.video_id, set()).issuperset(video.captions) for _, video in found.videos)
    if not document.split or not repeats or not 0 < len(found.videos) < len(known):
        return found
    return CaptionFile(splits={video.video_id: document.split for _, video in found.videos})


def _parts(where: str, row: Mapping[str, Any], video: str) -> list[tuple[str, list[str]]]:
    """The captions of a row, for its video or, if they have times, for each segment."""
    found = [row[name] for name in row if NUMBERED.fullmatch(name)] or documents.value_of(where, row, CAPTION)
    if isinstance(found, str) and re.match(r"""\[\s*["']""", found):
        raise InputError(f"{where}: the caption of {video} is a list in one cell; give a row for each, or JSON")
    entries = found if isinstance(found, list) else [found]
    keys = ("raw", *CAPTION)
    texts: list[Any] = [next((e[k] for k in keys if k in e), 0) if isinstance(e, dict) else e for e in entries]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: the captions of {video} are {found!r:.60}; give text, or a list of texts")
    times = row.get("timestamps") or [e["segment"] for e in entries if isinstance(e, dict) and "segment" in e]
    fault = f"{where}: the times of {video} are {times!r:.60}"
    with refused(fault, "give a start and an end per caption", TypeError, ValueError):
        segments = [(segment_id(video, *span), [text]) for span, text in zip(times, texts, strict=bool(times))]
    return segments or [(video, texts)]


def _video(where: str, row: Mapping[str, Any], names: dict[str, str]) -> str:
    """The id in a row. names: the file name of each id so far, since two files must not share an id."""
    written = str(documents.value_of(where, row, documents.VIDEO)).strip()
    video = documents.media_id(written)
    if not video:
        raise InputError(f"{where}: its video_id is empty; name the video")
    if written != video and names.setdefault(video, written) != written:
        raise InputError(f"{where}: {written} and {names[video]} have the same id, {video}; rename one of the files")
    return video


def _split(where: str, row: Mapping[str, Any]) -> str | None:
    """`val`, `valid`, `dev` … → `validate`; None if the row has no split. Raises `InputError` for any other word."""
    word = row.get("split") or row.get("subset")
    if word and str(word).strip().lower() not in documents.SPLIT_WORDS:
        raise InputError(f"{where} has the split {word!r}; use train, validate or test")
    return documents.SPLIT_WORDS[str(word).strip().lower()] if word else None


def _number(where: str, row: Mapping[str, Any], key: str) -> int:
    with refused(f"{where}: the {key} is {row.get(key)!r}", "give its number", TypeError, ValueError):
        return int(float(row.get(key) or 0))


def _joined(document: Document, items: str) -> Iterator[SourceRow]:
    """Join items and captions from two lists: MSR-VTT's videos, captions in the order of `sen_id`; COCO's images."""
    own, texts, other = JOINS[items]
    captions: dict[str, list[tuple[int, int, object]]] = {}
    for n, (where, row) in enumerate(document.rows(texts), 1):
        item, caption = (documents.value_of(where, row, (key,)) for key in (other, "caption"))
        captions.setdefault(str(item), []).append((_number(where, {"sen_id": n, **row}, "sen_id"), n, caption))
    entries = [*document.rows(items)]
    if not captions and entries and "sentences" in entries[0][1]:
        yield from entries  # Karpathy's copy of COCO
        return
    ids = [str(documents.value_of(where, row, (own,))) for where, row in entries]
    refuse_duplicates(ids, document.name)
    if captions and (silent := [item for item in ids if item not in captions]):
        raise InputError(f"{document.name}: no captions for {some(silent)}; add one each or remove the {items}")
    if unknown := sorted(captions.keys() - set(ids)):
        remedy = "give the official file"
        raise InputError(f'{document.name}: captions for {some(unknown)}, which is not in "{items}"; {remedy}')
    for (where, row), item in zip(entries, ids, strict=True):
        video = row.get("file_name", item) if items == "images" else item
        yield where, {**row, "video_id": video, "captions": [text for *_, text in sorted(captions.get(item, []))]}


def _listed(document: Document) -> Iterator[SourceRow]:
    """Lists of ids: for the split in the file's name, or for each split."""
    lists = {document.split: document.json} if isinstance(document.json, list) else document.json
    return ((document.name, {"video_id": video, "split": split}) for split, ids in lists.items() for video in ids)


def _lists_ids(document: Document) -> bool:
    content = document.json if document.kind == "json" else None
    if isinstance(content, dict) and content.keys() <= documents.SPLIT_WORDS.keys():
        content = [video for ids in content.values() for video in ids]
    elif not document.split:
        return False
    return isinstance(content, list) and bool(content) and all(isinstance(video, str) for video in content)


def _msvd_rows(document: Document) -> Iterator[SourceRow]:
    for where, row in document.rows():
        video = f"{row['videoid']}_{row['start']}_{row['end']}"
        yield where, {"video_id": video, "caption": row["description"], "msvd_language": row["language"]}


def _text_rows(document: Document) -> Iterator[SourceRow]:
    """MSVD's `ID_START_END caption` lines, a list of ids, or `ID vid7` lines that number MSVD's videos."""
    lines = [(n, line) for n, line in document.lines() if line and not line.startswith("#")]
    words = [line.split() for _, line in lines]
    if lines and all(len(pair) == 2 and _MSVD_NUMBER.fullmatch(pair[1]) for pair in words):
        # MSVD's usual 1,200 / 100 / 670 by the number in `vid7` (Venugopalan et al. 2015)
        bounds = [bisect_left((1200, 1300), int(number.removeprefix("vid"))) for _, number in words]
        pairs = [(video, ("train", "validate", "test")[n]) for (video, _), n in zip(words, bounds, strict=True)]
        yield from ((document.name, {"video_id": video, "split": split}) for video, split in pairs)
        return
    ids = all(len(line) == 1 for line in words) and document.split
    for number, line in lines:
        where, row = f"{document.name} line {number}", {"video_id": line, "split": document.split}
        if not ids:
            if not (match := _MSVD_LINE.fullmatch(line)):
                remedy = "MSVD's `ID_START_END caption` nor, in a file named train, val or test, one video id"
                raise InputError(f"{where}: {line[:40]!r} is neither {remedy}")
            row = {"video_id": match[1], "caption": match[2] or ""}
        yield where, row


def _has(key: str, document: Document) -> bool:
    return document.kind == "json" and isinstance(document.json, dict) and key in document.json


#: (is the document in this form?, reader of its rows); the first match is used.
FORMS: tuple[tuple[Callable[[Document], bool], Callable[[Document], Iterator[SourceRow]]], ...] = (
    (lambda document: document.kind == "text", _text_rows),
    (lambda document: document.kind == "table" and document.header >= MSVD_COLUMNS, _msvd_rows),
    *((partial(_has, key), partial(_joined, items=key)) for key in JOINS),
    *((partial(_has, key), partial(Document.rows, key=key)) for key in WRAPPERS),
    (_lists_ids, _listed),
    (lambda document: True, Document.rows),
)
