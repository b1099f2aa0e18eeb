"""`vb2 data`: the toy world, annotations and questions, the top-5 selection, a check against features."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videoblip2.cli.console import SOME_FAILED, Json, emit, progress, some, table

if TYPE_CHECKING:
    from videoblip2.data.prepare import PrepareReport
    from videoblip2.data.questions import QuestionReport

app = typer.Typer(help="Prepare annotations and questions; make the toy world.", no_args_is_help=True)


@app.command()
def toy(
    out: Annotated[Path, typer.Argument(help="Folder for videos/, annotations and questions.")],
    videos: Annotated[int, typer.Option(min=10, help="Number of videos.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same videos.")] = 0,
    json: Json = False,
) -> None:
    """Render short videos with sound, with captions in MSR-VTT's JSON form and questions in MSRVTT-QA's.

    \b
    Example:
      vb2 data toy toy/ --videos 200 --seed 1
    """
    from dataclasses import asdict

    from videoblip2.features.media import write_video
    from videoblip2.toy.world import write_toy_world

    world = write_toy_world(out, videos, seed, write_video, progress)
    annotations, questions = list(map(str, world.annotations)), list(map(str, world.questions))
    text = f"{videos} videos in {world.videos} ({_counts(world.counts)}); audio: {_counts(world.audio)}\n"
    text += f"next: vb2 data prepare {' '.join(annotations)} --out DIR\n"
    emit(asdict(world), json, text + f"and:  vb2 data prepare --task qa {' '.join(questions)} --out DIR")


Task = StrEnum("Task", "caption qa")  # what annotations are about


@app.command()
def prepare(
    annotations: Annotated[
        list[Path], typer.Argument(help="JSON, zip, CSV, TSV, JSON lines or text; all files at once.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for train.json, val.json, test.json, or train_qa.json …")],
    task: Annotated[Task, typer.Option(help="Captions, or questions with answers.")] = Task.caption,
    split: Annotated[
        str | None, typer.Option(help="Split of files that do not name one: train, val, test, random.")
    ] = None,
    captions: Annotated[int | None, typer.Option(min=1, help="Keep only the first N captions of each video.")] = None,
    json: Json = False,
) -> None:
    """Convert annotations to the project's own lists. Counts and flaws are reported; nothing is dropped.

    Captions: MSR-VTT's JSON or zips (2016, 2017); MSVD's AllVideoDescriptions.txt or CSV with train_list.txt,
    val_list.txt, test_list.txt (or youtube_mapping.txt); tables with the columns video_id, caption, optionally split.
    With --task qa: MSRVTT-QA's JSON, or tables with the columns video_id, question, answer.

    \b
    Example:
      vb2 data prepare train_val_annotation.zip test_videodatainfo.json.zip --out data/msrvtt
    """
    from dataclasses import asdict

    from videoblip2.data.prepare import prepare_captions
    from videoblip2.data.questions import prepare_questions

    if task is Task.qa:
        asked = prepare_questions(annotations, out, split)
        emit(asdict(asked), json, "\n".join(_question_lines(asked)))
    else:
        report = prepare_captions(annotations, out, split, captions)
        emit(asdict(report), json, "\n".join(_caption_lines(report)))


def _caption_lines(report: "PrepareReport") -> list[str]:
    lines = [f"{file}: {report.videos[s]} videos, {report.captions[s]} captions" for s, file in report.files.items()]
    lines += [f"uncaptioned.json: {number} {s} videos without captions" for s, number in report.uncaptioned.items()]
    if report.unassigned:
        lines.append(f"unassigned.json: {report.unassigned} videos that no list names")
    if report.listed_only:
        lines.append(f"in the lists, but without captions: {len(report.listed_only)} ({some(report.listed_only)})")
    if report.other_language_captions:
        lines.append(f"not English, left out: {report.other_language_captions} captions")
    if report.left_alone:
        lines.append(f"already there, left unchanged: {', '.join(report.left_alone)}; delete those of other data")
    lines.append(
        f"captions are kept as they are, including {report.duplicate_captions} that repeat another of the same video, "
        f"{report.empty_captions} empty, {report.control_character_captions} with control characters"
    )
    return lines + [f"  {flaw}, for example {example}" for flaw, example in report.examples.items()]


def _question_lines(report: "QuestionReport") -> list[str]:
    lines = []
    for split, file in report.files.items():
        inside = f"; {100 * report.in_map[split]:.1f} % of the answers in the map" if report.in_map else ""
        types = _counts(report.types[split])
        lines.append(f"{file}: {report.questions[split]} questions on {report.videos[split]} videos ({types}){inside}")
    lines.append(f"answer map: {report.map_from}")
    lines.append(
        f"questions are kept as they are, including {report.repeated} that repeat another of the same video, "
        f"{report.empty} empty, {report.control_character} with control characters"
    )
    if report.shared_videos:
        lines.append(f"videos with questions in more than one split: {report.shared_videos}")
    return lines + [f"  {flaw}, for example {example}" for flaw, example in report.examples.items()]


@app.command()
def top5(
    train: Annotated[Path, typer.Argument(help="train.json, as `vb2 data prepare` writes it.")],
    out: Annotated[Path, typer.Option(help="File to write, such as train_top5_detail.json.")],
    keep: Annotated[int, typer.Option(min=1, help="Captions to keep for each video.")] = 5,
    json: Json = False,
) -> None:
    """Select the five best, most detailed, distinct captions of each video, with scores and reasons.

    \b
    Example:
      vb2 data top5 data/msrvtt/train.json --out data/msrvtt/train_top5_detail.json
    """
    from dataclasses import asdict

    from videoblip2.data.annotations import read_annotations
    from videoblip2.data.top5 import select_top5
    from videoblip2.files import write_json

    videos = [asdict(video) for video in read_annotations(train)]
    selection = select_top5(videos, keep=keep, progress=progress)
    write_json(out, selection.videos)
    captions = sum(selection.reasons.values())
    sides = {"all": selection.all_captions, "chosen": selection.chosen}
    rows = [[LABELS[name], *(_number(name, side[name]) for side in sides.values())] for name in LABELS]
    text = table(f"{out}: {len(videos)} videos, {captions} captions", ["mean over videos", *sides], rows)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in selection.reasons.items())
    result = {"file": str(out), "videos": len(videos), "captions": captions, "reasons": selection.reasons, **sides}
    emit(result, json, f"{text}\nchosen because: {reasons}")


LABELS = {
    "words": "words a caption",
    "consensus": "consensus (leave-one-out CIDEr-D)",
    "outliers": "outliers (consensus below 10), %",
    "different captions": "different captions",
    "different words": "different words",
    "overlap": "overlap of two captions' words, %",
}


@app.command()
def check(
    annotations: Annotated[Path, typer.Argument(help="Folder with train.json …, train_qa.json …, or one such file.")],
    features: Annotated[Path, typer.Option(help="Feature store.")],
    json: Json = False,
) -> None:
    """Compare annotations with features: which videos lack features, and the reverse; --json names each."""
    from videoblip2.data.prepare import compare_with_features
    from videoblip2.features.store import FeatureStore

    report = compare_with_features(annotations, FeatureStore(features).ids)
    lines = [
        f"{file}: {number - len(report.missing[file])} of {number} videos have features"
        + (f"; missing: {some(report.missing[file])}" if report.missing[file] else "")
        for file, number in report.videos.items()
    ]
    spare = f": {some(report.unannotated)}" if report.unannotated else ""
    lines.append(f"{features}: {len(report.unannotated)} videos with features and without annotations{spare}")
    emit(
        {"ok": report.ok, "videos": report.videos, "missing": report.missing, "unannotated": report.unannotated},
        json,
        "\n".join(lines),
    )
    if not report.ok:
        raise typer.Exit(SOME_FAILED)


def _number(name: str, value: float) -> str:
    return f"{100 * value:.1f}" if name in ("consensus", "outliers", "overlap") else f"{value:.1f}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())
