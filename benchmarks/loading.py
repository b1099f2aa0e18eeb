"""Building, saving and loading the network at the design's full size, beside transformers' own `from_pretrained`.

    python benchmarks/loading.py [--quick] [--json]

T5-base with two BERT-base Q-Formers, random weights, made in a temporary folder (about 7 GB; --quick is small and takes
under a minute). Every measurement is a process of its own; memory is the peak of its resident set, the pages of mapped
files included, less what the process held once everything needed was imported. "Read" sums every weight once, since
mapped weights come from the disk only then. The peer loads the same tensors as their three parts: T5 and each Q-Former
by its own class. The files are in the page cache. --json puts one object on the last line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

RUNS = 5
MAX_MEMORY = 1.3  # peak of loading, in sizes of the model
FULL = {
    "t5": {"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "qformer": {"encoder_hidden_size": 768},
}
QUICK = {
    "t5": {"vocab_size": 32128, "d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 4, "num_heads": 4},
    "qformer": {
        "encoder_hidden_size": 768,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--step", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    if options.step:
        print(json.dumps(STEPS[options.step[0]](Path(options.step[1]), sizes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        report = measure(folder, options.quick)
    print_report(report)
    if options.json:
        print(json.dumps(report))


def measure(folder: str, quick: bool) -> dict[str, Any]:
    """Every step in a process of its own, and the ratios."""
    step(folder, "parts", quick)
    report: dict[str, Any] = {"size": "quick" if quick else "full"}
    report |= {name: step(folder, name, quick) for name in ("build_and_save", "ours", "parts_loaded", "checkpoint")}
    ours, theirs = report["checkpoint"], report["parts_loaded"]
    report["memory_ratio"] = ours["peak_mib"] / ours["model_mib"]
    report["time_ratios"] = {kind: ours[kind] / theirs[kind] for kind in ("first", "seconds", "seconds_read")}
    return report


def step(folder: str, name: str, quick: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", name, folder, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def make_parts(folder: Path, sizes: dict[str, Any]) -> dict[str, float]:
    """What training starts from: a T5 folder, two Q-Formers in transformers' own form, tokenizers."""
    import torch
    from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel, T5Config, T5ForConditionalGeneration

    from videoblip2.model.language_model import separate_lm_head
    from videoblip2.toy.networks import train_bert_tokenizer, train_t5_tokenizer

    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(T5Config(**sizes["t5"], feed_forward_proj="gated-gelu"))
    separate_lm_head(t5)
    t5.lm_head.weight.data.normal_(std=0.05)
    t5.save_pretrained(folder / "t5")
    qformer = InstructBlipQFormerModel(InstructBlipQFormerConfig(**sizes["qformer"]))
    for modality in ("video", "audio"):
        qformer.save_pretrained(folder / modality)
    train_t5_tokenizer(["a video of"], 80).save_pretrained(folder / "t5")
    train_bert_tokenizer(["a video of"], 80).save_pretrained(folder / "bert")
    return {}


def build_and_save(folder: Path, sizes: dict[str, Any]) -> dict[str, float]:
    """`build_model` from the parts' files, then `save_checkpoint`, whose memory is what it takes on top."""
    from videoblip2.model.checkpoint import Checkpoint, save_checkpoint

    (model, tokenizers), seconds, base = clocked(lambda: build_network(folder, sizes))
    read_all(model)
    built = peak()
    checkpoint = Checkpoint(model, tokenizers, {"seed": 0}, {"CIDEr": 0.0}, {"stage": "ce"})
    _, seconds_save, _ = clocked(lambda: save_checkpoint(folder / "checkpoint", checkpoint))
    return {"build": seconds, "build_mib": built - base, "save": seconds_save, "save_mib": peak() - built}


def load_ours(folder: Path, sizes: dict[str, Any]) -> dict[str, float]:
    """`VideoBlip2.from_pretrained`: the network alone."""
    from videoblip2.model.network import VideoBlip2

    return loaded(lambda: [VideoBlip2.from_pretrained(folder / "checkpoint", local_files_only=True)])


def load_whole_checkpoint(folder: Path, sizes: dict[str, Any]) -> dict[str, float]:
    """`load_checkpoint`: with tokenizers and all checks."""
    from videoblip2.model.checkpoint import load_checkpoint

    return loaded(lambda: [load_checkpoint(folder / "checkpoint").model])


def load_parts(folder: Path, sizes: dict[str, Any]) -> dict[str, float]:
    """The peer: transformers' `from_pretrained`, once a part."""
    from transformers import InstructBlipQFormerModel, T5ForConditionalGeneration

    def load() -> list[Any]:
        qformers = [InstructBlipQFormerModel.from_pretrained(folder / name) for name in ("video", "audio")]
        return [T5ForConditionalGeneration.from_pretrained(folder / "t5"), *qformers]

    return loaded(load)


STEPS = {
    "parts": make_parts,
    "build_and_save": build_and_save,
    "ours": load_ours,
    "checkpoint": load_whole_checkpoint,
    "parts_loaded": load_parts,
}


def build_network(folder: Path, sizes: dict[str, Any]) -> tuple[Any, Any]:
    from videoblip2.config import ModelConfig
    from videoblip2.model.build import build_model

    heads = sizes["qformer"].get("num_attention_heads", 12)
    qformer = {"weights": str(folder / "video"), "bert": str(folder / "bert"), "bert_weights": False}
    config = ModelConfig(language_model=str(folder / "t5"), qformer={**qformer, "num_attention_heads": heads})
    model, tokenizers, _ = build_model(config, "a video of")
    return model, tokenizers


def loaded(load: Any) -> dict[str, float]:
    """Memory of the first load, times of the first and of the fastest of several; every weight is then read once."""
    times, reads = [], []
    for number in range(RUNS):
        models, seconds, before = clocked(load)
        started = time.perf_counter()
        for model in models:
            read_all(model)
        times.append(seconds)
        reads.append(seconds + time.perf_counter() - started)
        if number == 0:
            base, top, size = before, peak(), sum(mebibytes(model) for model in models)
        del models, model
    figures = {"first": times[0], "seconds": min(times), "seconds_read": min(reads)}
    return {**figures, "model_mib": size, "peak_mib": top - base, "import_mib": base}


def clocked(call: Any) -> tuple[Any, float, float]:
    """(result, seconds, MiB held before), everything needed imported first so that only the work is measured."""
    import peft  # noqa: F401
    import transformers.models.instructblip.modeling_instructblip
    import transformers.models.t5.modeling_t5  # noqa: F401
    from transformers.utils import logging

    import videoblip2.model.checkpoint  # noqa: F401

    logging.disable_progress_bar()
    base = peak()
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started, base


def read_all(model: Any) -> float:
    return sum(float(parameter.detach().sum()) for parameter in model.parameters())


def mebibytes(model: Any) -> float:
    return sum(float(parameter.numel() * parameter.element_size()) for parameter in model.parameters()) / 2**20


def peak() -> float:
    """Largest resident set of this process so far, MiB, mapped files included (VmHWM)."""
    import resource

    units = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units


def print_report(report: dict[str, Any]) -> None:
    made, model = report["build_and_save"], report["ours"]["model_mib"]
    print(
        f"{report['size']} size: {model:,.0f} MiB of weights; {report['ours']['import_mib']:,.0f} MiB held by imports"
    )
    print(f"build_model from the files of T5 and Q-Formers: {made['build']:.2f} s, {made['build_mib']:,.0f} MiB")
    print(f"save_checkpoint: {made['save']:.2f} s, {made['save_mib']:,.0f} MiB on top of the network")
    print(f"{'':44}{'first, s':>9}{'best, s':>9}{'read, s':>9}{'peak MiB':>10}{'/ model':>9}")
    names = {
        "ours": "VideoBlip2.from_pretrained",
        "checkpoint": "load_checkpoint (with tokenizers, checks)",
        "parts_loaded": "transformers, the same tensors in 3 parts",
    }
    for key, name in names.items():
        row = report[key]
        times = "".join(f"{row[kind]:9.2f}" for kind in ("first", "seconds", "seconds_read"))
        print(f"{name:44}{times}{row['peak_mib']:10,.0f}{row['peak_mib'] / model:9.2f}")
    print(
        "load_checkpoint beside transformers' parts: "
        + "".join(f"{ratio:8.2f}x" for ratio in report["time_ratios"].values())
    )
    verdict = "within" if report["memory_ratio"] <= MAX_MEMORY else "OVER"
    print(f"peak memory of loading: {report['memory_ratio']:.2f} x the model, {verdict} {MAX_MEMORY}")


if __name__ == "__main__":
    main()
