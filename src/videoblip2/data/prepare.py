"""`vb2 data prepare`: captions in any published format → train.json, val.json, test.json; questions → train_qa.json …

Empty captions are left out. `vb2 data init`: the same in a project with configurations sized to it.
"""

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from videoblip2.captions.functions import MAP_SIZE, question_type
from videoblip2.config import Config, load_config
from videoblip2.data import annotations
from videoblip2.data.annotations import QUESTION_FILES, SPLIT_FILES, Question, VideoAnnotation
from videoblip2.data.caption_sources import read_sources
from videoblip2.data.documents import SPLIT_WORDS, Document, Paths, read_documents
from videoblip2.errors import InputError, counted, some
from videoblip2.files import segment_of, write_json, write_text
from videoblip2.overrides import overridden, read_yaml

UNCAPTIONED, UNASSIGNED, SOURCES = "uncaptioned.json", "unassigned.json", "sources.json"
SHARES = (0.8, 0.9)  # where training and validation end in a random split
WEIGHTS = "blip2-flant5xl"
LEAST = {"train": 1, "validate": 2}  # videos; the CIDEr of a single one is 0 by definition
#: Stage → epochs, smallest and largest number of steps, number of validations.
LENGTHS = {"ce": (100, 200, 20_000, 20), "scst": (20, 100, 8_000, 10)}


@dataclass(frozen=True)
class PrepareReport:
    """The result, by split. Flaws are counted, with an example each; all captions but the empty ones are kept."""

    videos: dict[str, int]
    captions: dict[str, int]
    files: dict[str, str]
    duplicate_captions: int  # a repeated text of the same video
    empty_captions: int  # left out
    control_character_captions: int
    examples: dict[str, str]
    uncaptioned: dict[str, int]  # videos without captions, in `uncaptioned.json`
    unassigned: int  # videos in none of the lists, in `unassigned.json`
    listed_only: list[str]  # listed videos without captions
    moved: int  # videos moved by lists, a file name or a random split from the split in their file
    without_features: list[str]  # left out on request
    other_language_captions: int
    left_alone: list[str]  # split files from an earlier run


def prepare_captions(
    paths: Paths,
    out: str | Path,
    split: str | None = None,
    first: int | None = None,
    keep: Callable[[str], bool] = bool,
) -> PrepareReport:
    """Write `train.json`, `val.json` and `test.json` in `out` from annotation files, zipped or not.

    Reads every form of `caption_sources`. Captions keep their order and their exact text. A split comes from lists of
    ids, else from `split` or a file name (`train.csv`), else from the document itself. `split` is one of CHOICES;
    "random" gives every video a new split, 80/10/10 by a digest of its id, so adding others does not move it; "auto"
    does so only for videos without a split. Only the `first` captions of each video are kept, and only videos whose id
    satisfies `keep`. Raises `InputError`, and writes nothing, for any other layout, a repeated video, a video in no
    split, or contradictory splits.
    """
    sources, lists = read_sources(paths, split)
    splits: dict[str, dict[str, VideoAnnotation]] = {}
    uncaptioned, without, moved, empty = [], [], [], list[str]()
    for document, found in sources:
        for own, video in found.videos:
            if not keep(video.video_id):
                without.append(video.video_id)
                continue
            texts = tuple(filter(str.strip, video.captions))
            empty += [video.video_id] * (len(video.captions) - len(texts))
            listed = lists.get(video.video_id) or lists.get(segment_of(video.video_id)[0], "")
            if not texts:
                place = own or listed or document.split or ""
                uncaptioned.append({"video_id": video.video_id, "category": video.category, "split": place})
            else:
                chosen = listed if lists else _split_for(video.video_id, own, document, split)
                group = splits.setdefault(chosen, {})
                earlier = group[video.video_id].captions if video.video_id in group else ()
                group[video.video_id] = replace(video, captions=(*earlier, *texts)[:first])
                moved += [f"{video.video_id}: {own} in {document.name}"] if own and chosen not in (own, "") else []
    out, unassigned = Path(out), [*splits.pop("", {}).values()]
    if unassigned and not splits:
        named, captioned = some(list(lists), 2), some([video.video_id for video in unassigned], 2)
        other = f"which name {named}, but the captions are of {captioned}"
        raise InputError(f"{paths[0]}: none of the videos is in the lists, {other}; give lists of the same ids")
    files = {name: out / file for name, file in SPLIT_FILES.items() if name in splits}
    for name, file in files.items():
        annotations.write_annotations(file, splits[name].values())
    if uncaptioned:
        write_json(out / UNCAPTIONED, uncaptioned)
    if unassigned:
        annotations.write_annotations(out / UNASSIGNED, unassigned)
    descriptions = list(dict.fromkeys(found.description for _, found in sources if found.description))
    if descriptions or described(out):
        write_json(out / SOURCES, {"descriptions": descriptions})
    written = [video for videos in splits.values() for video in videos.values()] + unassigned
    ids = {video.video_id for _, found in sources for _, video in found.videos}
    known = ids | {segment_of(video)[0] for video in ids}
    counts, examples = annotations.flaws((video.video_id, caption) for video in written for caption in video.captions)
    return PrepareReport(
        videos={name: len(splits[name]) for name in files},
        captions={name: sum(len(video.captions) for video in splits[name].values()) for name in files},
        files={name: str(file) for name, file in files.items()},
        duplicate_captions=counts["duplicate"],
        empty_captions=len(empty),
        control_character_captions=counts["control_character"],
        examples=examples | {name: found[0] for name, found in (("empty", empty), ("moved", moved)) if found},
        uncaptioned=dict(sorted(Counter(str(entry["split"]) for entry in uncaptioned).items())),
        unassigned=len(unassigned),
        listed_only=[video for video in lists if video not in known],
        moved=len(moved),
        without_features=without,
        other_language_captions=sum(found.other_languages for _, found in sources),
        left_alone=sorted(f for name, f in SPLIT_FILES.items() if name not in files and (out / f).is_file()),
    )


def described(folder: Path) -> tuple[str, ...]:
    """The descriptions of the data set in the sources of the annotations in `folder`."""
    file = folder / SOURCES
    return tuple(Document.open(file).json["descriptions"]) if file.is_file() else ()


def _split_for(video_id: str, own: str | None, document: Document, split: str | None) -> str:
    """The split of a video in no list. own: the split in its document."""
    if split == "random" or (split == "auto" and not (document.split or own)):
        place = int(hashlib.sha256(video_id.encode()).hexdigest()[:8], 16) / 2**32
        return "train" if place < SHARES[0] else "validate" if place < SHARES[1] else "test"
    asked = SPLIT_WORDS.get(split or "")
    if own and asked and own != asked:
        remedy = "leave --split out, or give lists of ids"
        raise InputError(f"--split {split}: {document.name} has {video_id} in {own}; {remedy}")
    if chosen := asked or document.split or own:
        return chosen
    remedy = "a column `split`, lists of ids (train_list.txt …), file names with train, val or test, or --split random"
    raise InputError(f"{document.name}: no split for {video_id}; give {remedy}")


@dataclass(frozen=True)
class QuestionReport:
    """The result, by split. Flaws are counted, with an example each; every question is kept."""

    questions: dict[str, int]
    videos: dict[str, int]
    types: dict[str, dict[str, int]]  # questions by type and split
    in_map: dict[str, float]  # share of the answers in the answer map
    files: dict[str, str]
    map_from: str  # source of the answer map
    without_features: list[str]  # videos left out on request
    repeated: int  # the same question about the same video (MSRVTT-QA has some)
    empty: int
    control_character: int
    shared_videos: int  # videos with questions in more than one split
    examples: dict[str, str]


def prepare_questions(
    paths: Paths, out: str | Path, split: str | None = None, keep: Callable[[str], bool] = bool
) -> QuestionReport:
    """MSRVTT-QA's files, or tables of `video_id, question, answer` → train_qa.json, val_qa.json, test_qa.json in `out`.

    A document's split is the one in its name (`train_qa.json`), or `split`. A given `ans2label.json` is copied;
    without one, the 1,500 most frequent training answers are used. Only videos whose id satisfies `keep` are kept.
    """
    found, answers = _read_questions(paths, split)
    kept = {name: [q for q in found.get(name, []) if keep(q.video_id)] for name in QUESTION_FILES}
    splits = {name: asked for name, asked in kept.items() if asked}
    files = {name: Path(out) / QUESTION_FILES[name] for name in splits}
    for name, file in files.items():
        write_json(file, [asdict(question) for question in splits[name]])
    map_from = "given" if answers else "none"
    if not answers and "train" in splits:
        frequent = Counter(question.answer for question in splits["train"]).most_common(MAP_SIZE)
        answers = {answer: label for label, (answer, _) in enumerate(frequent)}
        map_from = f"the {len(answers):,} most frequent training answers"
    if answers:
        write_json(Path(out) / annotations.ANSWER_MAP, answers)
    counts, examples = Counter[str](), dict[str, str]()
    for asked in splits.values():  # a question may recur in another split
        own, first = annotations.flaws((q.video_id, q.question, q.answer) for q in asked)
        counts, examples = counts + own, first | examples
    videos = {name: {question.video_id for question in asked} for name, asked in splits.items()}
    everywhere = Counter(video for ids in videos.values() for video in ids)
    return QuestionReport(
        questions={name: len(asked) for name, asked in splits.items()},
        videos={name: len(ids) for name, ids in videos.items()},
        types={name: dict(Counter(question_type(q.question) for q in qs).most_common()) for name, qs in splits.items()},
        in_map={name: sum(q.answer in answers for q in qs) / len(qs) for name, qs in splits.items()} if answers else {},
        files={name: str(file) for name, file in files.items()},
        map_from=map_from,
        without_features=sorted({q.video_id for asked in found.values() for q in asked if not keep(q.video_id)}),
        repeated=counts["duplicate"],
        empty=counts["empty"],
        control_character=counts["control_character"],
        shared_videos=sum(count > 1 for count in everywhere.values()),
        examples={"repeated" if flaw == "duplicate" else flaw: example for flaw, example in examples.items()},
    )


def _read_questions(paths: Paths, split: str | None) -> tuple[dict[str, list[Question]], dict[str, int]]:
    """The questions of each split, and the answer map, if one is given."""
    if split not in (None, "train", "val", "test"):
        raise InputError(f"--split {split}: questions keep the split of their videos; give train, val or test")
    found: dict[str, list[Question]] = {}
    answers: dict[str, int] = {}
    for document in read_documents(paths):
        if document.kind == "json" and annotations.is_answer_map(document.json):
            answers = document.json
        elif chosen := SPLIT_WORDS.get(split or "") or document.split:
            found.setdefault(chosen, []).extend(annotations.questions_in(document))
        else:
            raise InputError(f"{document.name}: its name has no train, val or test; rename it or give --split")
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: no questions; give train_qa.json, val_qa.json or test_qa.json")
    for name, asked in found.items():
        annotations.refuse_duplicates((question.question_id for question in asked), f"{name} questions, ids")
    return found, answers


@dataclass(frozen=True)
class Project:
    """The files of a new project. `unannotated`: videos in the folder that are not in the tables."""

    prepared: PrepareReport
    unannotated: int
    files: tuple[str, ...]
    commands: tuple[str, ...]


def make_project(
    out: Path, videos: Sequence[str], video_ids: Collection[str], tables: Paths, split: str = "auto"
) -> Project:
    """Write annotations of the existing videos, the commands to run, and a configuration for each stage.

    videos: the files and folders as the user named them, for the commands; video_ids: the videos in them.
    Raises InputError if a project exists already, or too few videos are left to train or to validate on.
    """
    data, configs = out / "data", {stage: out / f"{stage}.yaml" for stage in LENGTHS}
    if there := [str(path) for path in configs.values() if path.exists()]:
        raise InputError(f"{there[0]}: already exists; choose another --out, or delete it")
    report = prepare_captions(tables, data, split, keep=lambda video: segment_of(video)[0] in video_ids)
    if few := [name for name, least in LEAST.items() if report.videos.get(name, 0) < least]:
        found = f"{counted(len(video_ids), 'video')} found, {len(report.without_features)} others only in the table"
        needs = f"fewer than {LEAST[few[0]]} to {few[0]} on ({found}); add videos, or a column `split`"
        raise InputError(f"{', '.join(map(str, tables))}: {needs}")
    for stage, path in configs.items():
        write_text(path, _configuration(stage, path, report, out))
        load_config(path)
    wanted = [word for file in report.files.values() for word in ("--annotations", file)]
    first = shlex.join(["vb2", "features", "extract", *videos, "--out", str(out / "features"), *wanted])
    commands = (first, f"vb2 weights fetch {WEIGHTS}", shlex.join(["vb2", "ce", str(configs["ce"])]))
    later = f"{shlex.join(['vb2', 'scst', str(configs['scst'])])} train.start_from=CE_RUN  # the run that vb2 ce prints"
    write_text(out / "commands.sh", "\n".join([*commands, f"# {later}", ""]))
    known = sum(report.videos.values()) + sum(report.uncaptioned.values()) + report.unassigned
    files = (*report.files.values(), *map(str, configs.values()), str(out / "commands.sh"))
    return Project(report, max(0, len(video_ids) - known), files, commands)


def _configuration(stage: str, path: Path, report: PrepareReport, out: Path) -> str:
    """The shipped configuration for own videos, with these paths and lengths."""
    base, videos = read_yaml(f"own_{stage}"), report.videos["train"]
    seen, least, most, validations = LENGTHS[stage]
    batch = min(base["train"]["batch_size"] * (1 if videos < 2000 else 2), videos)
    steps = min(max(seen * videos // batch, least), most)
    sized = {"train.steps": steps, "train.batch_size": batch, "train.validate_every": steps // validations}
    sized |= {"data.annotations": out / "data", "data.features": out / "features", "run.out": out / "runs"}
    sized |= {"optim.warmup_steps": steps // 20}
    if stage == "ce":
        sized["data.captions_per_video"] = min(2, report.captions["train"] // videos)
    content = overridden(base, [f"{key}={value}" for key, value in sized.items()], Config)
    start = " train.start_from=CE_RUN" if stage == "scst" else ""
    head = f"# Sized to {counted(videos, 'training video')} by `vb2 data init`. Run `vb2 {stage} {path}{start}`.\n"
    return head + yaml.safe_dump(content, sort_keys=False)
