"""`vb2 data`: the toy world, MSR-VTT's annotations, the top-5-detail selection."""

from pathlib import Path
from typing import Annotated

import typer

from videoblip2.cli.output import emit, progress

app = typer.Typer(help="Make or prepare annotations.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="print one JSON object on the last line")]


@app.command()
def toy(
    out: Annotated[Path, typer.Argument(help="folder for videos/ and the two annotation files")],
    videos: Annotated[int, typer.Option(min=10, help="how many videos")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same world")] = 0,
    json: Json = False,
) -> None:
    """Render short videos with sound, and their captions in MSR-VTT's own JSON form."""
    from videoblip2.data.toy import write_toy_world
    from videoblip2.features.media import write_video

    world = write_toy_world(out, videos, seed, write_video, progress)
    annotations = [str(path) for path in world.annotations]
    result = {"videos": str(world.videos), "annotations": annotations, "counts": world.counts, "audio": world.audio}
    text = f"{videos} videos in {world.videos} ({_counts(world.counts)}); audio: {_counts(world.audio)}\n"
    emit(result, json, text + f"next: vb2 data prepare {' '.join(annotations)} --out DIR")


@app.command()
def prepare(
    annotations: Annotated[list[Path], typer.Argument(help="MSR-VTT's JSON or zip files, all of them")],
    out: Annotated[Path, typer.Option(help="folder for train.json, val.json, test.json")],
    json: Json = False,
) -> None:
    """Turn MSR-VTT's annotations into train.json, val.json and test.json."""
    from dataclasses import asdict

    from videoblip2.data.annotations import prepare_msrvtt

    report = prepare_msrvtt(annotations, out)
    lines = [f"{file}: {report.videos[s]} videos, {report.captions[s]} captions" for s, file in report.files.items()]
    lines.append(
        f"captions kept as they are, among them: {report.duplicate_captions} that repeat one of their video, "
        f"{report.empty_captions} empty, {report.control_character_captions} with control characters"
    )
    lines += [f"  {flaw}, for example {example}" for flaw, example in report.examples.items()]
    emit(asdict(report), json, "\n".join(lines))


@app.command()
def top5(
    train: Annotated[Path, typer.Argument(help="train.json, as `vb2 data prepare` writes it")],
    out: Annotated[Path, typer.Option(help="file to write, such as train_top5_detail.json")],
    json: Json = False,
) -> None:
    """Select the five best, most detailed, distinct captions of each video, with scores and reasons."""
    from dataclasses import asdict

    from videoblip2.data.annotations import read_annotations, write_json
    from videoblip2.data.top5 import select_top5

    selected = select_top5([asdict(video) for video in read_annotations(train)], df=None, keep=5)
    write_json(out, selected)
    captions = sum(len(video["captions"]) for video in selected)
    result = {"file": str(out), "videos": len(selected), "captions": captions}
    emit(result, json, f"{out}: {len(selected)} videos, {captions} captions")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())
