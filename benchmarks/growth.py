"""How the cost of training grows: seconds and memory against videos, references, frames, samples and processes.

    python benchmarks/growth.py [--most 100000] [--steps 20] [--out docs/images/growth.png] [--json]

Each point is a run of cross-entropy (samples: self-critical training) in a process of its own, with a tiny network,
one axis changed and the others as in USUAL. Every world is on disk: annotations, a packed store, a T5.

parse      reading the annotation file alone: the least that any start-up takes
start-up   from `run_stage`, imports aside, to the first step; the parse is a part of it
step       the median of the steps after the first
memory     the peak of the process

Seconds are those that the training's thread computes, so that other work on the machine counts little. Another thread
reads all features once after the start, for the digest that names the data: it is not counted.
"""

import argparse
import json
import multiprocessing
import os
import resource
import socket
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from safetensors.numpy import save_file

from videoblip2.config import load_config, parse_config, to_yaml
from videoblip2.data.annotations import read_annotations
from videoblip2.toy.networks import LanguageModelConfig, build_t5, train_bert_tokenizer, train_t5_tokenizer
from videoblip2.training import stage

VAL, WIDTH, VOCABULARY = 20, 16, 2000


@dataclass(frozen=True)
class Point:
    """One run."""

    videos: int = 1000
    references: int = 20
    frames: int = 32
    samples: int = 0
    processes: int = 1


USUAL = Point()
AXES: dict[str, list[Point]] = {
    "videos": [replace(USUAL, videos=count, references=5, frames=2) for count in (1_000, 10_000, 100_000)],
    "references": [replace(USUAL, references=count) for count in (5, 10, 20, 40)],
    "frames": [replace(USUAL, frames=count) for count in (8, 32, 128, 512)],
    "samples": [replace(USUAL, samples=count) for count in (1, 2, 4, 8, 16)],
    "processes": [replace(USUAL, processes=count) for count in (1, 2)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=100_000, help="videos of the largest world")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=None, help="picture to write")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    report: dict[str, list[dict[str, Any]]] = {}
    for axis, points in AXES.items():
        print(f"\n{axis:>10} {'parse s':>9} {'start-up s':>11} {'step ms':>9} {'memory MiB':>11}", flush=True)
        for point in (point for point in points if point.videos <= options.most):
            row = asdict(point) | measure(point, options.steps)
            report.setdefault(axis, []).append(row)
            shown = row["parse"], row["start"], 1000 * row["step"], row["memory"]
            print(f"{row[axis]:>10} {shown[0]:>9.2f} {shown[1]:>11.2f} {shown[2]:>9.1f} {shown[3]:>11.0f}", flush=True)
    if options.out:
        draw(report, options.out)
    if options.json:
        print(json.dumps(report))


def measure(point: Point, steps: int) -> dict[str, float]:
    """Make a world and train in it, in processes forked from this one, so that torch is imported once."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder, results = Path(name), fork.SimpleQueue()
        maker = fork.Process(target=make_world, args=(folder, point, steps))  # or its memory would be the others' peak
        maker.start()
        maker.join()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [fork.Process(target=run, args=(folder, point, rank, port, results)) for rank in range(point.processes)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(process.exitcode for process in (maker, *ranks)):
            raise SystemExit(f"{point}: failed")
        made: dict[str, float] = results.get()
        return made


def make_world(folder: Path, point: Point, steps: int) -> None:
    """Annotations of random words, features of noise, an untrained T5, and the configuration."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in "bdfklmnprst"]
    for split, count in (("train", point.videos), ("val", VAL)):
        drawn = rng.integers(len(words), size=(count, point.references, 10))
        entries = [
            {"video_id": f"{split}{n}", "category": 0, "captions": [" ".join(words[w] for w in text) for text in texts]}
            for n, texts in enumerate(drawn)
        ]
        (folder / f"{split}.json").write_text(json.dumps(entries))
    ids = [f"{split}{n}" for split, count in (("train", point.videos), ("val", VAL)) for n in range(count)]
    rows = {"video": point.frames, "audio": 2}
    store = {name: np.zeros((len(ids) * count, WIDTH), np.float16) for name, count in rows.items()}
    for array in store.values():
        array[:] = rng.normal(size=array.shape)
    store |= {f"{name}_rows": np.full(len(ids), count, np.int64) for name, count in rows.items()}
    store |= {"ids": np.frombuffer(json.dumps(ids).encode(), np.uint8), "manifest": np.frombuffer(b"null", np.uint8)}
    save_file(store, folder / "features.safetensors", metadata={"format": "1"})
    texts = [" ".join(words), "describe the video"]
    t5, bert = train_t5_tokenizer(texts, VOCABULARY), train_bert_tokenizer(texts, VOCABULARY)
    build_t5(len(t5), LanguageModelConfig(d_model=32, d_ff=64, num_heads=2, num_layers=1)).save_pretrained(
        folder / "t5"
    )
    t5.save_pretrained(folder / "t5")
    bert.save_pretrained(folder / "bert")
    qformer = {"bert": str(folder / "bert"), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    qformer |= {"num_queries": 4, "intermediate_size": 32, "cross_attention_frequency": 1}
    sizes = {"video_dim": WIDTH, "audio_dim": WIDTH, "max_positions": 512}
    content = {
        "data": {"annotations": str(folder), "features": str(folder / "features.safetensors")},
        "model": {"language_model": str(folder / "t5"), "qformer": qformer, **sizes},
        "train": {"steps": steps, "batch_size": 8, "validate_every": steps, "log_every": 10, "save_every": steps},
        "scst": {"samples": max(1, point.samples), "baseline": "greedy"},
        "decode": {"max_new_tokens": 12},
        "run": {"out": str(folder / "runs"), "name": "growth", "tracking": False},
        "device": "cpu",
    }
    (folder / "config.yaml").write_text(to_yaml(parse_config(content)))


def run(folder: Path, point: Point, rank: int, port: int, results: "SimpleQueue[dict[str, float]]") -> None:
    """Train, and note when each step begins."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(point.processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    kind, clock, begins = "scst" if point.samples else "ce", time.thread_time, list[float]()
    original = getattr(stage, f"{kind}_step")

    def step(*arguments: Any, **options: Any) -> Any:
        begins.append(clock())
        return original(*arguments, **options)

    setattr(stage, f"{kind}_step", step)
    began = clock()
    read_annotations(folder / "train.json")
    parsed = clock()
    stage.run_stage(kind, load_config(folder / "config.yaml"))
    made = {
        "parse": parsed - began,
        "start": begins[0] - parsed,
        "step": statistics.median(after - before for before, after in pairwise(begins[1:])),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if rank == 0:
        results.put(made)


def draw(report: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A column for each axis; above seconds, below memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6), layout="constrained")
    panels = figure.subplots(2, len(report), sharex="col", sharey="row", squeeze=False)
    kinds = {"start": ("start-up", "#2563eb"), "parse": ("parse alone", "#6b7280"), "step": ("one step", "#dc2626")}
    for column, (axis, rows) in enumerate(report.items()):
        places = [row[axis] for row in rows]
        for kind, (label, colour) in kinds.items():
            panels[0, column].plot(places, [row[kind] for row in rows], "o-", color=colour, label=label, markersize=4)
        panels[1, column].plot(places, [row["memory"] for row in rows], "o-", color="#2563eb", markersize=4)
        panels[1, column].set_ylim(0, 1.1 * max(row["memory"] for rows in report.values() for row in rows))
        panels[1, column].set_xlabel(axis)
        panels[0, column].set_yscale("log")
        for panel in panels[:, column]:
            panel.set_xscale("log", base=10 if axis == "videos" else 2)
            panel.set_xticks(places, [f"{place:,}" for place in places])
            panel.minorticks_off()
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("peak memory, MiB")
    panels[0, -1].legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
