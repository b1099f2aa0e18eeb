"""Beam search, token for token equal to transformers' `generate(num_beams=…, early_stopping=True)`.

Each video has W running beams and the W best finished ones. A step considers the 2·W likeliest continuations: those
among the first W that end become finished, with score log p / length^penalty; the W best that do not end keep
running. A video is done when it has W finished beams and no running one can beat the worst of them.

Letters: B videos · W beams · T tokens · V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from videoblip2.model.decode.static_decoder import bucketed
from videoblip2.model.decode.stepper import Decoded, looks, start
from videoblip2.model.language_model import LanguageModel

NEVER = -1e9


class Beams(NamedTuple):
    """ids [B,W,T], scores [B,W]: running ones with summed log-probabilities, or finished ones with final scores."""

    ids: Tensor
    scores: Tensor
    finished: Tensor  # [B,W] bool


@torch.no_grad()
def beam(
    model: LanguageModel, states: Tensor, mask: Tensor, max_tokens: int, num_beams: int, length_penalty: float = 1.0
) -> tuple[Decoded, Tensor]:
    """Beam search with early stopping: B captions and their length-normalized scores [B]."""
    wanted = len(states)
    states, mask, _ = bucketed(model, states, mask)
    special, device, videos = model.tokens, states.device, len(states)
    stepper = start(model, states, mask, max_tokens, num_beams)
    running, done = (_empty(videos, num_beams, max_tokens, special.pad, device) for _ in range(2))
    running.scores[:, 0] = 0.0  # at first all beams are equal
    token = torch.full((videos,), special.start, device=device)
    open_video = torch.ones(videos, 1, dtype=torch.bool, device=device)
    for at in range(max_tokens):
        log_probs = torch.log_softmax(stepper.step(token), dim=-1)
        if (imposed := special.imposed(at, max_tokens)) is not None:  # no other token is possible
            log_probs = torch.full_like(log_probs, -torch.inf)
            log_probs[:, imposed] = 0.0
        if at == 0:
            log_probs = log_probs.repeat_interleave(num_beams, dim=0)
            stepper.repeat(num_beams)
        summed = log_probs.view(videos, num_beams, -1) + running.scores[:, :, None]  # [B,W,V]
        scores, place = summed.flatten(1).topk(2 * num_beams)  # [B,2W]
        parent, token = place // summed.shape[2], place % summed.shape[2]
        ids = running.ids.gather(1, parent[:, :, None].expand(-1, -1, max_tokens))
        ids[:, :, at] = token
        stops = (token == special.end) | (at + 1 == max_tokens)
        new = Beams(ids, scores, stops)
        done = _finish(done, new, open_video, num_beams, (at + 1) ** length_penalty)
        going, kept = (scores + stops * NEVER).topk(num_beams)  # [B,W]
        running = _gather(Beams(ids, scores + stops * NEVER, stops), kept)
        token = token.gather(1, kept).flatten()
        rows = parent.gather(1, kept) + torch.arange(videos, device=device)[:, None] * num_beams
        stepper.reorder(rows.flatten())
        worst = torch.where(done.finished, done.scores.amin(dim=1, keepdim=True), NEVER)
        open_video = open_video & (going[:, :1] / (at + 1) ** length_penalty > worst).any(dim=1, keepdim=True)
        if looks(at, device) and (~open_video.any() | done.finished.all() | stops.all()):
            break
    best = done.ids[:, 0]
    out = Decoded(best, (best == special.end).any(dim=1), torch.zeros(best.shape, device=device), special.end)
    return out.rows(slice(wanted)), done.scores[:wanted, 0]


def _empty(videos: int, num_beams: int, max_tokens: int, pad: int, device: torch.device) -> Beams:
    ids = torch.full((videos, num_beams, max_tokens), pad, device=device)
    scores = torch.full((videos, num_beams), NEVER, device=device)
    return Beams(ids, scores, torch.zeros_like(scores, dtype=torch.bool))


def _finish(done: Beams, new: Beams, open_video: Tensor, num_beams: int, divisor: float) -> Beams:
    """The W best of the finished beams and of the new ones that end among the first W."""
    leading = torch.arange(new.scores.shape[1], device=new.scores.device) < num_beams
    joins = new.finished & leading
    full = done.finished.all(dim=1, keepdim=True)
    scores = new.scores / divisor + (full.float() + (~open_video).float() + (~joins).float()) * NEVER
    new = new._replace(scores=scores, finished=joins)
    merged = Beams(*(torch.cat(pair, dim=1) for pair in zip(done, new, strict=True)))
    return _gather(merged, merged.scores.topk(num_beams)[1])


def _gather(beams: Beams, places: Tensor) -> Beams:
    videos = torch.arange(len(places), device=places.device)[:, None]
    return Beams(*(part[videos, places] for part in beams))
