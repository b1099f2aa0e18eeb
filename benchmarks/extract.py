"""Feature extraction beside the simple loop: videos a second, decoding and encoding, in one process on the CPU.

    python benchmarks/extract.py [--quick] [--json] [--videos DIR] [--rounds N]

The simple loop is what one writes first: open a file, decode all of its frames, convert those nearest to each second,
decode its sound frame by frame, then transformers' own processors and one call of CLIP and one of CLAP; the next file.
Ours is `extract_features`, which also hashes each file, writes both arrays and the manifest; the loop writes nothing.

Both have the same encoders (random weights; CLIP 224 px in patches of 32, CLAP at 10 s windows, both small), the same
number of torch threads (all cores) and the same files: the 12 real clips beside the project or, without them, toy
videos. They take turns; the ratio is the median of the rounds' ratios. The features must agree to 1e-4 of their size.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
os.environ["MKL_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import av
import numpy as np
import torch

from videoblip2.features.encoders import load_clap, load_clip
from videoblip2.features.extract import extract_features
from videoblip2.features.media import SAMPLING_RATE
from videoblip2.features.media_features import Encoders, FeatureSettings
from videoblip2.features.store import FeatureStore
from videoblip2.features.towers import FrameEncoder, SoundEncoder

CORES = len(os.sched_getaffinity(0))
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "msrvtt" / "videos"
SETTINGS = FeatureSettings(fps=1.0)
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--videos", type=Path, default=REAL, help="a folder of .mp4 files")
    parser.add_argument("--rounds", type=int, help="default: 9")
    options = parser.parse_args()
    torch.set_num_threads(CORES)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = sorted(options.videos.glob("*.mp4")) or toy_videos(root / "videos")
        encoders = small_clip(root / "clip"), small_clap(root / "clap")
        report = compare(paths, encoders, root, options.rounds or (3 if options.quick else 9))
    show(report)
    if options.json:
        print(json.dumps(report))


def compare(paths: list[Path], encoders: tuple[FrameEncoder, SoundEncoder], root: Path, rounds: int) -> dict[str, Any]:
    """Both arms by turns, after one round to warm up, in which the features are compared."""
    expected = simple_loop(paths, *encoders)
    extract_features(paths, root / "warm", Encoders(*encoders, SETTINGS))
    error = difference(FeatureStore(root / "warm"), expected)
    seconds: dict[str, list[float]] = {"simple": [], "ours": []}
    busy: dict[str, list[float]] = {"simple": [], "ours": []}
    for number in range(rounds):
        for arm in ("simple", "ours") if number % 2 else ("ours", "simple"):
            start, used = time.perf_counter(), time.process_time()
            if arm == "simple":
                simple_loop(paths, *encoders)
            else:
                extract_features(paths, root / f"out{number}", Encoders(*encoders, SETTINGS))
            seconds[arm].append(time.perf_counter() - start)
            busy[arm].append(time.process_time() - used)
    ratios = [simple / ours for simple, ours in zip(seconds["simple"], seconds["ours"], strict=True)]
    return {
        "videos": len(paths),
        "cores": CORES,
        "rounds": rounds,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "videos_per_second": {arm: len(paths) / statistics.median(times) for arm, times in seconds.items()},
        "seconds": seconds,
        "cpu_seconds": busy,
        "largest_difference": error,
    }


def simple_loop(paths: list[Path], clip: FrameEncoder, clap: SoundEncoder) -> Arrays:
    """One file after the other, one call of each model a file."""
    found: Arrays = {}
    for path in paths:
        with av.open(str(path)) as container:
            decoded = [frame for frame in container.decode(video=0)]
        frames = [frame.to_ndarray(format="rgb24") for frame in nearest(decoded, SETTINGS.fps)]
        pixels = clip.processor(images=frames, return_tensors="pt")["pixel_values"]
        windows = list(clap.windows([sound(path)]))
        with torch.inference_mode():
            visual = clip.model(pixel_values=pixels).image_embeds.numpy()
            heard = np.zeros((0, 512), np.float32)
            if windows:
                mels = clap.processor(windows, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"]
                heard = clap.model(input_features=mels.float()).audio_embeds.numpy()
        found[path.stem] = visual, heard
    return found


def nearest(frames: list[Any], fps: float) -> list[Any]:
    times = np.array([frame.time for frame in frames])
    targets = times[0] + np.arange(int((times[-1] - times[0]) * fps) + 1) / fps
    return [frames[int(np.abs(times - target).argmin())] for target in targets]


def sound(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return np.zeros(0, np.float32)
        resampler = av.AudioResampler(format="fltp", rate=SAMPLING_RATE)
        pieces = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
        pieces += resampler.resample(None)
    return np.concatenate([piece.to_ndarray().mean(axis=0, dtype=np.float32) for piece in pieces])


def difference(store: FeatureStore, expected: Arrays) -> float:
    """The largest difference, in parts of the features' standard deviation. Ends the benchmark above 1e-4."""
    worst = 0.0
    for name, pair in expected.items():
        for ours, theirs in zip(store.features(name).values(), pair, strict=True):
            if ours.shape != theirs.shape:
                raise SystemExit(f"{name}: {ours.shape} beside {theirs.shape}")
            worst = max(worst, float(np.abs(ours - theirs).max() / theirs.std()) if len(ours) else 0.0)
    if worst > 1e-4:
        raise SystemExit(f"the features differ by {worst:.1e}")
    return worst


def small_clip(folder: Path) -> FrameEncoder:
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    small = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPVisionConfig(**small, image_size=224, patch_size=32, projection_dim=768)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return load_clip(folder)


def small_clap(folder: Path) -> SoundEncoder:
    from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

    torch.manual_seed(0)
    small = {"patch_embeds_hidden_size": 32, "hidden_size": 64, "depths": (1, 1), "num_attention_heads": (2, 2)}
    patches = {"patch_size": 8, "patch_stride": (8, 8)}
    config = ClapAudioConfig(**small, **patches, num_hidden_layers=2, projection_dim=512)
    ClapAudioModelWithProjection(config).save_pretrained(folder)
    ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad").save_pretrained(folder)
    return load_clap(folder)


def toy_videos(folder: Path) -> list[Path]:
    from videoblip2.toy.world import write_toy_world

    return sorted(write_toy_world(folder, 24, 0).videos.glob("*.mp4"))


def show(report: dict[str, Any]) -> None:
    simple, ours = (report["videos_per_second"][arm] for arm in ("simple", "ours"))
    low, high = report["ratio_range"]
    print(f"{report['videos']} videos, {report['cores']} cores, {report['rounds']} rounds")
    print(f"  simple loop {simple:.2f} videos/s, vb2 features extract {ours:.2f} videos/s")
    print(f"  ratio {report['ratio']:.2f} ({low:.2f} to {high:.2f})")
    simple, ours = (statistics.median(report["cpu_seconds"][arm]) for arm in ("simple", "ours"))
    print(f"  CPU time a round: {simple:.1f} s and {ours:.1f} s, which other programs disturb less")
    print(f"  features differ by {report['largest_difference']:.0e} of their standard deviation at most")


if __name__ == "__main__":
    main()
