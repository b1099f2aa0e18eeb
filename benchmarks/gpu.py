"""What needs a CUDA device, in one command of at most eight minutes: tests, then each path beside its plain form.

    python benchmarks/gpu.py [--dry-run]        # or make gpu; needs torch, transformers and peft

First the tests marked `gpu`, if pytest is there. Then a Markdown table for the ledger: ours and the plain form
(transformers and peft as people use them) on the same weights and inputs by turns, in bf16 (autocast) and fp32. The
shares are of a large matrix product's speed and of a large copy's, measured first. Operations are counted on our path;
bytes are the weights that it must read, so their share is a lower bound. Without a CUDA device, or with --dry-run, the
same at small size on the CPU: it shows that everything runs, and its numbers mean nothing.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import ce
import numpy as np
import scst
import torch
from common import SOURCE, generate, peak_memory, wait
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from videoblip2.captioner import Captioner
from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.config import Decoding
from videoblip2.data.batches import collate
from videoblip2.features.towers import FrameEncoder
from videoblip2.model import decode
from videoblip2.model.network import VideoBlip2
from videoblip2.model.tokenizers import QFORMER_FOLDER, load_tokenizers
from videoblip2.provenance import EncoderIdentity

ROOT = SOURCE.parent
#: Seconds after which no more rows are begun, and repeats of each path.
LAST_START, REPEATS = 400, 5
TESTS = "tests/model/test_gpu.py"
COLUMNS = ("path", "precision", "unit", "ours/s", "plain/s", "ratio", "products", "bandwidth", "MiB ours", "MiB plain")


@dataclass(frozen=True)
class Setting:
    """Where and how large. scale: of the batches."""

    device: torch.device
    size: scst.Size
    scale: int
    repeats: int

    @property
    def precisions(self) -> tuple[torch.dtype, ...]:
        return (torch.bfloat16, torch.float32) if self.device.type == "cuda" else (torch.float32,)


@dataclass(frozen=True)
class Pair:
    """A path in both forms: how many units a call makes, the weights' bytes that it must read (in fp32)."""

    name: str
    unit: str
    count: int
    bytes: int
    ours: Callable[[], object]
    plain: Callable[[], object]
    counted: Callable[[], object] | None = None  # what to count operations of, where `ours` replays a graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="small, on the CPU; so without a CUDA device")
    dry = parser.parse_args().dry_run or not torch.cuda.is_available()
    setting = Setting(torch.device("cpu"), scst.SMALL, 1, 1)
    if not dry:
        setting = Setting(torch.device("cuda"), scst.FULL, 4, REPEATS)
    started = time.monotonic()
    failed = [TESTS] if tests_fail() else []
    peaks = {dtype: (product_speed(setting, dtype), copy_speed(setting)) for dtype in setting.precisions}
    name = torch.cuda.get_device_name() if not dry else "the CPU, small: a dry run"
    print(f"\n**{name}**, torch {torch.__version__}; " + "; ".join(map(said, peaks.items())), flush=True)
    print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for make in (ce_paths, scst_paths, decoding_paths, extraction_paths, serving_paths):
        if time.monotonic() - started > LAST_START:
            print(f"{make.__name__} and what follows: left out, for want of time")
            break
        for path in make(setting):
            failed += [path.name for dtype in setting.precisions if not measured(path, dtype, setting, peaks[dtype])]
        gc.collect()
    print(f"\n{time.monotonic() - started:.0f} s")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def tests_fail() -> bool:
    if find_spec("pytest") is None:
        print("pytest is not installed: the tests marked gpu are left out")
        return False
    words = ("-p", "no:cacheprovider", "-o", "filterwarnings=", "-m", "gpu", TESTS)
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, env=environment, check=False)
    return done.returncode != 0


def said(peak: tuple[torch.dtype, tuple[float, float]]) -> str:
    dtype, (product, copy) = peak
    return f"{short(dtype)} products {product / 1e12:.1f} TFLOP/s, copies {copy / 1e9:.0f} GB/s"


def short(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def product_speed(setting: Setting, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    side = 8192 if setting.device.type == "cuda" else 512
    left, right = (torch.randn(side, side, device=setting.device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(times(lambda: left @ right, setting.device, 8))


def copy_speed(setting: Setting) -> float:
    """Bytes a second read and written by a large copy."""
    data = torch.zeros(2**28 if setting.device.type == "cuda" else 2**22, device=setting.device)
    target = torch.empty_like(data)
    return 2 * data.nbytes / min(times(lambda: target.copy_(data), setting.device, 8))


def times(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each call; the first, which warms up, is left out."""
    seconds = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def measured(path: Pair, dtype: torch.dtype, setting: Setting, peak: tuple[float, float]) -> bool:
    """Print the path's line; one that fails leaves the others."""
    try:
        print(row(path, dtype, setting, *peak), flush=True)
    except Exception as error:
        print(f"| {path.name} | {short(dtype)} | failed: {type(error).__name__}: {error} |", flush=True)
        return False
    return True


def row(path: Pair, dtype: torch.dtype, setting: Setting, product: float, copy: float) -> str:
    """Both forms by turns; a line of the table."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    memory = {}
    with torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32):
        with FlopCounterMode(display=False) as counter:
            (path.counted or path.ours)()
        for _ in range(setting.repeats):
            for name, form in (("ours", path.ours), ("plain", path.plain)):
                if setting.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                seconds[name] += times(form, setting.device, 1)
                memory[name] = peak_memory()
    ours, plain = (statistics.median(seconds[name]) for name in ("ours", "plain"))
    read = path.bytes * (0.5 if dtype == torch.bfloat16 else 1)
    shares = (f"{100 * part:.0f} %" for part in (counter.get_total_flops() / ours / product, read / ours / copy))
    speeds = (f"{path.count / ours:,.0f}", f"{path.count / plain:,.0f}", f"{plain / ours:.2f}")
    cells = (path.name, short(dtype), path.unit, *speeds, *shares, str(memory["ours"]), str(memory["plain"]))
    return f"| {' | '.join(cells)} |"


def weights(*modules: nn.Module) -> int:
    """Bytes of the parameters of modules."""
    return sum(parameter.nbytes for module in modules for parameter in module.parameters())


def ce_paths(setting: Setting) -> Iterator[Pair]:
    """A step with its optimizer, for five captions a video and for one."""
    for captions in (5, 1):
        size = replace(setting.size, videos=8 * setting.scale, samples=captions)
        model, batch = scst.build(size, setting.device).train(), scst.inputs(size, setting.device)
        labels = ce.captions(size, setting.device)

        def step(form: Callable[..., torch.Tensor], optimizer: torch.optim.AdamW, given: tuple[Any, ...]) -> None:
            form(*given).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        forms = []
        for form, fused in ((ce.ours, True), (ce.plain, None)):
            optimizer = torch.optim.AdamW(model.trainable().values(), 1e-6, fused=fused)
            forms.append(partial(step, form, optimizer, (model, batch, labels)))
        live = int((labels != -100).sum())
        yield Pair(f"CE, {len(labels)} captions, {captions} a video", "tokens", live, 3 * weights(model), *forms)


def scst_paths(setting: Setting) -> Iterator[Pair]:
    """The step of scst.py beside the step as written, its rewards replaced by ours: no Java is needed."""
    size = replace(setting.size, videos=8 * setting.scale)
    model, batch, truth = scst.build(size, setting.device), scst.inputs(size, setting.device), scst.references(size)
    scorer = CiderD(truth, DocumentFrequencies.from_references(truth, end_token=True))
    clock = scst.Clock(setting.device)
    plain = partial(scst.as_written, model, batch, size, lambda ids, captions: scorer.score(ids, captions), clock)
    decoder = weights(model.language_model.decoder, model.language_model.lm_head)
    read, captions = 3 * weights(model) + scst.NEW_TOKENS * decoder, size.videos * (size.samples + 1)
    for label, net in both_steppers(model, size, setting):
        name, ours = f"SCST step{label}, {captions} captions", partial(scst.ours, net, batch, size, scorer, clock)
        counted = partial(scst.ours, model, batch, size, scorer, clock)
        yield Pair(name, "tokens", captions * scst.NEW_TOKENS, read, ours, plain, counted)


def both_steppers(model: VideoBlip2, size: scst.Size, setting: Setting) -> Iterator[tuple[str, VideoBlip2]]:
    """The model, and an equal one with `decode.compile`."""
    yield "", model
    static = scst.build(size, setting.device)
    static.compiled_decoding = True
    yield ", decode.compile", static


def decoding_paths(setting: Setting) -> Iterator[Pair]:
    """Greedy, greedy with samples, and beams, from the same encoder states; each also with `decode.compile`."""
    size, tokens = replace(setting.size, videos=4 * setting.scale), scst.NEW_TOKENS
    model, batch = scst.build(size, setting.device).requires_grad_(False), scst.inputs(size, setting.device)
    encoded = model.encode(**batch.inputs)
    read = tokens * weights(model.language_model.decoder, model.language_model.lm_head)

    def plain(rows: int, **options: object) -> None:
        repeated = (part.repeat_interleave(rows, dim=0) for part in encoded)
        generate(model, *repeated, max_new_tokens=tokens, **options)

    def both() -> None:
        plain(1, do_sample=False)
        plain(5, do_sample=True, top_k=0)

    sampling = decode.Sampling(5)
    beams = partial(plain, 1, do_sample=False, num_beams=5, early_stopping=True)
    forms: tuple[tuple[str, int, Callable[[VideoBlip2], object], Callable[[], object]], ...] = (
        ("greedy", 1, lambda net: decode.greedy(net.text, *encoded, tokens), partial(plain, 1, do_sample=False)),
        ("greedy and 5 samples", 6, lambda net: decode.greedy_and_sample(net.text, *encoded, tokens, sampling), both),
        ("5 beams", 1, lambda net: decode.beam(net.text, *encoded, tokens, 5), beams),
    )
    for name, captions, ours, form in forms:
        for label, net in both_steppers(model, size, setting):
            what, count = f"{name}{label}, {size.videos} videos", size.videos * captions * tokens
            yield Pair(what, "tokens", count, read, partial(ours, net), form, partial(ours, model))


def extraction_paths(setting: Setting) -> Iterator[Pair]:
    """CLIP's tower on prepared frames: batches of 64 beside a call a video."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    full, count, frames = setting.device.type == "cuda", 4 * setting.scale, 20
    sizes = (1024, 4096, 24, 16) if full else (64, 128, 2, 2)  # ViT-L/14
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = CLIPVisionConfig(
        **dict(zip(names, sizes, strict=True)), image_size=224, patch_size=14 if full else 56, projection_dim=768
    )
    torch.manual_seed(0)
    clip = CLIPVisionModelWithProjection(config).to(setting.device).eval()
    videos = np.random.default_rng(0).normal(size=(count, frames, 3, 224, 224)).astype(np.float32)
    encoder, given = (
        FrameEncoder(EncoderIdentity(), clip, None),
        [{"pixel_values": frame} for frame in videos.reshape(-1, 3, 224, 224)],
    )

    def ours() -> None:
        for start in range(0, len(given), 64):
            encoder._vectors(given[start : start + 64]).float().cpu().numpy()

    @torch.inference_mode()
    def plain() -> None:
        for video in videos:
            clip(pixel_values=torch.from_numpy(video).to(setting.device)).image_embeds.float().cpu().numpy()

    read = weights(clip) * -(-len(given) // 64)
    yield Pair(f"CLIP, {count} videos of {frames} frames", "frames", len(given), read, ours, plain)


def serving_paths(setting: Setting) -> Iterator[Pair]:
    """The model part of the service: what waits is one batch, beside one `generate` a request."""
    size, count = setting.size, 8 * setting.scale
    folder = ROOT / "tests" / "golden" / "tokenizers"
    captioner = Captioner(scst.build(size, setting.device), load_tokenizers(folder, folder / QFORMER_FOLDER))
    rng = np.random.default_rng(0)
    rows = {"video": (size.frames, 768), "audio": (size.windows, 512)}
    items = [{name: rng.normal(size=shape).astype("float32") for name, shape in rows.items()} for _ in range(count)]
    options, model = {"max_new_tokens": scst.NEW_TOKENS, "num_beams": 1, "do_sample": False}, captioner.model

    @torch.inference_mode()
    def each() -> None:
        for item in items:
            batch = collate(["0"], [item], [model.config.prompt], captioner.tokenizers, model.config.max_positions)
            captioner.tokenizers.texts(generate(model, *model.encode(**batch.to(model.device).inputs), **options))

    def together() -> None:
        captioner.caption(items, decoding=Decoding(max_new_tokens=scst.NEW_TOKENS))

    read = weights(model) + scst.NEW_TOKENS * weights(model.language_model.decoder, model.language_model.lm_head)
    yield Pair(f"service, {count} requests", "captions", count, read, together, each)


if __name__ == "__main__":
    main()
