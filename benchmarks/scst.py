"""One SCST step: this trainer beside the step as people write it, same weights and data, in one run.

    python benchmarks/scst.py [--quick | --only-full] [--json] [--device cuda] [--threads N]

(a)  this project: Q-Formers and T5's encoder once a video, greedy and samples in one batch with shared caches,
     prepared CIDEr-D, one teacher-forced pass on the shared encoding
(b)  as people write it: `generate` greedy, `generate` sampling, a Java tokeniser twice, `Cider` on the batch, and a
     forward pass for the loss on inputs repeated once a sample
(c)  (b) with tokeniser and CIDEr replaced by this project's

Needs torch, transformers and peft; (b) also pycocoevalcap and Java, without which it is left out.
"""

import contextlib
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from common import CROSS, as_loaded, generate, parser, peak_memory, product_seconds, settle, wait
from torch import Tensor
from transformers import InstructBlipQFormerConfig, T5Config

from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.data.batches import Batch
from videoblip2.model.configuration import VideoBlip2Config
from videoblip2.model.decode import Sampling, greedy, greedy_and_sample
from videoblip2.model.network import VideoBlip2
from videoblip2.training.scst import policy_loss, token_log_probs

WORDS = tuple("a man woman dog is the running playing with ball on in stage singing song car driving red".split(" "))  # noqa: SIM905
#: Random weights seldom end a caption, so both sides decode this many tokens: more than MSR-VTT's mean of about twelve.
NEW_TOKENS = 16


@dataclass(frozen=True)
class Size:
    """A network and a batch."""

    name: str
    d_model: int
    layers: int
    d_ff: int
    heads: int
    vocab: int
    qformer_layers: int
    qformer_width: int
    videos: int = 8
    samples: int = 5
    frames: int = 20
    windows: int = 10


SMALL = Size("small", 128, 2, 256, 4, 1000, 2, 128)
FULL = Size("full", 768, 12, 2048, 12, 32128, 12, 768)


@dataclass
class Clock:
    """Seconds by phase."""

    device: torch.device
    now: Callable[[], float] = time.perf_counter
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        wait(self.device)
        start = self.now()
        yield
        wait(self.device)
        self.seconds.setdefault(name, []).append(self.now() - start)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self.seconds.items()}


def build(size: Size, device: torch.device) -> VideoBlip2:
    """Random weights, dropout off; logits of unit variance, so that samples run on instead of ending at once."""
    torch.manual_seed(0)
    qformer = InstructBlipQFormerConfig(
        hidden_size=size.qformer_width,
        num_hidden_layers=size.qformer_layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.qformer_width,
        encoder_hidden_size=768,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    text = T5Config(
        vocab_size=size.vocab,
        d_model=size.d_model,
        d_kv=size.d_model // size.heads,
        d_ff=size.d_ff,
        num_layers=size.layers,
        num_heads=size.heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    config = VideoBlip2Config(
        text_config=text,
        video_qformer_config=qformer.to_dict(),
        audio_qformer_config=qformer.to_dict(),
        separate_lm_head=True,
    )
    model = VideoBlip2(config)
    torch.nn.init.normal_(model.language_model.lm_head.weight, std=size.d_model**-0.5)
    return model.to(device).eval()


def inputs(size: Size, device: torch.device) -> Batch:
    """Random features and a prompt of five pieces."""
    torch.manual_seed(1)
    ones = torch.ones
    rows = {"video": (size.frames, 768), "audio": (size.windows, 512)}
    features = {name: torch.randn(size.videos, *shape) for name, shape in rows.items()}
    masks = {name: ones(size.videos, count, dtype=torch.long) for name, (count, _) in rows.items()}
    text = {
        **{f"{kind}_ids": torch.randint(5, 900, (size.videos, 5)) for kind in ("qformer", "prompt")},
        **{f"{kind}_mask": ones(size.videos, 5, dtype=torch.long) for kind in ("qformer", "prompt")},
    }
    return Batch(tuple(map(str, range(size.videos))), features, masks, **text).to(device)


def texts(ids: Tensor) -> list[str]:
    """Tokens as words of a small vocabulary, so that every reward path does its full work."""
    return [" ".join(WORDS[token % len(WORDS)] for token in row if token > 1) or "a" for row in ids.tolist()]


def references(size: Size) -> dict[str, list[str]]:
    """Twenty captions of ten words a video."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(2, 900, (size.videos, 20, 10), generator=generator)
    return {f"video{video}": texts(rows[video]) for video in range(size.videos)}


def ours(model: VideoBlip2, batch: Batch, size: Size, scorer: CiderD, clock: Clock) -> None:
    """(a): the step of training/scst.py, phase by phase."""
    with clock.phase("encode"):
        states, mask = model.encode(**batch.inputs)
    with clock.phase("decode"), torch.no_grad():
        best, sampled = greedy_and_sample(model.text, states.detach(), mask, NEW_TOKENS, Sampling(size.samples))
    with clock.phase("reward"):
        ids = [f"video{row // size.samples}" for row in range(len(sampled.ids))]
        reward = torch.from_numpy(scorer.score(ids, texts(sampled.ids), sampled.ended.tolist()))
        base = torch.from_numpy(scorer.score(ids[:: size.samples], texts(best.ids), best.ended.tolist()))
        advantage = (reward.view(-1, size.samples) - base[:, None]).flatten().float().to(states.device)
    with clock.phase("loss"):
        log_probs = token_log_probs(model.decode(states, mask, sampled.ids), sampled.ids)
        policy_loss(log_probs, sampled.mask, advantage).backward()
    model.zero_grad(set_to_none=True)


def as_written(model: VideoBlip2, batch: Batch, size: Size, reward_of: Callable[..., Any], clock: Clock) -> None:
    """(b) and (c): every part called where one needs it, inputs repeated once a sample."""
    options = {"max_new_tokens": NEW_TOKENS}
    repeated = batch.map(lambda tensor: tensor.repeat_interleave(size.samples, dim=0))
    with clock.phase("decode"), torch.no_grad(), as_loaded(model):
        best = generate(model, *model.encode(**batch.inputs), do_sample=False, **options)
        sampled = generate(model, *model.encode(**repeated.inputs), do_sample=True, top_k=0, **options)
    with clock.phase("reward"):
        ids = [f"video{row // size.samples}" for row in range(len(sampled))]
        reward = torch.as_tensor(reward_of(ids, texts(sampled)))
        base = torch.as_tensor(reward_of(ids[:: size.samples], texts(best)))
        advantage = (reward.view(-1, size.samples) - base[:, None]).flatten().float().to(sampled.device)
    with clock.phase("loss"), as_loaded(model):
        states, mask = model.encode(**repeated.inputs)
        logits = model.decode(states, mask, sampled)
        log_probs = torch.log_softmax(logits, dim=-1).gather(2, sampled[..., None]).squeeze(2)
        live = (sampled != 0).float()
        (-(advantage[:, None] * log_probs * live).sum() / live.sum()).backward()
    model.zero_grad(set_to_none=True)


def java_reward(truth: dict[str, list[str]]) -> Callable[[list[str], list[str]], Any]:
    """PTBTokenizer on references and captions, then Cider, for every call."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def score(ids: list[str], captions: list[str]) -> Any:
        tokenizer = PTBTokenizer()
        gts = {str(i): [{"caption": text} for text in truth[video]] for i, video in enumerate(ids)}
        res = {str(i): [{"caption": text}] for i, text in enumerate(captions)}
        return Cider().compute_score(tokenizer.tokenize(gts), tokenizer.tokenize(res))[1]

    return score


def matrix_floor(model: VideoBlip2, size: Size, now: Callable[[], float]) -> float:
    """Seconds of the matrix products of (a): encoder and teacher-forced pass, and a product a token in decoding."""

    def counts(name: str) -> list[tuple[int, int]]:
        if ".qformer." in name:
            return [(3, size.videos * 37)]
        if "language_model.encoder" in name or name.endswith(CROSS):
            return [(3 if name.endswith(CROSS) else 2, size.videos * 69)]
        return [(2, size.videos * size.samples * NEW_TOKENS), (NEW_TOKENS, size.videos * (size.samples + 1))]

    return product_seconds(model, counts, now)


def measure(size: Size, device: torch.device, now: Callable[[], float], repeats: int) -> dict[str, Any]:
    """Medians over interleaved repeats of (a), (b), (c)."""
    model, batch, truth = build(size, device), inputs(size, device), references(size)
    scorer = CiderD(truth, DocumentFrequencies.from_references(truth, end_token=True))
    clocks = {name: Clock(device, now) for name in ("a", "b", "c")}
    java = java_reward(truth) if shutil.which("java") else None
    for _ in range(repeats + 1):
        ours(model, batch, size, scorer, clocks["a"])
        if java:
            as_written(model, batch, size, java, clocks["b"])
        as_written(model, batch, size, lambda ids, captions: scorer.score(ids, captions), clocks["c"])
    phases = {}
    for name, clock in clocks.items():
        clock.seconds = {phase: values[1:] for phase, values in clock.seconds.items()}  # the first warms up
        phases[name] = clock.medians()
    return summary(size, phases, clocks, matrix_floor(model, size, now))


def summary(size: Size, phases: dict[str, dict[str, float]], clocks: dict[str, Clock], floor: float) -> dict[str, Any]:
    totals = {name: sum(times.values()) for name, times in phases.items() if times}
    spread = {
        name: [round(f(map(sum, zip(*clock.seconds.values(), strict=True))), 3) for f in (min, max)]
        for name, clock in clocks.items()
        if clock.seconds
    }
    captions = size.videos * (size.samples + 1)
    return {
        "ratio": round(totals["b"] / totals["a"], 2) if "b" in totals else None,
        "ratio_c": round(totals["c"] / totals["a"], 2),
        "reward_share": round(phases["a"]["reward"] / totals["a"], 4),
        "captions_per_second": round(captions / totals["a"], 1),
        "steps_per_second": {name: round(1 / total, 3) for name, total in totals.items()},
        "phases": {name: {k: round(v, 4) for k, v in times.items()} for name, times in phases.items() if times},
        "seconds_min_max": spread,
        "matrix_products": round(floor, 3),
        "peak_memory_mb": peak_memory(),
    }


def greedy_ratio(size: Size, device: torch.device, now: Callable[[], float], repeats: int) -> dict[str, float]:
    """Greedy decoding of 32 captions beside `generate`."""
    model = build(size, device)
    batch = inputs(size, device).map(lambda tensor: tensor.repeat(4, *[1] * (tensor.ndim - 1)))
    clock = Clock(device, now)
    with torch.no_grad():
        states, mask = model.encode(**batch.inputs)
        for _ in range(repeats + 1):
            with clock.phase("ours"):
                greedy(model.text, states, mask, NEW_TOKENS)
            with clock.phase("generate"):
                generate(model, states, mask, max_new_tokens=NEW_TOKENS, do_sample=False)
    clock.seconds = {phase: values[1:] for phase, values in clock.seconds.items()}
    times = clock.medians()
    return {"ratio": round(times["generate"] / times["ours"], 2), **{k: round(v, 4) for k, v in times.items()}}


def main() -> None:
    choice = parser(__doc__)
    choice.add_argument("--quick", action="store_true", help="few repeats, under 60 seconds")
    choice.add_argument("--only-full", action="store_true", help="the step at full size alone, about seven minutes")
    choice.add_argument("--rounds", type=int, default=2, help="of the step at full size, after one that warms up")
    options = choice.parse_args()
    device, now = settle(options)
    result: dict[str, Any] = {"device": options.device, "threads": options.threads, "torch": torch.__version__}
    if not options.only_full:
        result["small"] = measure(SMALL, device, now, 3 if options.quick else 10)
        result["greedy_small"] = greedy_ratio(SMALL, device, now, 5)
    if not options.quick:
        result["full"] = measure(FULL, device, now, options.rounds)
    if not options.quick and not options.only_full:
        result["greedy_full"] = greedy_ratio(FULL, device, now, 5)
    for name, value in result.items():
        print(name, json.dumps(value, indent=2) if isinstance(value, dict) else value)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
