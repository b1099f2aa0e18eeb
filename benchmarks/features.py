"""Features from the disk: a packed store beside .npy files, and cross-entropy's step beside one that reads nothing.

    python benchmarks/features.py [--quick] [--json] [--videos N] [--folder DIR]

Makes 10,000 videos of [20,768] frames and [10,512] audio windows, float32, in a temporary folder (1.7 GB with the
packed copy; --quick makes 1,000 and takes under a minute on a quiet machine), synced to the disk.

Random access: every video's frames once, in a new random order, through `FeatureStore`, opening included; both forms
in turn. "Cold" means that the kernel was told before each pass to drop these files' pages (posix_fadvise DONTNEED);
file names, and what a host below a virtual machine keeps, stay. Ratios are medians over rounds of rate / rate.

Loader: the step of `vb2 ce` (forward, backward, clipping, AdamW) on 32 videos with a caption of twelve words each; two
Q-Formers of 2 layers and a T5 of 2 + 2 layers, all 128 wide, 1,000 pieces, random weights, CPU: about the toy world's
size, as small a step as anyone trains with, so that what the loader costs shows. Arms, a step each in turn: one batch
kept in memory; real batches from either form, made ahead by a thread as training does on a GPU, or within the step as
it does on a CPU. A step ends when the batch that was made meanwhile is there, too, so that nothing hides. The page
cache is dropped before: the first epoch. Ratios are medians over rounds, each arm's step by that round's with the batch
in memory; the range is the median's 95 % interval.
"""

import argparse
import itertools
import json
import os
import queue
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from scst import SMALL, build

from videoblip2.config import parse_config
from videoblip2.data.annotations import VideoAnnotation
from videoblip2.data.batches import Batch, ahead
from videoblip2.features.pack import pack_features
from videoblip2.features.store import FeatureStore
from videoblip2.model.tokenizers import Tokenizers
from videoblip2.toy.networks import train_bert_tokenizer, train_t5_tokenizer
from videoblip2.training.ce import ce_step
from videoblip2.training.update import build_optimizer
from videoblip2.training.workspace import Workspace

FRAMES, WINDOWS, BATCH = 20, 10, 32
WORDS = ["a", "man", "in", "a", "red", "shirt", "is", "singing", "on", "the", "stage", "loudly"]
FORMS = ("npy", "packed")
Batches = Callable[[int], Batch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 videos, fewer rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--videos", type=int, help="how many videos")
    parser.add_argument("--folder", type=Path, help="where to put them (default: the temporary folder)")
    options = parser.parse_args()
    videos = options.videos or (1_000 if options.quick else 10_000)
    rounds, steps = (3, 10) if options.quick else (5, 120)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        stores = make_stores(Path(folder), videos)
        report = {"videos": videos, **access(stores, rounds)}
        print_access(report)
        drop(stores)
        report |= loader(stores, min(steps, videos // BATCH - 3))
    print_loader(report)
    if options.json:
        print(json.dumps(report))


def make_stores(folder: Path, videos: int) -> dict[str, Path]:
    """The same random features in both forms."""
    rng = np.random.default_rng(0)
    for name in ("video", "audio"):
        (folder / "npy" / name).mkdir(parents=True)
    for number in range(videos):
        for name, shape in (("video", (FRAMES, 768)), ("audio", (WINDOWS, 512))):
            np.save(folder / "npy" / name / f"video{number}.npy", rng.standard_normal(shape, dtype=np.float32))
    start = time.perf_counter()
    out = pack_features(folder / "npy", folder / "packed.safetensors").out
    print(f"{videos:,} videos packed in {time.perf_counter() - start:.1f} s", flush=True)
    os.sync()
    return {"npy": folder / "npy", "packed": out}


def drop(stores: dict[str, Path]) -> None:
    """Have the kernel forget the pages of every file of both stores."""
    for path in [stores["packed"], *stores["npy"].rglob("*.npy")]:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def access(stores: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Videos a second through each form, cold and warm, and packed / npy."""
    rates: dict[str, list[float]] = {f"{form}_{state}": [] for state in ("cold", "warm") for form in FORMS}
    for number in range(rounds):
        for state in ("cold", "warm"):
            if state == "cold":
                drop(stores)
            for form in FORMS:
                rates[f"{form}_{state}"].append(read_all(stores[form], seed=number))
    report: dict[str, Any] = {}
    for state in ("cold", "warm"):
        ratios = [b / a for a, b in zip(rates[f"npy_{state}"], rates[f"packed_{state}"], strict=True)]
        report |= {f"{state}_ratio": statistics.median(ratios), f"{state}_range": [min(ratios), max(ratios)]}
    return {**report, "rates": {name: statistics.median(values) for name, values in rates.items()}}


def read_all(root: Path, seed: int) -> float:
    """Videos a second, every one once in a random order."""
    start = time.perf_counter()
    store = FeatureStore(root)
    order = np.random.default_rng(seed).permutation(len(store.ids))
    for place in order:
        store.array("video", store.ids[place])
    return len(order) / (time.perf_counter() - start)


def loader(stores: dict[str, Path], steps: int) -> dict[str, Any]:
    """Step times by arm, and each arm's ratio to the batch in memory."""
    works = {form: workspace(stores[form]) for form in FORMS}
    model = works["npy"]
    optimizer = build_optimizer(model.model.trainable(), model.config.optim)
    kept = model.batches(0)
    times: dict[str, list[float]] = {}
    with arms(works, kept) as ways:
        for step in range(-2, steps):  # two to warm up
            for name in rotated(list(ways), step):
                seconds = clocked_step(model, optimizer, ways[name], step + 2)
                times.setdefault(name, []).append(seconds)
    seconds = {name: statistics.median(values[2:]) for name, values in times.items()}
    paired = {name: np.divide(values[2:], times["memory"][2:]) for name, values in times.items() if name != "memory"}
    ratios = {name: float(np.median(values)) for name, values in paired.items()}
    ranges = {name: median_interval(values) for name, values in paired.items()}
    making = {form: making_seconds(works[form], steps) for form in FORMS}
    return {
        "loader": ratios,
        "loader_range": ranges,
        "step_seconds": seconds,
        "batch_seconds": making,
        "threads": torch.get_num_threads(),
    }


def median_interval(values: np.ndarray) -> list[float]:
    """95 %, by the bootstrap."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    return [float(edge) for edge in np.percentile(np.median(drawn, axis=1), (2.5, 97.5))]


@contextmanager
def arms(works: dict[str, Workspace], kept: Batch) -> Iterator[dict[str, Batches]]:
    """The ways to come by a batch; those with a thread return with what it makes meanwhile still on the way."""
    ways: dict[str, Batches] = {"memory": lambda step: kept}
    waiting = {form: Ahead(works[form].batches) for form in FORMS}
    ways |= waiting
    ways |= {f"{form}_without_thread": works[form].batches for form in FORMS}
    try:
        yield ways
    finally:
        for way in waiting.values():
            way.made.close()


class Ahead:
    """The training's thread of batches, and a way to wait until it has made what this step started."""

    def __init__(self, batches: Batches) -> None:
        self._finished: queue.Queue[int] = queue.Queue()
        self._batches, self._expected = batches, 0
        self.made = ahead(self._make, itertools.count(), 2)

    def __call__(self, step: int) -> Batch:
        return next(self.made)

    def settle(self) -> None:
        """Wait for the third batch from the first step, for one more from each later one."""
        for _ in range(1 if self._expected else 3):
            self._finished.get()
            self._expected += 1

    def _make(self, step: int) -> Batch:
        batch = self._batches(step)
        self._finished.put(step)
        return batch


def clocked_step(work: Workspace, optimizer: torch.optim.Optimizer, batches: Batches, step: int) -> float:
    """Seconds of one step of `vb2 ce`, its batch included."""
    start = time.perf_counter()
    batch = batches(step).to(work.device)
    for part in ce_step(work, batch, step):
        part.loss.backward()
        float(part.loss.detach())
        torch.nn.utils.clip_grad_norm_(work.model.trainable().values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if isinstance(batches, Ahead):
        batches.settle()
    return time.perf_counter() - start


def making_seconds(work: Workspace, steps: int) -> float:
    """Median time to make a batch with nothing beside it."""
    times = []
    for step in range(steps):
        start = time.perf_counter()
        work.batches(step)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def rotated(names: list[str], step: int) -> list[str]:
    """Each arm follows each other one equally often."""
    place = step % len(names)
    return names[place:] + names[:place]


def workspace(features: Path) -> Workspace:
    """All of the training that a step needs, without files but features."""
    config = parse_config({}, [f"train.batch_size={BATCH}", "optim.lr=1e-4", "device=cpu", f"data.features={features}"])
    store = FeatureStore(features)
    rng = np.random.default_rng(1)
    videos = [VideoAnnotation(name, 0, (" ".join(rng.permutation(WORDS)),)) for name in store.ids]
    t5, bert = train_t5_tokenizer([" ".join(WORDS)], 100), train_bert_tokenizer([" ".join(WORDS)], 100)
    device = torch.device("cpu")
    return Workspace(config, device, build(SMALL, device), Tokenizers(t5, bert), store, videos, videos)


def print_access(report: dict[str, Any]) -> None:
    print(f"{report['videos']:,} videos, random access, videos a second:")
    for state in ("cold", "warm"):
        npy, packed = (report["rates"][f"{form}_{state}"] for form in FORMS)
        low, high = report[f"{state}_range"]
        ratio = report[f"{state}_ratio"]
        print(
            f"  {state}: npy {npy:8,.0f}   packed {packed:8,.0f}   {ratio:5.1f} x ({low:.1f} to {high:.1f})", flush=True
        )


def print_loader(report: dict[str, Any]) -> None:
    seconds = report["step_seconds"]
    print(f"a step of vb2 ce with its batch in memory: {seconds['memory']:.3f} s ({report['threads']} torch threads)")
    for name, ratio in report["loader"].items():
        low, high = report["loader_range"][name]
        print(f"  {name:22} {seconds[name]:.3f} s   {ratio:.3f} x ({low:.3f} to {high:.3f})")
    making = ", ".join(f"{form} {1000 * value:.1f} ms" for form, value in report["batch_seconds"].items())
    print(f"  making one batch alone: {making}")


if __name__ == "__main__":
    main()
