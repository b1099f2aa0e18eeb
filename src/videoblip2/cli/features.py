"""`vb2 features`: videos to features, a look at what came out, and all of it in one file."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from videoblip2.cli.output import emit, interruptible, progress

app = typer.Typer(help="Extract, check and pack video and audio features.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="print one JSON object on the last line")]


class Engine(StrEnum):
    """What runs the files through the encoders."""

    local = "local"
    ray = "ray"


@app.command()
def extract(
    videos: Annotated[list[Path], typer.Argument(help="video files, or folders of them")],
    out: Annotated[Path, typer.Option(help="the feature store: video/ID.npy, audio/ID.npy, manifest.json")],
    clip: Annotated[str, typer.Option(help="CLIP model: folder or hub name")] = "openai/clip-vit-large-patch14",
    clap: Annotated[str, typer.Option(help="CLAP model: folder or hub name")] = "laion/clap-htsat-unfused",
    clip_revision: Annotated[str | None, typer.Option(help="commit, tag or branch on the hub")] = None,
    clap_revision: Annotated[str | None, typer.Option(help="commit, tag or branch on the hub")] = None,
    fps: Annotated[float | None, typer.Option(help="frames a second; default: 1, with --frames 4")] = None,
    frames: Annotated[int | None, typer.Option(help="exactly so many a video, evenly, out of those at --fps")] = None,
    max_frames: Annotated[int | None, typer.Option(help="thin longer videos evenly to this many frames")] = None,
    output: Annotated[str, typer.Option(help="CLIP's vectors: projected (ViT-L/14) or hidden (ViT-B)")] = "projected",
    tokens: Annotated[str, typer.Option(help="pooled: one vector a frame; patch: one for each patch")] = "pooled",
    window_seconds: Annotated[float | None, typer.Option(help="audio to one vector; default: the model's own")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; default: bfloat16 on cuda")] = None,
    batch_frames: Annotated[int, typer.Option(help="frames in one forward pass")] = 64,
    workers: Annotated[int | None, typer.Option(min=1, help="threads that decode; default: one a core")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="the I-th of N parts, which can run together")
    ] = None,
    resume: Annotated[bool, typer.Option(help="keep what the store has of the same bytes")] = True,
    engine: Annotated[Engine, typer.Option(help="ray: Ray Data, on one machine or many")] = Engine.local,
    actors: Annotated[int, typer.Option(min=1, help="with ray: encoders at the same time")] = 1,
    json: Json = False,
) -> None:
    """Run videos through CLIP and CLAP; resumable, and a bad file does not stop the rest."""
    from videoblip2.features.encoders import load_clap, load_clip
    from videoblip2.features.extract import ExtractionRun, extract_features, find_videos, ignored_entries, parse_shard
    from videoblip2.features.media_features import Encoders
    from videoblip2.features.settings import feature_settings

    paths, run = find_videos(videos), ExtractionRun(workers, parse_shard(shard), resume)
    settings = feature_settings(
        fps=(4.0 if frames else 1.0) if fps is None else fps,
        frames=frames,
        max_frames=max_frames,
        window_seconds=window_seconds,
        output=output,
        tokens=tokens,
        batch_frames=batch_frames,
    )
    kind = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    encoders = Encoders(
        load_clip(clip, device, clip_revision, kind, output, tokens),
        load_clap(clap, device, clap_revision, kind),
        settings,
    )
    ray = _ray_engine(encoders, out, device, actors, workers) if engine is Engine.ray else None
    with interruptible(f"{out}: what is extracted is kept; run the same command to go on"):
        report = extract_features(paths, out, encoders, run, progress, ray)
    others = [str(path) for path in ignored_entries(videos)]
    lines = [f"no video by suffix or content, passed over: {_some(others)}"] if others else []
    lines += [f"failed: {reason}" for reason in report.failed.values()]
    lines.append(f"{out}: {len(report.done)} extracted, {len(report.skipped)} kept, {len(report.failed)} failed")
    result = {"out": str(out), "done": report.done, "skipped": report.skipped, "failed": report.failed}
    result["passed_over"] = others
    emit(result, json, "\n".join(lines))
    if report.failed and not (report.done or report.skipped):
        raise typer.Exit(1)


def _ray_engine(encoders: Any, out: Path, device: str, actors: int, workers: int | None) -> Any:
    from videoblip2.features.ray_engine import RayEngine, require_ray

    require_ray()
    return RayEngine(encoders, out, device, actors, workers or 1)


@app.command("import")
def import_(
    video: Annotated[Path, typer.Argument(help=".npy of frame features [videos, frames, width up to 768]")],
    ids: Annotated[Path, typer.Argument(help="JSON list of video ids, one a row")],
    out: Annotated[Path, typer.Option(help="the feature store to write")],
    audio: Annotated[
        Path | None, typer.Option(help=".npy of audio features [videos, windows, width up to 512]")
    ] = None,
    json: Json = False,
) -> None:
    """Make a feature store of features that lie in one array already."""
    from videoblip2.features.arrays import import_arrays

    videos = import_arrays(video, ids, out, audio, progress)
    emit({"out": str(out), "videos": videos}, json, f"{out}: {videos} videos")


@app.command()
def pack(
    store: Annotated[Path, typer.Argument(metavar="DIR", help="a folder with video/ID.npy and audio/ID.npy")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the file to write, such as msrvtt.safetensors")],
    json: Json = False,
) -> None:
    """All features in one memory-mapped file, to be given wherever their folder can be."""
    from dataclasses import asdict

    from videoblip2.features.pack import pack_features

    report = pack_features(store, out, progress)
    kinds = ", ".join(f"{modality} {kind}" for modality, kind in report.kinds.items())
    text = f"{out}: {report.videos} videos, {report.absent} without audio, {kinds}, {report.megabytes:.1f} MiB"
    emit(asdict(report), json, text)


@app.command()
def check(
    store: Annotated[Path, typer.Argument(help="a folder with video/ID.npy and audio/ID.npy, or a packed file")],
    annotations: Annotated[Path | None, typer.Option(help="check the videos of this file; default: all")] = None,
    json: Json = False,
) -> None:
    """Shapes, types, NaN, missing files, silent, empty and absent audio; exit 1 where a video cannot be used."""
    from dataclasses import asdict

    from videoblip2.data.annotations import read_annotations
    from videoblip2.features.check import check_features

    wanted = [video.video_id for video in read_annotations(annotations)] if annotations else None
    report = check_features(store, wanted)
    lines = [f"unusable: {reason}" for reason in report.unusable.values()]
    lines += [
        f"{name}: {_some(ids)}" for name in ("missing", "silent", "empty", "absent") if (ids := getattr(report, name))
    ]
    lines += [f"not in the annotations: {_some(report.unannotated)}"] if report.unannotated else []
    (least, most), (few, many) = report.frames, report.audio_windows
    lines.append(f"{store}: {report.videos} videos usable, {least}-{most} frames, {few}-{many} audio windows")
    emit({"ok": report.ok, **asdict(report)}, json, "\n".join(lines))
    if not report.ok:
        raise typer.Exit(1)


def _some(ids: list[str]) -> str:
    return f"{len(ids)} ({', '.join(ids[:5])}{', …' if len(ids) > 5 else ''})"
