"""What the benchmarks of the network share: their options, their clocks, and `generate` as people call it."""

import argparse
import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft.tuners import lora
from torch import Tensor
from transformers.activations import NewGELUActivation
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5LayerNorm

SOURCE = Path(__file__).resolve().parents[1] / "src"
sys.path.append(str(SOURCE))  # the package need not be installed

from videoblip2.model.fused import Adapted, Norm  # noqa: E402

CROSS = (".EncDecAttention.k", ".EncDecAttention.v")  # once a video


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of all; the description is the first line of `doc`."""
    options = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    options.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=2, help="1: seconds of the process, not of the clock")
    return options


def settle(options: argparse.Namespace) -> tuple[torch.device, Callable[[], float]]:
    """The device, and a clock in seconds: with one thread on a CPU, other work on the machine does not count."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    return device, busy if options.threads == 1 and device.type == "cpu" else time.perf_counter


def busy() -> float:
    """CPU seconds of this process and of the programs that it has run, such as Java."""
    return time.process_time() + sum(os.times()[2:4])


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory() -> int:
    """MiB: of the GPU where there is one, otherwise of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def product_seconds(
    model: torch.nn.Module, counts: Callable[[str], list[tuple[int, int]]], now: Callable[[], float]
) -> float:
    """Seconds that the products with a network's linear layers alone take: one of each shape, timed, times how often.

    Args:
        counts: name of a layer → how often with how many rows. Forward and backward are three products where the
            weight trains, two where only the gradient passes through.
    """

    @cache
    def seconds(rows: int, outputs: int, inputs: int) -> float:
        device, times = next(model.parameters()).device, []
        data, weight = torch.randn(rows, inputs, device=device), torch.randn(outputs, inputs, device=device)
        for _ in range(4):
            start = now()
            torch.nn.functional.linear(data, weight)
            wait(device)
            times.append(now() - start)
        return min(times[1:])

    linears = ((name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.Linear))
    return sum(
        often * seconds(rows, *linear.weight.shape)
        for name, linear in linears
        if "lora_" not in name
        for often, rows in counts(name.removesuffix(".base_layer"))
    )


@contextlib.contextmanager
def as_loaded(model: Any) -> Iterator[None]:
    """Inside, the language model's activations, norms and LoRA are as a plain loop has them."""
    ours = [
        (parent, name)
        for parent in model.language_model.modules()
        for name, module in parent.named_children()
        if isinstance(module, torch.nn.GELU)
    ]
    kept = [parent.get_submodule(name) for parent, name in ours]
    for parent, name in ours:
        parent.add_module(name, NewGELUActivation())
    try:
        with (
            patch.object(Norm, "forward", T5LayerNorm.forward),
            patch.object(Adapted, "forward", lora.Linear.forward),
        ):
            yield
    finally:
        for (parent, name), module in zip(ours, kept, strict=True):
            parent.add_module(name, module)


def generate(model: Any, states: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """Caption ids [N,T] by transformers, one row a caption, from what `model.encode` gives."""
    encoded = BaseModelOutput(last_hidden_state=states)
    with as_loaded(model):
        out: Tensor = model.language_model.generate(encoder_outputs=encoded, attention_mask=mask, **options)
    return out[:, 1:]
