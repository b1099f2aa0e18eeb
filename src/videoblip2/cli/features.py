"""`vb2 features`: extract features from videos, import, check and pack them."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Exit, Option

from videoblip2.cli import console
from videoblip2.errors import counted, some, validated

app = console.Commands(help="Extract, check and pack video and audio features.", no_args_is_help=True)
CLIP, CLAP = "openai/clip-vit-large-patch14", "laion/clap-htsat-unfused"
Output = Literal["projected", "hidden"]
Tokens = Literal["pooled", "patch"]
DType = Literal["float32", "bfloat16", "float16"] | None
Revision = Annotated[str | None, Option(help="Commit, tag or branch on the hub.")]


@app.report("features extract videos/ --out features/mine --device cuda --shard 1/4")
def extract(
    videos: Annotated[list[Path], Argument(help="Video files, or folders of them.")],
    out: Annotated[Path, Option(help="The feature store: video/ID.npy, audio/ID.npy, manifest.json.")],
    clip: Annotated[str, Option(help="Vision tower (CLIP, SigLIP …): folder or hub name.")] = CLIP,
    clap: Annotated[str, Option(help="Audio tower (CLAP, AST, Whisper …): folder or hub name.")] = CLAP,
    clip_revision: Revision = None,
    clap_revision: Revision = None,
    fps: Annotated[float | None, Option(help="Frames per second; default: 1, or 4 with --frames.")] = None,
    frames: Annotated[int | None, Option(help="Exact number of frames, evenly spaced, from those at --fps.")] = None,
    max_frames: Annotated[int | None, Option(help="Maximum frames per video; longer ones are thinned evenly.")] = None,
    output: Annotated[Output, Option(help="CLIP's vectors: projected (ViT-L/14) or hidden (ViT-B).")] = "projected",
    tokens: Annotated[Tokens, Option(help="One vector per frame, or one per patch.")] = "pooled",
    window_seconds: Annotated[float | None, Option(help="Seconds of audio per vector; default: the model's.")] = None,
    device: Annotated[str, Option(help="auto (a GPU if available), cpu, cuda, cuda:1 …")] = "auto",
    dtype: Annotated[DType, Option(help="Default: bfloat16 on cuda, else float32.")] = None,
    batch_frames: Annotated[int, Option(help="Frames encoded at a time.")] = 64,
    workers: Annotated[int | None, Option(min=1, help="Decoding threads; default: one per core, at most 8.")] = None,
    shard: Annotated[str | None, Option(metavar="I/N", help="Part I of N; parts can run at the same time.")] = None,
    resume: Annotated[bool, Option(help="Skip videos already extracted and unchanged.")] = True,
    annotations: Annotated[
        list[Path] | None, Option(help="Only videos in these annotation files, and their segments ID#START-END.")
    ] = None,
    engine: console.Engine = "local",
    actors: Annotated[int, Option(min=1, help="Number of encoder processes, with --engine ray.")] = 1,
) -> None:
    """Run videos through CLIP and CLAP. Resumable; a bad file does not stop the rest."""
    console.require(videos, "give video files, or folders of them")
    from videoblip2.captioner import pick_device
    from videoblip2.data.annotations import read_annotations
    from videoblip2.features.encoders import load_clap, load_clip
    from videoblip2.features.extract import ExtractionRun, extract_features
    from videoblip2.features.media_features import Encoders, FeatureSettings
    from videoblip2.features.sources import find_videos, ignored_entries, parse_shard

    ids = [video.video_id for file in annotations for video in read_annotations(file)] if annotations else None
    paths, run = find_videos(videos), ExtractionRun(workers, parse_shard(shard), resume, ids)
    chosen = {
        "fps": (4.0 if frames else 1.0) if fps is None else fps,
        "frames": frames,
        "max_frames": max_frames,
        "window_seconds": window_seconds,
        "output": output,
        "tokens": tokens,
        "batch_frames": batch_frames,
    }
    settings = validated(FeatureSettings, chosen)
    device = str(pick_device(device))
    kind = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    pair = load_clip(clip, device, clip_revision, kind, output, tokens), load_clap(clap, device, clap_revision, kind)
    encoders = Encoders(*pair, settings)
    ray = None
    if engine == "ray":
        from videoblip2.jobs.ray import extract_on_ray, require_ray

        require_ray()
        ray = partial(extract_on_ray, encoders, out, device, actors, workers or 1)
    with console.interruptible(f"{out}: features extracted so far are kept; run the same command again to resume"):
        report = extract_features(paths, out, encoders, run, console.progress, ray)
    others = [str(path) for path in ignored_entries(videos)]
    lines = [f"not a video by suffix or content, ignored: {_named(others)}"] if others else []
    lines += [f"noted: {caveat}" for caveat in report.noted.values()]
    lines += [f"failed: {reason}" for reason in report.failed.values()]
    lines += [f"no file for: {_named(report.missing)}"] if report.missing else []
    lines.append(f"{out}: {len(report.done)} extracted, {len(report.skipped)} kept, {len(report.failed)} failed")
    console.emit(report, "\n".join(lines), out=str(out), passed_over=others)
    console.exit_if_failed(len(report.failed), len(report.done) + len(report.skipped))


@app.report("features import clip.npy ids.json --out features/mine", name="import")
def import_(
    video: Annotated[Path, Argument(help=".npy of frame features [videos, frames, width up to 768].")],
    ids: Annotated[Path, Argument(help="JSON list of video ids, one per row.")],
    out: Annotated[Path, Option(help="The feature store to write.")],
    audio: Annotated[Path | None, Option(help=".npy of audio features [videos, windows, width up to 512].")] = None,
) -> None:
    """Make a feature store from one array of features."""
    from videoblip2.features.pack import import_arrays

    videos = import_arrays(video, ids, out, audio, console.progress)
    console.emit({"out": str(out), "videos": videos}, f"{out}: {counted(videos, 'video')}")


@app.report("features pack features/mine features/mine.safetensors")
def pack(
    store: Annotated[Path, Argument(metavar="DIR", help="A folder with video/ID.npy and audio/ID.npy.")],
    out: Annotated[Path, Argument(metavar="OUT", help="The file to write, such as msrvtt.safetensors.")],
) -> None:
    """Pack a feature store into one memory-mapped file, which every command accepts in place of the folder."""
    from videoblip2.features.pack import pack_features

    report = pack_features(store, out, console.progress)
    kinds = ", ".join(f"{modality} {kind}" for modality, kind in report.kinds.items())
    videos = counted(report.videos, "video")
    console.emit(report, f"{out}: {videos}, {report.absent} without audio, {kinds}, {report.megabytes:.1f} MiB")


@app.report("features check features/msrvtt --annotations data/msrvtt/train.json")
def check(
    store: Annotated[Path, Argument(help="A folder with video/ID.npy and audio/ID.npy, or a packed file.")],
    annotations: Annotated[Path | None, Option(help="Check the videos of this file; default: all.")] = None,
) -> None:
    """Check shapes, types, NaN, missing files, silent, empty and absent audio; exit with 3 if a video is unusable."""
    from videoblip2.data.annotations import read_annotations
    from videoblip2.features.store import check_features

    wanted = [video.video_id for video in read_annotations(annotations)] if annotations else None
    report = check_features(store, wanted)
    lines = [f"unusable: {reason}" for reason in report.unusable.values()]
    groups = [(name, getattr(report, name)) for name in ("missing", "silent", "empty", "absent")]
    groups.append(("not in the annotations", report.unannotated))
    lines += [f"{name}: {_named(ids)}" for name, ids in groups if ids]
    (least, most), (few, many) = report.frames, report.audio_windows
    videos = counted(report.videos, "video")
    lines.append(f"{store}: {videos} usable, {least}-{most} frames, {few}-{many} audio windows")
    console.emit(report, "\n".join(lines), ok=report.ok)
    if not report.ok:
        raise Exit(console.SOME_FAILED)


def _named(ids: list[str]) -> str:
    return f"{len(ids)} ({some(ids)})"
