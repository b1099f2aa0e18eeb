"""`vb2 data prepare`: captions in any published form → train.json, val.json, test.json, without losing any."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from videoblip2.config import InputError
from videoblip2.data.annotations import VideoAnnotation, refuse_duplicates, some, write_annotations
from videoblip2.data.caption_sources import Captions, SplitList, read_captions
from videoblip2.data.documents import Document, read_documents
from videoblip2.files import write_json

SPLIT_FILES = {"train": "train.json", "validate": "val.json", "test": "test.json"}
UNCAPTIONED, UNASSIGNED = "uncaptioned.json", "unassigned.json"
CHOICES = ("train", "val", "test", "random")
SHARES = (0.8, 0.9)  # where a random split's training and validation end


@dataclass(frozen=True)
class PrepareReport:
    """What was read and written. Flaws in captions are counted, with an example each; no caption is lost.

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
    left_alone: list[str] = field(default_factory=list)  # files of an earlier preparation that this one has none of


def prepare_captions(
    paths: Sequence[str | Path], out: str | Path, split: str | None = None, first: int | None = None
) -> PrepareReport:
    """Write `train.json`, `val.json` and `test.json` in `out` from annotation files, also zipped.

    Read are MSR-VTT's JSON (2016, 2017), MSVD's text and CSV with lists of ids, and CSV, TSV, JSON and JSON lines of
    `video_id, caption`. Captions keep their order and their exact text. A split comes from the document itself, from
    lists of ids, from a file name (`train.csv`), or from `split`: one of CHOICES, where "random" gives 80/10/10 by a
    digest of the id, so that a video keeps its split when others join. A split that no file holds is not written.
    With `first` only the first N captions of each video are kept.
    Raises `InputError` for another layout, a video that comes twice and a video in no split; nothing is written then.
    """
    if split is not None and split not in CHOICES:
        raise InputError(f"--split {split}: not one of {', '.join(CHOICES)}")
    read = [(document, read_captions(document)) for document in read_documents(paths)]
    sources = [(document, found) for document, found in read if isinstance(found, Captions)]
    lists = _merged([found for _, found in read if isinstance(found, SplitList)])
    everything = [v.video_id for _, found in sources for _, v in found.videos]
    everything += [video for _, found in sources for _, video, _ in found.uncaptioned]
    refuse_duplicates(everything, ", ".join(map(str, paths)))
    _refuse_unusable(everything, ", ".join(map(str, paths)))
    if not everything:
        raise InputError(f"{some([str(path) for path in paths])}: lists of ids, no captions; give the captions as well")
    splits = _into_splits(sources, lists, split)
    if first is not None:
        splits = {
            name: [replace(video, captions=video.captions[:first]) for video in videos]
            for name, videos in splits.items()
        }
    return _write(splits, [found for _, found in sources], lists, Path(out))


def _refuse_unusable(ids: Iterable[str], where: str) -> None:
    """Features are found as ID.npy, so an id has to be a file's name."""
    unusable = [video for video in ids if video in ("", ".", "..") or "/" in video or not video.isprintable()]
    if unusable:
        raise InputError(
            f"{where}: {some([repr(video) for video in unusable])} cannot name a file of features; rename it"
        )


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
            if lists and own is None:
                chosen = lists.get(video.video_id, "")
            else:
                chosen = own or _chosen(split, video.video_id) or document.split or _refuse(document, video.video_id)
            splits.setdefault(chosen, []).append(video)
    return splits


def _chosen(split: str | None, video_id: str) -> str | None:
    if split != "random":
        return "validate" if split == "val" else split
    place = int(hashlib.sha256(video_id.encode()).hexdigest()[:8], 16) / 2**32
    return "train" if place < SHARES[0] else "validate" if place < SHARES[1] else "test"


def _refuse(document: Document, video_id: str) -> str:
    raise InputError(
        f"{document.name}: nothing says in which split {video_id} is; give a column `split`, lists of ids "
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
        write_json(out / UNASSIGNED, [asdict(video) for video in unassigned])
    known = {video.video_id for videos in splits.values() for video in videos}
    return PrepareReport(
        videos={split: len(splits[split]) for split in files},
        captions={split: sum(len(video.captions) for video in splits[split]) for split in files},
        files={split: str(file) for split, file in files.items()},
        uncaptioned={s: sum(split == s for split, _, _ in uncaptioned) for s in sorted({s for s, _, _ in uncaptioned})},
        unassigned=len(unassigned),
        listed_only=[video for video in lists if video not in known],
        other_language_captions=sum(found.other_languages for found in sources),
        left_alone=left_alone,
        **_flaws([(v.video_id, v.captions) for videos in (*splits.values(), unassigned) for v in videos]),  # type: ignore[arg-type]
    )


def _flaws(texts: Iterable[tuple[str, Sequence[str]]]) -> dict[str, object]:
    """Counts of flawed captions, and the first of each kind."""
    counts = {"duplicate": 0, "empty": 0, "control_character": 0}
    examples: dict[str, str] = {}
    for video_id, captions in texts:
        seen: set[str] = set()
        for caption in captions:
            for flaw in flaws_of(caption, seen):
                counts[flaw] += 1
                examples.setdefault(flaw, f"{video_id}: {caption!r}")
            seen.add(caption)
    return {**{f"{flaw}_captions": count for flaw, count in counts.items()}, "examples": examples}


def flaws_of(text: str, seen: set[str]) -> list[str]:
    """Which of duplicate (in `seen`), empty, control_character a text is."""
    found = ["duplicate"] if text in seen else []
    found += ["empty"] if not text.strip() else []
    return found + (["control_character"] if any(not c.isprintable() for c in text) else [])
