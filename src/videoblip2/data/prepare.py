"""`vb2 data prepare`: captions in any published form → train.json, val.json, test.json, keeping every caption.

`vb2 data check` compares these files with a feature store.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from videoblip2.config import InputError
from videoblip2.data.annotations import (
    VideoAnnotation,
    flaws,
    read_annotations,
    refuse_duplicates,
    some,
    write_annotations,
)
from videoblip2.data.caption_sources import Captions, SplitList, read_captions
from videoblip2.data.documents import SPLIT_WORDS, Document, read_documents
from videoblip2.data.questions import QUESTION_FILES, read_questions
from videoblip2.files import write_json

SPLIT_FILES = {"train": "train.json", "validate": "val.json", "test": "test.json"}
UNCAPTIONED, UNASSIGNED = "uncaptioned.json", "unassigned.json"
CHOICES = ("train", "val", "test", "random")
SHARES = (0.8, 0.9)  # where a random split's training and validation end


@dataclass(frozen=True)
class PrepareReport:
    """What was read and written. Flaws in captions are counted, with an example each; every caption is kept.

    videos, captions, files: by split. uncaptioned: videos without captions by split, listed in `uncaptioned.json`.
    unassigned: videos in none of the given lists, kept in `unassigned.json`. listed_only: listed, without captions.
    """

    videos: dict[str, int]
    captions: dict[str, int]
    files: dict[str, str]
    duplicate_captions: int = 0  # a text that its own video already has
    empty_captions: int = 0
    control_character_captions: int = 0
    examples: dict[str, str] = field(default_factory=dict)
    uncaptioned: dict[str, int] = field(default_factory=dict)
    unassigned: int = 0
    listed_only: list[str] = field(default_factory=list)
    other_language_captions: int = 0
    left_alone: list[str] = field(default_factory=list)  # split files of an earlier preparation


def prepare_captions(
    paths: Sequence[str | Path], out: str | Path, split: str | None = None, first: int | None = None
) -> PrepareReport:
    """Write `train.json`, `val.json` and `test.json` in `out` from annotation files, zipped or not.

    Reads MSR-VTT's JSON (2016, 2017), MSVD's text and CSV with lists of ids, and CSV, TSV, JSON and JSON lines of
    `video_id, caption`. Captions keep their order and their exact text. A split comes from the document itself, from
    lists of ids, from a file name (`train.csv`), or from `split`: one of CHOICES, where "random" gives 80/10/10 by a
    digest of the id, which keeps a video in its split when others are added. A split without videos is not written.
    With `first` only the first N captions of each video are kept.
    Raises `InputError` for another layout, a repeated video and a video in no split, and then writes nothing.
    """
    if split is not None and split not in CHOICES:
        raise InputError(f"--split {split}: not one of {', '.join(CHOICES)}")
    where = ", ".join(map(str, paths))
    read = [(document, read_captions(document)) for document in read_documents(paths)]
    sources = [(document, found) for document, found in read if isinstance(found, Captions)]
    lists = _merged([found for _, found in read if isinstance(found, SplitList)])
    ids = [video.video_id for _, found in sources for _, video in found.videos]
    ids += [video for _, found in sources for _, video, _ in found.uncaptioned]
    refuse_duplicates(ids, where)
    # Features are stored as ID.npy, so an id must be a valid file name.
    unusable = [repr(video) for video in ids if video in ("", ".", "..") or "/" in video or not video.isprintable()]
    if unusable:
        raise InputError(f"{where}: {some(unusable)} cannot name a file of features; rename it")
    if not ids:
        raise InputError(f"{some([str(path) for path in paths])}: lists of ids, no captions; give the captions as well")
    splits = _into_splits(sources, lists, split)
    if first is not None:
        for videos in splits.values():
            videos[:] = [replace(video, captions=video.captions[:first]) for video in videos]
    return _write(splits, [found for _, found in sources], lists, Path(out))


def _merged(lists: Sequence[SplitList]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for found in lists:
        for video, split in found.splits.items():
            if merged.setdefault(video, split) != split:
                raise InputError(f"{found.name}: {video} is in {split}, and in {merged[video]} by another list")
    return merged


def _into_splits(
    sources: Iterable[tuple[Document, Captions]], lists: Mapping[str, str], split: str | None
) -> dict[str, list[VideoAnnotation]]:
    """Videos by split; those in none of the lists under ""."""
    splits: dict[str, list[VideoAnnotation]] = {}
    for document, found in sources:
        for own, video in found.videos:
            listed = lists.get(video.video_id, "") if lists else None
            chosen = own or (listed if listed is not None else _split_for(video.video_id, document, split))
            splits.setdefault(chosen, []).append(video)
    return splits


def _split_for(video_id: str, document: Document, split: str | None) -> str:
    """The split from `split`, else from the document's name."""
    if split == "random":
        place = int(hashlib.sha256(video_id.encode()).hexdigest()[:8], 16) / 2**32
        return "train" if place < SHARES[0] else "validate" if place < SHARES[1] else "test"
    if chosen := SPLIT_WORDS.get(split or "") or document.split:
        return chosen
    raise InputError(
        f"{document.name}: nothing says which split {video_id} is in; give a column `split`, lists of ids "
        "(train_list.txt, val_list.txt, test_list.txt), file names with train, val or test, or --split random"
    )


def _write(
    splits: dict[str, list[VideoAnnotation]], sources: Sequence[Captions], lists: Mapping[str, str], out: Path
) -> PrepareReport:
    unassigned = splits.pop("", [])
    if lists and not splits:
        raise InputError(
            f"{sources[0].name}: none of its videos is in the lists, which name {some(list(lists), 2)}, while it has "
            f"{some([video.video_id for video in unassigned], 2)}; give lists of the same ids"
        )
    files = {split: out / name for split, name in SPLIT_FILES.items() if split in splits}
    left_alone = sorted(name for split, name in SPLIT_FILES.items() if split not in files and (out / name).is_file())
    for split, file in files.items():
        write_annotations(file, splits[split])
    uncaptioned = [entry for found in sources for entry in found.uncaptioned]
    if uncaptioned:
        entries = [{"video_id": video, "category": category, "split": split} for split, video, category in uncaptioned]
        write_json(out / UNCAPTIONED, entries)
    if unassigned:
        write_annotations(out / UNASSIGNED, unassigned)
    assigned = [video for videos in splits.values() for video in videos]
    known = {video.video_id for video in assigned}
    counts, examples = flaws((v.video_id, caption) for v in (*assigned, *unassigned) for caption in v.captions)
    return PrepareReport(
        videos={split: len(splits[split]) for split in files},
        captions={split: sum(len(video.captions) for video in splits[split]) for split in files},
        files={split: str(file) for split, file in files.items()},
        duplicate_captions=counts["duplicate"],
        empty_captions=counts["empty"],
        control_character_captions=counts["control_character"],
        examples=examples,
        uncaptioned=dict(sorted(Counter(split for split, _, _ in uncaptioned).items())),
        unassigned=len(unassigned),
        listed_only=[video for video in lists if video not in known],
        other_language_captions=sum(found.other_languages for found in sources),
        left_alone=left_alone,
    )


@dataclass(frozen=True)
class Coverage:
    """videos: their number by annotation file. missing: those without features, by file. unannotated: the reverse."""

    videos: dict[str, int]
    missing: dict[str, list[str]]
    unannotated: list[str]

    @property
    def ok(self) -> bool:
        return not any(self.missing.values())


def compare_with_features(annotations: str | Path, feature_ids: Iterable[str]) -> Coverage:
    """Compare one annotation file, or all those in a folder, with the videos that have features.

    Raises `InputError` for a folder without annotation files.
    """
    path = Path(annotations)
    names = (*SPLIT_FILES.values(), *QUESTION_FILES.values())
    files = [path / name for name in names if (path / name).is_file()] if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: holds none of {', '.join(names)}; make them with `vb2 data prepare`")
    have, wanted = set(feature_ids), {}
    for file in files:
        entries = read_questions(file) if file.stem.endswith("_qa") else read_annotations(file)
        wanted[file.name] = list(dict.fromkeys(entry.video_id for entry in entries))
    return Coverage(
        videos={name: len(videos) for name, videos in wanted.items()},
        missing={name: [video for video in videos if video not in have] for name, videos in wanted.items()},
        unannotated=sorted(have.difference(*wanted.values())),
    )
