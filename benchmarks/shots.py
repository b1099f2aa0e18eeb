"""Shot changes found in all frames while decoding, and in frame features, beside PySceneDetect, on spliced real clips.

    pip install scenedetect opencv-python-headless          # not needed by the package
    python benchmarks/shots.py [--films N] [--json]

Shots without a cut in them (chosen by eye) of the 12 real clips beside the project are spliced at known times: hard
cuts, two shots in turns (A-B-A-B), cross-fades of 1 s, fades through black of 1 s; `real` are the clips with their own
changes, found by eye. A change counts as found within 0.5 s. Features are 8x6 thumbnails, the toy world's CLIP (random
weights) and, at 1 a second, the stored vectors of a real ViT that come with the clips; CLIP's weights are not here.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from videoblip2.features.encoders import load_clip
from videoblip2.features.media import stream_frames, write_video
from videoblip2.jobs.segments import ShotWatch, cut
from videoblip2.toy.networks import build_toy_clip

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "msrvtt"
SHOTS = {  # clip → seconds without a cut
    "video7010": [(2.0, 9.4)],
    "video7011": [(9.0, 12.9)],
    "video7012": [(0.7, 11.7)],
    "video7013": [(0.0, 13.9)],
    "video7014": [(7.0, 11.8)],
    "video7015": [(2.4, 10.3)],
    "video7016": [(6.0, 15.9)],
    "video7017": [(0.0, 9.6)],
    "video7018": [(5.6, 24.9)],
    "video7019": [(1.7, 6.4), (6.6, 13.8), (14.0, 20.9)],
    "video9770": [(2.5, 8.5)],
    "video9771": [(1.0, 6.5), (6.7, 13.9)],
}
CHANGES = {  # of the clips themselves: seconds, found by eye
    "video7010": [],
    "video7011": [2.30, 4.54, 6.74, 8.94],
    "video7012": [0.58, 11.8],
    "video7013": [],
    "video7014": [1.16, 3.16, 4.48, 5.60, 6.96],
    "video7015": [2.33, 10.37],
    "video7016": [5.4],
    "video7017": [9.71],
    "video7018": [1.42, 2.21, 5.13],
    "video7019": [1.0, 6.51, 13.93],
    "video9770": [],
    "video9771": [0.57, 6.61],
}
POOL = [(clip, *shot) for clip, shots in SHOTS.items() for shot in shots]
RATE, SIZE, TOLERANCE, FADE = 25, (240, 320), 0.5, 1.0
KINDS = ("cut", "alternation", "cross-fade", "black")
Film = tuple[Path, list[float]]
Scores = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=4, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="seed of the first film; limits were set on 0 to 2")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    report: dict[str, dict[str, Scores]] = {}
    with tempfile.TemporaryDirectory() as folder:
        films = {
            kind: [film(Path(folder), kind, seed) for seed in range(options.first, options.first + options.films)]
            for kind in KINDS
        }
        films["real"] = [(DATA / "videos" / f"{clip}.mp4", changes) for clip, changes in CHANGES.items()]
        for name, find in {**detectors(), **ours(Path(folder))}.items():
            report[name] = {kind: judged(find, films[kind]) for kind in films}
            show(name, report[name])
    report["ours, a real ViT, 1/s"] = stored_vectors()
    show("ours, a real ViT, 1/s", report["ours, a real ViT, 1/s"])
    if options.json:
        print(json.dumps(report))


def show(name: str, report: dict[str, Scores]) -> None:
    parts = [f"{kind} {s['precision']:.2f} {s['recall']:.2f} {s['f1']:.2f}" for kind, s in report.items()]
    print(f"{name:32}", " | ".join(parts), f"| {sum(s['seconds'] for s in report.values()):.1f} s of CPU", flush=True)


def film(folder: Path, kind: str, seed: int) -> Film:
    """A film of twelve shots of 2.5 to 5 s, and its changes in seconds."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    parts = []
    for index in shot_order(rng, kind):
        clip, start, end = POOL[index]
        length = min(rng.uniform(2.5, 5.0), end - start)
        begin = rng.uniform(start, end - length)
        parts.append(shot(DATA / "videos" / f"{clip}.mp4", begin, begin + length))
    fade = round(FADE * RATE) if kind == "cross-fade" else 0
    frames, changes = parts[0], []
    for part in parts[1:]:
        changes.append((len(frames) - fade / 2) / RATE)
        if fade:
            weights = np.linspace(0, 1, fade)[:, None, None, None]
            mixed = (frames[-fade:] * (1 - weights) + part[:fade] * weights).astype(np.uint8)
            frames = np.concatenate([frames[:-fade], mixed, part[fade:]])
        else:
            frames = np.concatenate([frames, part])
    if kind == "black":
        times = np.arange(len(frames)) / RATE
        away = np.min([np.abs(times - change) for change in changes], axis=0)
        frames = (frames * np.minimum(1, away / (FADE / 2))[:, None, None, None]).astype(np.uint8)
    path = folder / f"{kind}{seed}.mp4"
    write_video(path, frames, RATE, None, 16_000)
    return path, changes


def shot_order(rng: np.random.Generator, kind: str) -> list[int]:
    """Twelve shots of the pool: all different, or three pairs that alternate."""
    order = [int(index) for index in rng.permutation(len(POOL))[:12]]
    return [order[2 * (place // 4) + place % 2] for place in range(12)] if kind == "alternation" else order


def shot(path: Path, start: float, end: float) -> np.ndarray:
    return np.stack([frame[: SIZE[0], : SIZE[1]] for frame in stream_frames(path, RATE, span=(start, end))])


def judged(find: Callable[[Path], Sequence[float]], films: Sequence[Film]) -> Scores:
    """Precision, recall and F1 over all films, and the CPU time it took."""
    begin, hits, found, wanted = time.process_time(), 0, 0, 0
    for path, changes in films:
        times = list(find(path))
        hits, found, wanted = hits + matched(times, changes), found + len(times), wanted + len(changes)
    return scores(hits, found, wanted) | {"seconds": time.process_time() - begin}


def matched(times: Sequence[float], changes: Sequence[float]) -> int:
    """Changes that have a time of their own within the tolerance."""
    left, hits = sorted(times), 0
    for change in changes:
        near = next((one for one in left if abs(one - change) <= TOLERANCE + 1e-6), None)
        if near is not None:
            left.remove(near)
            hits += 1
    return hits


def scores(hits: int, found: int, wanted: int) -> Scores:
    return {
        "precision": hits / max(1, found),
        "recall": hits / wanted,
        "f1": 2 * hits / (found + wanted),
        "seconds": 0.0,
    }


def detectors() -> dict[str, Callable[[Path], list[float]]]:
    """PySceneDetect's detectors at their defaults; none if it is not installed."""
    try:
        import scenedetect as psd
    except ImportError:
        return {}
    kinds = (psd.ContentDetector, psd.AdaptiveDetector, psd.HistogramDetector)

    def run(kind: type) -> Callable[[Path], list[float]]:
        return lambda path: [start.seconds for start, _ in psd.detect(str(path), kind(), start_in_scene=True)[1:]]

    return {f"PySceneDetect {kind.__name__}": run(kind) for kind in kinds}


def ours(folder: Path) -> dict[str, Callable[[Path], list[float]]]:
    """All frames, as `vb2 caption --segments scenes` sees them; and features at 1, 2 and 4 frames a second."""
    clip = load_clip(build_toy_clip(folder / "clip", 0))

    def watched(path: Path) -> list[float]:
        watch = ShotWatch()
        for _ in stream_frames(path, 1.0, threads=1, watch=watch):
            pass
        return watch.changes()

    def decoded(path: Path) -> list[float]:
        return [0.0 for _ in stream_frames(path, 1.0, threads=1)]

    def vectors(path: Path, fps: float, name: str) -> np.ndarray:
        frames = list(stream_frames(path, fps, threads=1))
        if name == "thumbnails":
            return np.stack([frame[::40, ::40].reshape(-1) / 127.5 - 1 for frame in frames])
        return clip.encode_pixels([clip.pixels(frame) for frame in frames])

    def by_features(fps: float, name: str) -> Callable[[Path], list[float]]:
        return lambda path: times(vectors(path, fps, name), fps)

    return {"ours, all frames": watched, "decoding alone": decoded} | {
        f"ours, {name}, {fps:g}/s": by_features(fps, name)
        for name in ("thumbnails", "random CLIP")
        for fps in (1.0, 2.0, 4.0)
    }


def times(features: np.ndarray, fps: float) -> list[float]:
    return [item.start or 0.0 for item in cut({"video": features}, fps, None, None)[1:]]


def stored_vectors(films: int = 40) -> dict[str, Scores]:
    """The stored vectors of a real ViT, 1 a second, spliced; a change is anywhere between two of them."""
    stored = {clip: np.load(DATA / "features" / f"{clip}.npz")["clip"].astype(np.float32) for clip in CHANGES}
    counts = {"cut": np.zeros(3, int), "alternation": np.zeros(3, int), "real": np.zeros(3, int)}
    for clip, changes in CHANGES.items():
        found = times(stored[clip], 1.0)
        counts["real"] += (matched(found, changes), len(found), len(changes))
    for kind in ("cut", "alternation"):
        for seed in range(films):
            rng, rows, changes = np.random.default_rng([9, seed]), list[np.ndarray](), list[float]()
            for index in shot_order(rng, kind):
                clip, start, end = POOL[index]
                changes.append(sum(map(len, rows)) - rng.uniform(0, 1))
                rows.append(stored[clip][int(np.ceil(start)) : int(end) + 1][: int(rng.integers(3, 6))])
            found = times(np.concatenate(rows), 1.0)
            counts[kind] += (matched(found, changes[1:]), len(found), len(changes) - 1)
    return {kind: scores(*map(int, row)) for kind, row in counts.items()}


if __name__ == "__main__":
    main()
