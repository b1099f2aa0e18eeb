"""Greedy and sampled captions from encoder states.

Greedy tokens equal those of transformers' `generate`; samples use the whole distribution: no top-k, no top-p.

Letters: B videos · K samples per video · R rows (captions) per video · N = B·R · S encoder places · E T5 width · T
caption tokens · V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoblip2.model.decode.static_decoder import bucketed, is_static, static_decoder
from videoblip2.model.decode.stepper import Decoded, Stepper, looks, start
from videoblip2.model.language_model import LanguageModel, SpecialTokens

#: Ended captions are dropped once at most this share of the batch would remain.
WORTH_DROPPING = 0.75

#: One random generator for all samples, or one per caption, which makes each independent of its batch.
Generators = torch.Generator | Sequence[torch.Generator] | None
#: Called after each token with all captions so far, [N,T].
TokenWatch = Callable[[Tensor], None]


@dataclass(frozen=True)
class Sampling:
    """How captions are sampled: K per video, from the whole distribution.

    within: if one generator draws for more captions than these: the number before them, and the total.
    """

    samples: int = 1
    temperature: float = 1.0
    generator: Generators = None
    within: tuple[int, int] | None = None

    def uniform(self, total: int, length: int, device: torch.device) -> Tensor:
        """[T,N] numbers in [0,1), one per token and caption, ended or not, so that dropping rows changes no draw."""
        if isinstance(self.generator, torch.Generator | None):
            first, everyone = self.within or (0, total)
            return torch.rand(length, everyone, generator=self.generator, device=device)[:, first : first + total]
        drawn = [torch.rand(length, generator=one, device=one.device) for one in self.generator]
        return torch.stack(drawn, dim=1).to(device)


def greedy(
    model: LanguageModel, states: Tensor, mask: Tensor, max_tokens: int, watch: TokenWatch | None = None
) -> Decoded:
    """The likeliest token at each step: states [B,S,E], mask [B,S] → B captions."""
    return _roll(model, (states, mask), max_tokens, num_greedy=1, watch=watch)


def sample(
    model: LanguageModel,
    states: Tensor,
    mask: Tensor,
    max_tokens: int,
    sampling: Sampling,
    watch: TokenWatch | None = None,
) -> Decoded:
    """B·K sampled captions, video by video."""
    return _roll(model, (states, mask), max_tokens, sampling=sampling, watch=watch)


def greedy_and_sample(
    model: LanguageModel, states: Tensor, mask: Tensor, max_tokens: int, sampling: Sampling
) -> tuple[Decoded, Decoded]:
    """Decode B greedy captions and B·K sampled ones in one batch."""
    both = _roll(model, (states, mask), max_tokens, num_greedy=1, sampling=sampling)
    numbers = torch.arange(len(both.ids), device=both.ids.device).view(len(states), -1)
    order = torch.cat([numbers[:, 0], numbers[:, 1:].flatten()])
    moved = Decoded(both.ids[order], both.ended[order], both.log_probs[order], both.end)
    return moved.rows(slice(0, len(states))), moved.rows(slice(len(states), None))


class RunningRows:
    """Captions being decoded: [B,R] indices of those still running, and the tokens of all.

    The first `num_greedy` rows of each video take the likeliest token, the others sample.
    """

    def __init__(self, special: SpecialTokens, states: Tensor, max_tokens: int, num_greedy: int, samples: int) -> None:
        videos, rows, device = len(states), num_greedy + samples, states.device
        total = videos * rows
        self.special, self.draws = special, samples > 0
        self.numbers = torch.arange(total, device=device).view(videos, rows)  # [B,R]
        self.is_greedy = self.numbers % rows < num_greedy if num_greedy and samples else None  # [B,R]; None: all alike
        self.ids = torch.full((total, max_tokens), special.pad, device=device)
        self.log_probs = torch.zeros(total, max_tokens, device=device)
        self.ended = torch.zeros(total, dtype=torch.bool, device=device)
        self.token = torch.full((total,), special.start, device=device)

    def restart(self) -> None:
        """Forget all captions, in place."""
        self.ids.fill_(self.special.pad)
        self.log_probs.zero_()
        self.ended.zero_()
        self.token.fill_(self.special.start)

    def take(self, log_probs: Tensor, uniform: Tensor | None, at: int | Tensor) -> None:
        """Choose a token for every running row from [B·R,V] and store it, in place; at: an int or [1]."""
        rows = self.numbers.flatten()
        greedy = None if self.is_greedy is None else self.is_greedy.flatten()
        token = choose(log_probs, None if uniform is None else uniform[rows], greedy)
        imposed = None if self.draws else self.special.imposed(at, self.ids.shape[1])
        if imposed is not None:  # with samples in the batch, no token is forced
            token = torch.full_like(token, imposed)
        chosen = log_probs.gather(1, token[:, None]).squeeze(1)
        ended = self.ended[rows]
        self.token.copy_(token.masked_fill(ended, self.special.pad))
        self.ids[rows, at] = self.token
        self.log_probs[rows, at] = chosen.masked_fill(ended, 0.0)
        self.ended[rows] = ended | (self.token == self.special.end)

    def drop_ended(self, stepper: Stepper) -> bool:
        """Drop ended rows if that is worth the copy; False if none is left."""
        live = ~self.ended[self.numbers]  # [B,R]
        counts = live.sum(dim=1).tolist()  # the only wait for a GPU
        most = max(counts)
        if most == 0:
            return False
        videos = self.numbers.new_tensor([video for video, count in enumerate(counts) if count])
        if len(videos) * most <= WORTH_DROPPING * live.numel():
            places = (~live[videos]).long().argsort(dim=1, stable=True)[:, :most]  # running rows first
            chosen = (videos[:, None] * live.shape[1] + places).flatten()
            stepper.select(videos, chosen)
            self.token = self.token[chosen]
            self.numbers = self.numbers.flatten()[chosen].view(-1, most)
            self.is_greedy = None if self.is_greedy is None else self.is_greedy.flatten()[chosen].view(-1, most)
        return True


@torch.no_grad()
def _roll(
    model: LanguageModel,
    encoded: tuple[Tensor, Tensor],
    max_tokens: int,
    num_greedy: int = 0,
    sampling: Sampling | None = None,
    watch: TokenWatch | None = None,
) -> Decoded:
    """Decode token by token until every caption has ended: for each video the greedy captions, then the samples."""
    if is_static(model):
        return _replay(model, encoded, max_tokens, num_greedy, sampling, watch)
    rows, device = num_greedy + (sampling.samples if sampling else 0), encoded[0].device
    run = RunningRows(model.tokens, encoded[0], max_tokens, num_greedy, rows - num_greedy)
    stepper = start(model, *encoded, max_tokens, rows)
    uniform = None if sampling is None else sampling.uniform(len(run.ids), max_tokens, device)
    for at in range(max_tokens):
        logits = stepper.step(run.token if at else run.token[::rows])
        if sampling is not None and sampling.temperature != 1.0:
            logits = logits / sampling.temperature
        if at == 0 and rows > 1:  # all captions of a video start alike: computed once
            logits = logits.repeat_interleave(rows, dim=0)
            stepper.repeat(rows)
        run.take(torch.log_softmax(logits, dim=-1), None if uniform is None else uniform[at], at)
        if watch is not None:
            watch(run.ids[:, : at + 1])
        if not looks(at, device):
            continue
        if not run.drop_ended(stepper):
            break
    return Decoded(run.ids[:, : at + 1], run.ended, run.log_probs[:, : at + 1], run.special.end)


def _replay(
    model: LanguageModel,
    encoded: tuple[Tensor, Tensor],
    max_tokens: int,
    num_greedy: int,
    sampling: Sampling | None,
    watch: TokenWatch | None,
) -> Decoded:
    """`_roll` with a `StaticDecoder`: each step includes choosing the token."""
    samples, device = sampling.samples if sampling else 0, encoded[0].device
    rows, temperature = num_greedy + samples, sampling.temperature if sampling else 1.0
    states, mask, places = bucketed(model, *encoded)
    decoder = static_decoder(model, states, mask, max_tokens, rows)

    def make() -> tuple[tuple[RunningRows, Tensor], Callable[[], None]]:
        run = RunningRows(model.tokens, states, max_tokens, num_greedy, samples)
        uniform = torch.zeros(max_tokens, len(run.ids), device=device)

        def step() -> None:
            log_probs = torch.log_softmax(decoder.logits(run.token) / temperature, dim=-1)
            run.take(log_probs, uniform.index_select(0, decoder.at)[0] if samples else None, decoder.at)
            decoder.at.add_(1)

        return (run, uniform), step

    (run, uniform), step = decoder.captured((num_greedy, samples, temperature), make)
    run.restart()
    wanted = len(encoded[0]) * rows
    if sampling is not None:
        drawn = sampling.uniform(wanted, max_tokens, device)
        uniform.copy_(drawn.view(max_tokens, -1, rows)[:, places].flatten(1))
    for at in range(max_tokens):
        step()
        if watch is not None:
            watch(run.ids[:wanted, : at + 1])
        if looks(at, device) and run.ended.all():
            break
    ids, log_probs = (part[:wanted, : at + 1].clone() for part in (run.ids, run.log_probs))
    return Decoded(ids, run.ended[:wanted].clone(), log_probs, run.special.end)


def choose(log_probs: Tensor, uniform: Tensor | None, is_greedy: Tensor | None) -> Tensor:
    """[n,V], a number in [0,1) per row, which rows are greedy → [n] tokens, by inverse transform sampling."""
    if uniform is None:
        return log_probs.argmax(dim=-1)
    cumulative = log_probs.exp().cumsum(dim=-1)  # [n,V]
    drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(1)
    drawn = drawn.clamp(max=log_probs.shape[1] - 1)
    return drawn if is_greedy is None else torch.where(is_greedy, log_probs.argmax(dim=-1), drawn)
