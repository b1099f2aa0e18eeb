"""From T5 encoder states to captions: greedy, sampling, beam search.

The tokens are those of transformers' `generate` (greedy, beam), and follow the same distribution (sampling: all of it,
no top-k, no top-p, no penalties). What makes it quick is in `t5_engine`.

Letters: B videos · K samples a video · R rows (captions) a video · N = B·R · S encoder places · E T5 width · T caption
tokens · V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from videoblip2.model.decode.decoded import Decoded
from videoblip2.model.decode.t5_engine import Caches, T5Decoder
from videoblip2.model.network import VideoBlip2

#: On a GPU, asking whether all captions have ended waits for the device: ask every few tokens only.
STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 4}
#: Ended captions are dropped from the batch once this share of it would remain.
WORTH_DROPPING = 0.75


#: What samples are drawn with: one generator for all, or one a caption, which makes a caption independent of its batch.
Generators = torch.Generator | Sequence[torch.Generator] | None
#: Called after each token with all captions so far, [N,T].
Watch = Callable[[Tensor], None]


def greedy(model: VideoBlip2, states: Tensor, mask: Tensor, max_new_tokens: int, watch: Watch | None = None) -> Decoded:
    """The likeliest token at each step: states [B,S,E], mask [B,S] → B captions."""
    return _roll(model, states, mask, max_new_tokens, num_greedy=1, samples=0, watch=watch)


def sample(
    model: VideoBlip2,
    states: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    samples: int,
    temperature: float = 1.0,
    generator: Generators = None,
    watch: Watch | None = None,
) -> Decoded:
    """K captions a video, video by video, drawn from the whole distribution."""
    return _roll(model, states, mask, max_new_tokens, 0, samples, temperature, generator, watch)


def greedy_and_sample(
    model: VideoBlip2,
    states: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    samples: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Decoded, Decoded]:
    """Both in one batch: B greedy captions and B·K sampled ones."""
    both = _roll(model, states, mask, max_new_tokens, 1, samples, temperature, generator)
    rows = torch.arange(len(both.ids), device=both.ids.device).view(len(states), -1)
    order = torch.cat([rows[:, 0], rows[:, 1:].flatten()])
    moved = Decoded(both.ids[order], both.ended[order], both.log_probs[order], both.end)
    return moved.rows(slice(0, len(states))), moved.rows(slice(len(states), None))


def end_token(model: VideoBlip2) -> int:
    """T5's end-of-sentence token."""
    end = model.config.text_config.eos_token_id  # type: ignore[union-attr]
    return int(end[0] if isinstance(end, list) else end)


class RunningRows:
    """Rows of captions in the making: [B,R] numbers of those that still run, and what they have become."""

    def __init__(self, model: VideoBlip2, videos: int, rows: int, num_greedy: int, max_tokens: int) -> None:
        text, device = model.config.text_config, model.device
        total = videos * rows
        self.pad, self.end = text.pad_token_id, end_token(model)  # type: ignore[union-attr]
        self.numbers = torch.arange(total, device=device).view(videos, rows)  # [B,R]
        self.is_greedy = self.numbers % rows < num_greedy  # [B,R]
        self.ids = torch.full((total, max_tokens), self.pad, device=device)
        self.log_probs = torch.zeros(total, max_tokens, device=device)
        self.ended = torch.zeros(total, dtype=torch.bool, device=device)
        self.token = torch.full((videos,), text.decoder_start_token_id, device=device)  # type: ignore[union-attr]

    def take(self, log_probs: Tensor, uniform: Tensor | None, at: int) -> None:
        """Choose a token for every running row from [B·R,V] and write it down."""
        rows = self.numbers.flatten()
        token = choose(log_probs, None if uniform is None else uniform[rows], self.is_greedy.flatten())
        chosen = log_probs.gather(1, token[:, None]).squeeze(1)
        ended = self.ended[rows]
        self.token = token.masked_fill(ended, self.pad)
        self.ids[rows, at] = self.token
        self.log_probs[rows, at] = chosen.masked_fill(ended, 0.0)
        self.ended[rows] = ended | (self.token == self.end)

    def any_live(self) -> bool:
        """Whether a caption still runs."""
        return not bool(self.ended.all())

    def drop_ended(self, caches: Caches) -> bool:
        """Leave out rows that ended, where that is worth the copying; False when none is left."""
        live = ~self.ended[self.numbers]  # [B,R]
        counts = live.sum(dim=1)
        most = int(counts.max())
        if most == 0:
            return False
        videos = counts.nonzero().flatten()
        if len(videos) * most <= WORTH_DROPPING * live.numel():
            places = (~live[videos]).long().argsort(dim=1, stable=True)[:, :most]  # running rows first
            chosen = (videos[:, None] * live.shape[1] + places).flatten()
            caches.select(videos, chosen)
            shape = (len(videos), most)
            self.token = self.token[chosen]
            self.numbers = self.numbers.flatten()[chosen].view(shape)
            self.is_greedy = self.is_greedy.flatten()[chosen].view(shape)
        return True


@torch.no_grad()
def _roll(
    model: VideoBlip2,
    states: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    num_greedy: int,
    samples: int,
    temperature: float = 1.0,
    generator: Generators = None,
    watch: Watch | None = None,
) -> Decoded:
    """Token by token; the first `num_greedy` rows of each video take the likeliest token, the others draw."""
    decoder = T5Decoder(model.language_model, len(states) * (num_greedy + samples), model.compiled_decoding)
    caches = decoder.start(states, mask, max_new_tokens)
    run = RunningRows(model, len(states), num_greedy + samples, num_greedy, max_new_tokens)
    total, every = len(run.ids), STEPS_BETWEEN_LOOKS.get(states.device.type, 1)
    for at in range(max_new_tokens):
        logits = decoder.step(run.token, caches) / temperature
        if at == 0 and num_greedy + samples > 1:  # all captions of a video begin alike: computed once
            logits = logits.repeat_interleave(num_greedy + samples, dim=0)
            caches.repeat(num_greedy + samples)
        # One number a caption and token, running or not, so that dropping rows changes no draw.
        uniform = _uniform(total, generator, states.device) if samples else None
        run.take(torch.log_softmax(logits, dim=-1), uniform, at)
        if watch is not None:
            watch(run.ids[:, : at + 1])
        if (at + 1) % every == 0 and not (run.any_live() if decoder.compiled else run.drop_ended(caches)):
            break
    return Decoded(run.ids[:, : at + 1], run.ended, run.log_probs[:, : at + 1], run.end)


def _uniform(total: int, generator: Generators, device: torch.device) -> Tensor:
    """[N] numbers in [0,1), one a caption."""
    if isinstance(generator, torch.Generator | None):
        return torch.rand(total, generator=generator, device=device)
    return torch.cat([torch.rand(1, generator=one, device=one.device) for one in generator]).to(device)


def choose(log_probs: Tensor, uniform: Tensor | None, is_greedy: Tensor) -> Tensor:
    """[n,V], a number in [0,1) a row, which rows are greedy → [n] tokens; drawn by inverting the distribution."""
    if uniform is None:
        return log_probs.argmax(dim=-1)
    cumulative = log_probs.exp().cumsum(dim=-1)  # [n,V]
    drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(1)
    drawn = drawn.clamp(max=log_probs.shape[1] - 1)
    return torch.where(is_greedy, log_probs.argmax(dim=-1), drawn) if is_greedy.any() else drawn
