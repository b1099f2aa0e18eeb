"""`vb2 data prepare`: captions in any published format → train.json, val.json, test.json, keeping every caption.

`vb2 data check` compares these files with a feature store.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from videoblip2.data.annotations import (
    Store,
    VideoAnnotation,
    flaws,
    lacking,
    read_annotations,
    refuse_duplicates,
    write_annotations,
)
from videoblip2.data.caption_sources import CaptionFile, read_captions
from videoblip2.data.documents import SPLIT_WORDS, Document, read_documents
from videoblip2.data.questions import QUESTION_FILES, read_questions
from videoblip2.errors import InputError, some
from videoblip2.files import segment_of, write_json

SPLIT_FILES = {"train": "train.json", "validate": "val.json", "test": "test.json"}
UNCAPTIONED, UNASSIGNED, SOURCES = "uncaptioned.json", "unassigned.json", "sources.json"
CHOICES = ("train", "val", "test", "random", "auto")
SHARES = (0.8, 0.9)  # where a random split's training and validation end


@dataclass(frozen=True)
class PrepareReport:
    """What was read and written, by split. Flaws are counted, with an example each; every caption is kept."""

    videos: dict[str, int]
    captions: dict[str, int]
    files: dict[str, str]
    duplicate_captions: int  # a text that its own video already has
    empty_captions: int
    control_character_captions: int
    examples: dict[str, str]
    uncaptioned: dict[str, int]  # videos without captions, in `uncaptioned.json`
    unassigned: int  # videos in none of the given lists, in `unassigned.json`
    listed_only: list[str]  # videos listed, without captions
    moved: int  # videos that lists, a file's name or a random split put in another split than their file says
    without_features: list[str]  # left out on request
    other_language_captions: int
    left_alone: list[str]  # split files of an earlier preparation


def prepare_captions(
    paths: Sequence[str | Path],
    out: str | Path,
    split: str | None = None,
    first: int | None = None,
    keep: Callable[[str], bool] = bool,
) -> PrepareReport:
    """Write `train.json`, `val.json` and `test.json` in `out` from annotation files, zipped or not.

    Reads every form of `caption_sources`. Captions keep their order and their exact text. A split comes from lists of
    ids, else from `split` or a file name (`train.csv`), else from the document itself. `split` is one of CHOICES;
    "random" gives every video a new split, 80/10/10 by a digest of its id, so adding others does not move it; "auto"
    does so where nothing says the split. Only the `first` captions of each video are kept, and only videos whose id
    satisfies `keep`. Raises `InputError`, and writes nothing, for any other layout, a repeated video, a video in no
    split, contradicting splits.
    """
    sources, lists = _read(paths, split)
    splits: dict[str, dict[str, VideoAnnotation]] = {}
    uncaptioned, without, moved = [], [], []
    for document, found in sources:
        for own, video in found.videos:
            if not keep(video.video_id):
                without.append(video.video_id)
            elif not video.captions:
                uncaptioned.append({"video_id": video.video_id, "category": video.category, "split": str(own)})
            else:
                listed = lists.get(video.video_id) or lists.get(segment_of(video.video_id)[0], "")
                chosen = listed if lists else _split_for(video.video_id, own, document, split)
                group = splits.setdefault(chosen, {})
                earlier = group[video.video_id].captions if video.video_id in group else ()
                group[video.video_id] = replace(video, captions=(*earlier, *video.captions)[:first])
                moved += [f"{video.video_id}: {own} in {document.name}"] if own and chosen not in (own, "") else []
    out, unassigned = Path(out), [*splits.pop("", {}).values()]
    if unassigned and not splits:
        raise InputError(
            f"{paths[0]}: none of the videos is in the lists, which name {some(list(lists), 2)}, while the captions "
            f"are of {some([video.video_id for video in unassigned], 2)}; give lists of the same ids"
        )
    files = {name: out / file for name, file in SPLIT_FILES.items() if name in splits}
    for name, file in files.items():
        write_annotations(file, splits[name].values())
    for extra, entries in ((UNCAPTIONED, uncaptioned), (UNASSIGNED, [asdict(video) for video in unassigned])):
        if entries:
            write_json(out / extra, entries)
    descriptions = list(dict.fromkeys(found.description for _, found in sources if found.description))
    if descriptions or described(out):
        write_json(out / SOURCES, {"descriptions": descriptions})
    written = [video for videos in splits.values() for video in videos.values()] + unassigned
    ids = {video.video_id for _, found in sources for _, video in found.videos}
    known = ids | {segment_of(video)[0] for video in ids}
    counts, examples = flaws((video.video_id, caption) for video in written for caption in video.captions)
    return PrepareReport(
        videos={name: len(splits[name]) for name in files},
        captions={name: sum(len(video.captions) for video in splits[name].values()) for name in files},
        files={name: str(file) for name, file in files.items()},
        duplicate_captions=counts["duplicate"],
        empty_captions=counts["empty"],
        control_character_captions=counts["control_character"],
        examples=examples | ({"moved": moved[0]} if moved else {}),
        uncaptioned=dict(sorted(Counter(str(entry["split"]) for entry in uncaptioned).items())),
        unassigned=len(unassigned),
        listed_only=[video for video in lists if video not in known],
        moved=len(moved),
        without_features=without,
        other_language_captions=sum(found.other_languages for _, found in sources),
        left_alone=sorted(f for name, f in SPLIT_FILES.items() if name not in files and (out / f).is_file()),
    )


def described(folder: Path) -> tuple[str, ...]:
    """How the documents that the annotations in `folder` were made from describe their data set."""
    file = folder / SOURCES
    return tuple(Document.open(file).json["descriptions"]) if file.is_file() else ()


def _read(paths: Sequence[str | Path], split: str | None) -> tuple[list[tuple[Document, CaptionFile]], dict[str, str]]:
    """The documents with captions, and the split of each video that the other documents list."""
    if split is not None and split not in CHOICES:
        raise InputError(f"--split {split}: not one of {', '.join(CHOICES)}")
    where = ", ".join(map(str, paths))
    said = [(document, read_captions(document)) for document in read_documents(paths)]
    sources = [(document, _as_list(document, found, said)) for document, found in said]
    ids = [video.video_id for _, found in sources for _, video in found.videos]
    if not ids:
        raise InputError(f"{where}: lists of ids, no captions; give the captions as well")
    refuse_duplicates((video for video in ids if not segment_of(video)[1]), where)  # ActivityNet has two of some
    # Features are stored as ID.npy, so an id must be a valid file name.
    unusable = [repr(video) for video in ids if video in ("", ".", "..") or "/" in video or not video.isprintable()]
    if unusable:
        raise InputError(f"{where}: {some(unusable)} cannot name a file of features; rename it")
    lists: dict[str, str] = {}
    for document, found in sources:
        if found.splits and split not in (None, "auto"):
            raise InputError(f"--split {split}: {document.name} says which split videos are in; give one of the two")
        for video, own in found.splits.items():
            if lists.setdefault(video, own) != own:
                raise InputError(f"{document.name}: {video} is in {own}, and in {lists[video]} by another list")
    return sources, lists


def _as_list(document: Document, found: CaptionFile, sources: Sequence[tuple[Document, CaptionFile]]) -> CaptionFile:
    """A document named train, val or test that only repeats some videos of the others (1k-A's test set) lists them."""
    others = [video for other, said in sources if other is not document for _, video in said.videos]
    known = {video.video_id: set(video.captions) for video in others}
    repeats = all(known.get(video.video_id, set()).issuperset(video.captions) for _, video in found.videos)
    if not document.split or not repeats or not 0 < len(found.videos) < len(known):
        return found
    return CaptionFile(splits={video.video_id: document.split for _, video in found.videos})


def _split_for(video_id: str, own: str | None, document: Document, split: str | None) -> str:
    """The split of a video that no list names. own: the one that its document gives it."""
    if split == "random" or (split == "auto" and not (document.split or own)):
        place = int(hashlib.sha256(video_id.encode()).hexdigest()[:8], 16) / 2**32
        return "train" if place < SHARES[0] else "validate" if place < SHARES[1] else "test"
    asked = SPLIT_WORDS.get(split or "")
    if own and asked and own != asked:
        remedy = "leave --split out, or give lists of ids"
        raise InputError(f"--split {split}: {document.name} has {video_id} in {own}; {remedy}")
    if chosen := asked or document.split or own:
        return chosen
    remedy = (
        "lists of ids (train_list.txt, val_list.txt, test_list.txt), file names with train, val or test, or --split"
    )
    raise InputError(
        f"{document.name}: nothing says which split {video_id} is in; give a column `split`, {remedy} random"
    )


@dataclass(frozen=True)
class Coverage:
    """Which videos of annotation files have features."""

    videos: dict[str, int]  # by file
    missing: dict[str, list[str]]  # those that lack features of a modality, by file
    lacking: dict[str, list[str]]  # the same by modality
    unannotated: list[str]  # with features only

    @property
    def ok(self) -> bool:
        return not any(self.missing.values())


def compare_with_features(annotations: str | Path, store: Store) -> Coverage:
    """Compare one annotation file, or all those in a folder, with a feature store.

    Raises `InputError` for a folder without annotation files.
    """
    path = Path(annotations)
    names = (*SPLIT_FILES.values(), *QUESTION_FILES.values())
    files = [path / name for name in names if (path / name).is_file()] if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: holds none of {', '.join(names)}; make them with `vb2 data prepare`")
    wanted = {}
    for file in files:
        entries = read_questions(file) if file.stem.endswith("_qa") else read_annotations(file)
        wanted[file.name] = list(dict.fromkeys(entry.video_id for entry in entries))
    without = lacking(dict.fromkeys(chain(*wanted.values())), store)
    bad = {video for videos in without.values() for video in videos}
    return Coverage(
        videos={name: len(videos) for name, videos in wanted.items()},
        missing={name: [video for video in videos if video in bad] for name, videos in wanted.items()},
        lacking=without,
        unannotated=sorted(set(store.ids).difference(*wanted.values())),
    )
