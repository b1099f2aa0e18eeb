"""`vb2 data`: the toy world, annotations and questions, the top-5-detail selection, a check against features."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videoblip2.cli.output import emit, progress, table

if TYPE_CHECKING:
    from videoblip2.data.prepare import PrepareReport
    from videoblip2.data.questions import QuestionReport

app = typer.Typer(help="Make or prepare annotations.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="print one JSON object on the last line")]


@app.command()
def toy(
    out: Annotated[Path, typer.Argument(help="folder for videos/, annotations and questions")],
    videos: Annotated[int, typer.Option(min=10, help="how many videos")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same world")] = 0,
    json: Json = False,
) -> None:
    """Render short videos with sound, their captions in MSR-VTT's JSON form and questions in MSRVTT-QA's."""
    from videoblip2.features.codecs import write_video
    from videoblip2.toy.world import write_toy_world

    world = write_toy_world(out, videos, seed, write_video, progress)
    annotations = [str(path) for path in world.annotations]
    questions = [str(path) for path in world.questions]
    result = {"videos": str(world.videos), "annotations": annotations, "counts": world.counts, "audio": world.audio}
    result["questions"] = questions
    text = f"{videos} videos in {world.videos} ({_counts(world.counts)}); audio: {_counts(world.audio)}\n"
    text += f"next: vb2 data prepare {' '.join(annotations)} --out DIR\n"
    emit(result, json, text + f"and:  vb2 data prepare --task qa {' '.join(questions)} --out DIR")


class Task(StrEnum):
    """What annotations are about."""

    caption = "caption"
    qa = "qa"


@app.command()
def prepare(
    annotations: Annotated[
        list[Path], typer.Argument(help="JSON, zip, CSV, TSV, JSON lines or text; all files at once")
    ],
    out: Annotated[Path, typer.Option(help="folder for train.json, val.json, test.json, or train_qa.json …")],
    task: Annotated[Task, typer.Option(help="captions, or questions with answers")] = Task.caption,
    split: Annotated[str | None, typer.Option(help="where the files do not say: train, val, test, random")] = None,
    captions: Annotated[int | None, typer.Option(min=1, help="keep only the first so many of each video")] = None,
    json: Json = False,
) -> None:
    """Turn annotations into the project's own lists; counts and flaws are reported, nothing is dropped.

    Captions: MSR-VTT's JSON or zips (2016, 2017); MSVD's AllVideoDescriptions.txt or CSV with train_list.txt,
    val_list.txt, test_list.txt (or youtube_mapping.txt); tables with the columns video_id, caption and perhaps split.
    With --task qa: MSRVTT-QA's JSON, or tables with the columns video_id, question, answer.
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
        lines.append(f"unassigned.json: {report.unassigned} videos that none of the lists names")
    if report.listed_only:
        lines.append(f"in the lists, but without captions: {len(report.listed_only)} ({_first(report.listed_only)})")
    if report.other_language_captions:
        lines.append(f"not English, left out: {report.other_language_captions} captions")
    if report.left_alone:
        lines.append(f"from before, left as they are: {', '.join(report.left_alone)}; remove what is of other data")
    lines.append(
        f"captions kept as they are, among them: {report.duplicate_captions} that repeat one of their video, "
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
        f"questions kept as they are, among them: {report.repeated} that repeat one of their video, "
        f"{report.empty} empty, {report.control_character} with control characters"
    )
    if report.shared_videos:
        lines.append(f"videos with questions in more than one split: {report.shared_videos}")
    return lines + [f"  {flaw}, for example {example}" for flaw, example in report.examples.items()]


@app.command()
def top5(
    train: Annotated[Path, typer.Argument(help="train.json, as `vb2 data prepare` writes it")],
    out: Annotated[Path, typer.Option(help="file to write, such as train_top5_detail.json")],
    keep: Annotated[int, typer.Option(min=1, help="captions a video")] = 5,
    json: Json = False,
) -> None:
    """Select the five best, most detailed, distinct captions of each video, with scores and reasons."""
    from dataclasses import asdict

    from videoblip2.data.annotations import read_annotations
    from videoblip2.data.top5 import select_with_statistics
    from videoblip2.files import write_json

    videos = [asdict(video) for video in read_annotations(train)]
    selection = select_with_statistics(videos, keep=keep, progress=progress)
    write_json(out, selection.videos)
    captions = sum(selection.reasons.values())
    sides = {"all": selection.all_captions, "chosen": selection.chosen}
    rows = [[LABELS[name], *(_number(name, side[name]) for side in sides.values())] for name in LABELS]
    text = table(f"{out}: {len(videos)} videos, {captions} captions", ["mean over videos", *sides], rows)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in selection.reasons.items())
    result = {"file": str(out), "videos": len(videos), "captions": captions, "reasons": selection.reasons, **sides}
    emit(result, json, f"{text}\nchosen for: {reasons}")


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
    annotations: Annotated[Path, typer.Argument(help="folder with train.json …, train_qa.json …, or one such file")],
    features: Annotated[Path, typer.Option(help="feature store")],
    json: Json = False,
) -> None:
    """Compare annotations with features: which videos lack features, and the reverse; --json names each."""
    from videoblip2.data.coverage import compare_with_features
    from videoblip2.features.store import FeatureStore

    report = compare_with_features(annotations, FeatureStore(features).ids)
    lines = [
        f"{file}: {number - len(report.missing[file])} of {number} videos have features"
        + (f"; missing: {_first(report.missing[file])}" if report.missing[file] else "")
        for file, number in report.videos.items()
    ]
    spare = f": {_first(report.unannotated)}" if report.unannotated else ""
    lines.append(f"{features}: {len(report.unannotated)} videos with features and without annotations{spare}")
    emit(
        {"ok": report.ok, "videos": report.videos, "missing": report.missing, "unannotated": report.unannotated},
        json,
        "\n".join(lines),
    )
    if not report.ok:
        raise typer.Exit(1)


def _number(name: str, value: float) -> str:
    return f"{100 * value:.1f}" if name in ("consensus", "outliers", "overlap") else f"{value:.1f}"


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())
