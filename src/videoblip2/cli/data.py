"""`vb2 data`: the toy world, annotations and questions, the top-5 selection, a check against features."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Exit, Option

from videoblip2.cli.console import SOME_FAILED, Commands, emit, listed, progress, table
from videoblip2.errors import InputError, counted, some

if TYPE_CHECKING:
    from videoblip2.data.prepare import PrepareReport, QuestionReport

SPLIT = "Split for files that name none: train, val, test; random: a new split of all; auto: of the rest."
KEPT = "{} are kept as they are, including {} that repeat another of the same video, {} with control characters"
app = Commands(help="Prepare annotations and questions; make the toy world.", no_args_is_help=True)


@app.report("data toy toy/ --videos 200 --seed 1")
def toy(
    out: Annotated[Path, Argument(file_okay=False, help="Folder for videos/, annotations and questions.")],
    videos: Annotated[int, Option(min=10, help="Number of videos.")] = 500,
    seed: Annotated[int, Option(min=0, help="The same seed gives the same videos.")] = 0,
) -> None:
    """Render short videos with sound, with captions in MSR-VTT's JSON format and questions in MSRVTT-QA's."""
    from videoblip2.toy.world import write_toy_world

    world = write_toy_world(out, videos, seed, progress)
    annotations, questions = list(map(str, world.annotations)), list(map(str, world.questions))
    text = f"{videos} videos in {world.videos} ({_counts(world.counts)}); audio: {_counts(world.audio)}\n"
    text += f"next: vb2 data prepare {' '.join(annotations)} --out DIR\n"
    emit(world, text + f"and:  vb2 data prepare --task qa {' '.join(questions)} --out DIR")


@app.report("data prepare captions.csv --out data/mine --split random")
def prepare(
    annotations: Annotated[list[Path], Argument(help="JSON, zip, CSV, TSV, JSON lines or text; give all at once.")],
    out: Annotated[Path, Option(file_okay=False, help="Folder for train.json, val.json …, or train_qa.json …")],
    task: Annotated[Literal["caption", "qa"], Option(help="Captions, or questions with answers.")] = "caption",
    split: Annotated[str | None, Option(help=SPLIT)] = None,
    captions: Annotated[int | None, Option(min=1, help="Keep only the first N captions of each video.")] = None,
    only_with: Annotated[Path | None, Option(help="Keep only videos in this feature store; count the rest.")] = None,
) -> None:
    """Convert annotations to the project's format. Counts and flaws are reported; nothing is dropped.

    Captions, recognized by content, gzipped or not: MSR-VTT (2016, 2017, hub copies, 9k and 1k-A lists), MSVD, VATEX,
    ActivityNet, YouCook2, AudioCaps, Clotho, COCO, VALOR, VAST; tables (CSV, TSV, JSON, JSON lines, parquet) of
    video_id, caption, optionally split. Captions with times become videos named ID#start-end, in seconds. The split
    comes from lists of ids (train_list.txt, val_list.txt, test_list.txt), else from file names, else from file content.
    With --task qa: MSRVTT-QA's JSON, or tables with the columns video_id, question, answer.
    """
    from videoblip2.data.prepare import prepare_captions, prepare_questions
    from videoblip2.features.store import FeatureStore

    report: PrepareReport | QuestionReport
    keep = FeatureStore(only_with).complete if only_with else bool
    if task == "qa":
        report = prepare_questions(annotations, out, split, keep)
        lines = _question_lines(report)
    else:
        report = prepare_captions(annotations, out, split, captions, keep)
        lines = _caption_lines(report)
    if gone := report.without_features:
        if not report.files:
            raise InputError(f"--only-with {only_with}: has none of these videos; extract features of {some(gone)}")
        lines.append(f"left out, not in {only_with}: {counted(len(gone), 'video')} ({some(gone)})")
    flaws = [f"  {flaw}, for example {example}" for flaw, example in report.examples.items()]
    emit(report, "\n".join([*lines, *flaws]))


def _caption_lines(report: "PrepareReport") -> list[str]:
    files = [
        f"{file}: {counted(report.videos[split], 'video')}, {counted(report.captions[split], 'caption')}"
        for split, file in report.files.items()
    ]
    bare = [
        f"uncaptioned.json: {counted(n, f'{s} video'.strip())} without captions" for s, n in report.uncaptioned.items()
    ]
    without, others, kept = report.listed_only, report.other_language_captions, ", ".join(report.left_alone)
    rest = listed(
        (report.unassigned, f"unassigned.json: {counted(report.unassigned, 'video')} that no list names"),
        (without, f"in the lists, but without captions: {len(without)} ({some(without)})"),
        (report.empty_captions, f"empty, left out: {counted(report.empty_captions, 'caption')}"),
        (others, f"not English, left out: {counted(others, 'caption')}"),
        (report.moved, f"in a different split from the one their file names: {counted(report.moved, 'video')}"),
        (kept, f"already there, left unchanged: {kept}; delete any that belong to other data"),
    )
    flaws = KEPT.format("captions", report.duplicate_captions, report.control_character_captions)
    return [*files, *bare, *rest, flaws]


def _question_lines(report: "QuestionReport") -> list[str]:
    lines = []
    for split, file in report.files.items():
        inside = f"; {100 * report.in_map[split]:.1f} % of the answers in the map" if report.in_map else ""
        asked, videos = counted(report.questions[split], "question"), counted(report.videos[split], "video")
        lines.append(f"{file}: {asked} on {videos} ({_counts(report.types[split])}){inside}")
    kept = KEPT.format("questions", report.repeated, f"{report.empty} empty, {report.control_character}")
    shared = (report.shared_videos, f"videos with questions in more than one split: {report.shared_videos}")
    return [*lines, f"answer map: {report.map_from}", kept, *listed(shared)]


@app.report("data init videos/ captions.csv --out mine")
def init(
    videos: Annotated[Path, Argument(help="Folder of videos.")],
    annotations: Annotated[list[Path], Argument(metavar="TABLE...", help="Captions, in any form of `data prepare`.")],
    out: Annotated[Path, Option(file_okay=False, help="Folder for data, configurations, commands.")] = Path("mine"),
    split: Annotated[str, Option(help="As in `data prepare`; auto: a new split if files name none.")] = "auto",
) -> None:
    """Start a project: annotations of your videos, configurations sized to them, and the commands to run next."""
    from videoblip2.data.prepare import make_project
    from videoblip2.features.sources import find_videos

    ids = {video.stem for video in find_videos([videos])}
    project = make_project(out, [str(videos)], ids, annotations, split)
    missing, spare = project.prepared.without_features, project.unannotated
    rest = listed(
        (missing, f"left out, no file in {videos}: {counted(len(missing), 'video')} ({some(missing)})"),
        (spare, f"videos without captions: {spare}"),
    )
    lines = [*_caption_lines(project.prepared), *rest, *project.files[len(project.prepared.files) :], "next:"]
    emit(project, "\n".join([*lines, *(f"  {command}" for command in project.commands)]))


@app.report("data top5 data/msrvtt/train.json --out data/msrvtt/train_top5_detail.json")
def top5(
    train: Annotated[Path, Argument(help="train.json, as `vb2 data prepare` writes it.")],
    out: Annotated[Path, Option(dir_okay=False, help="File to write, such as train_top5_detail.json.")],
    keep: Annotated[int, Option(min=1, help="Captions to keep for each video.")] = 5,
) -> None:
    """Select the five best, most detailed, distinct captions of each video, with scores and reasons."""
    from dataclasses import asdict

    from videoblip2.data.annotations import read_annotations
    from videoblip2.data.top5 import select_top5
    from videoblip2.files import write_json

    videos = [asdict(video) for video in read_annotations(train)]
    selection = select_top5(videos, keep=keep, progress=progress)
    write_json(out, selection.videos)
    captions = sum(selection.reasons.values())
    sides = {"all": selection.all_captions, "chosen": selection.chosen}
    rows = [[label, *(f"{scale * side[key]:.1f}" for side in sides.values())] for key, (label, scale) in SHOWN.items()]
    title = f"{out}: {counted(len(videos), 'video')}, {counted(captions, 'caption')}"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in selection.reasons.items())
    text = f"{table(title, ['mean over videos', *sides], rows)}\nchosen because: {reasons}"
    result = {"file": str(out), "videos": len(videos), "captions": captions, "reasons": selection.reasons}
    emit(result, text, **sides)


#: Measure of a selection → its label, and the scale it is shown at.
SHOWN = {
    "words": ("words per caption", 1),
    "consensus": ("consensus (leave-one-out CIDEr-D)", 100),
    "outliers": ("outliers (consensus below 10), %", 100),
    "different captions": ("distinct captions", 1),
    "different words": ("distinct words", 1),
    "overlap": ("word overlap between captions, %", 100),
}


@app.report("data check data/msrvtt --features features/msrvtt")
def check(
    annotations: Annotated[Path, Argument(help="Folder with train.json …, train_qa.json …, or one such file.")],
    features: Annotated[Path, Option(help="Feature store.")],
) -> None:
    """Compare annotations with features: which videos lack features, and vice versa; --json lists them all."""
    from videoblip2.data.annotations import compare_with_features
    from videoblip2.features.store import FeatureStore

    report = compare_with_features(annotations, FeatureStore(features))
    lines = [
        f"{file}: features of {number - len(report.missing[file])} out of {counted(number, 'video')}"
        + (f"; missing: {some(report.missing[file])}" if report.missing[file] else "")
        for file, number in report.videos.items()
    ]
    lines += [f"without {name} features: {len(ids)} ({some(ids)})" for name, ids in report.lacking.items() if ids]
    spare = f": {some(report.unannotated)}" if report.unannotated else ""
    alone = counted(len(report.unannotated), "video")
    lines.append(f"{features}: {alone} with features but no annotations{spare}")
    emit(report, "\n".join(lines), ok=report.ok)
    if not report.ok:
        raise Exit(SOME_FAILED)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())
