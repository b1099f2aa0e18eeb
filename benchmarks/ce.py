"""One step of cross-entropy with several captions a video: this trainer beside a plain transformers + peft loop.

    python benchmarks/ce.py [--captions 5] [--videos 8] [--repeats 3] [--small] [--json] [--device cuda] [--threads N]

ours    Q-Formers, T5's encoder, and the keys and values of cross-attention once a video; logits of live tokens only; a
        fused optimizer
plain   one row a caption, as people write it: the video repeated for each of its captions, `loss` of T5 itself, AdamW
floor   the matrix products of ours alone: one product of each shape, timed, times how often it is done

Both have the same weights and captions; steps are interleaved. With one thread on a CPU, seconds are of the
process, so that other work on the machine does not count. Needs torch, transformers and peft.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from common import CROSS, as_loaded, parser, peak_memory, product_seconds, settle
from scst import FULL, SMALL, Size, build, inputs
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from videoblip2.data.batches import Batch
from videoblip2.model.network import VideoBlip2
from videoblip2.training.ce import cross_entropy

LENGTHS = (7, 20)  # pieces of a caption, its end among them; MSR-VTT's captions have about twelve


def captions(size: Size, device: torch.device) -> Tensor:
    """Labels [B·N,T] of random lengths."""
    torch.manual_seed(3)
    rows = size.videos * size.samples
    labels = torch.randint(2, 900, (rows, LENGTHS[1]))
    lengths = torch.randint(LENGTHS[0], LENGTHS[1] + 1, (rows,))
    lengths[0] = LENGTHS[1]
    return labels.masked_fill(torch.arange(LENGTHS[1]) >= lengths[:, None], -100).to(device)


def ours(model: VideoBlip2, batch: Batch, labels: Tensor) -> Tensor:
    """The step of training/ce.py."""
    live = (labels.flatten() != -100).nonzero().squeeze(1)
    return cross_entropy(model(labels, live, **batch.inputs), labels.flatten()[live])


def plain(model: VideoBlip2, batch: Batch, labels: Tensor) -> Tensor:
    """A row of the batch is a caption with its video."""
    repeats = len(labels) // len(batch.video_ids)
    with as_loaded(model):
        return repeated_loss(model, batch, labels, repeats)


def repeated_loss(model: VideoBlip2, batch: Batch, labels: Tensor, repeats: int) -> Tensor:
    states, mask = model.encode(**batch.map(lambda tensor: tensor.repeat_interleave(repeats, dim=0)).inputs)
    encoded = BaseModelOutput(last_hidden_state=states)
    loss: Tensor = model.language_model(encoder_outputs=encoded, attention_mask=mask, labels=labels).loss
    return loss


def floor(model: VideoBlip2, size: Size, labels: Tensor, clock: Callable[[], float]) -> float:
    """Seconds of the matrix products of ours."""
    live, every = int((labels != -100).sum()), labels.numel()

    def counts(name: str) -> list[tuple[int, int]]:
        if ".qformer." in name:
            return [(3, size.videos * 37)]
        if "language_model.encoder" in name or name.endswith(CROSS):
            return [(2, size.videos * 69)]
        return [(2, live if "lm_head" in name else every)]

    return product_seconds(model, counts, clock)


def measure(size: Size, device: torch.device, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    model, batch, labels = build(size, device).train(), inputs(size, device), captions(size, device)
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-6)
    seconds: dict[str, list[float]] = {"ours": [], "plain": [], "ours_optimizer": [], "plain_optimizer": []}
    losses = {}
    for _ in range(repeats + 1):
        for name, step in (("ours", ours), ("plain", plain)):
            for group in optimizer.param_groups:
                group["fused"] = name == "ours" or None  # None: as torch chooses by itself
            start = clock()
            loss = step(model, batch, labels)
            loss.backward()
            losses[name] = loss.item()  # waits for a GPU
            middle = clock()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds[name].append(clock() - start)
            seconds[f"{name}_optimizer"].append(clock() - middle)
    times = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    rows = size.videos * size.samples
    return {
        "size": size.name,
        "videos": size.videos,
        "captions_per_video": size.samples,
        "ratio": round(times["plain"] / times["ours"], 2),
        "captions_per_second": {name: round(rows / times[name], 2) for name in ("ours", "plain")},
        "seconds": {name: round(value, 3) for name, value in times.items()},
        "spread": {name: [round(min(values[1:]), 3), round(max(values[1:]), 3)] for name, values in seconds.items()},
        "matrix_products": round(floor(model, size, labels, clock), 3),
        "losses": losses,
        "peak_memory_mb": peak_memory(),
    }


def main() -> None:
    choice = parser(__doc__)
    choice.add_argument("--captions", type=int, nargs="+", default=[5, 1])
    choice.add_argument("--videos", type=int, default=8)
    choice.add_argument("--repeats", type=int, default=3)
    choice.add_argument("--small", action="store_true", help="two layers of width 128")
    options = choice.parse_args()
    device, clock = settle(options)
    for count in options.captions:
        size = replace(SMALL if options.small else FULL, videos=options.videos, samples=count)
        result = measure(size, device, options.repeats, clock)
        print(json.dumps(result) if options.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
