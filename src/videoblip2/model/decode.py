"""From T5 encoder states to captions: greedy, sampling, beam search.

Letters: B videos · K captions a video · S encoder places · E T5 width · T caption tokens · V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from videoblip2.model.network import VideoBlip2


@dataclass(frozen=True)
class Decoded:
    """Captions as tokens.

    ids: [N,T], the start token left out, the padding token after the end.
    ended: [N], whether the caption came to its end token within T.
    log_probs: [N,T], log-probability of each token under the distribution it was drawn from; 0 after the end.
    """

    ids: Tensor
    ended: Tensor
    log_probs: Tensor

    @property
    def mask(self) -> Tensor:
        """[N,T]: 1 up to and with the first end token, 0 after it."""
        return _live(self.ids, self._end)

    _end: int = 1


def greedy(model: VideoBlip2, states: Tensor, mask: Tensor, max_new_tokens: int) -> Decoded:
    """The likeliest token at each step: states [B,S,E] → B captions."""
    return _roll(model, states, mask, max_new_tokens, sampled=torch.zeros(len(states), dtype=torch.bool))


def sample(
    model: VideoBlip2,
    states: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    samples: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Decoded:
    """K captions a video, video by video: drawn from the whole distribution, no top-k, no top-p, no penalties."""
    states, mask = states.repeat_interleave(samples, dim=0), mask.repeat_interleave(samples, dim=0)
    return _roll(model, states, mask, max_new_tokens, torch.ones(len(states), dtype=torch.bool), temperature, generator)


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
    num_videos = len(states)
    states = torch.cat([states, states.repeat_interleave(samples, dim=0)])
    mask = torch.cat([mask, mask.repeat_interleave(samples, dim=0)])
    sampled = torch.arange(len(states)) >= num_videos
    both = _roll(model, states, mask, max_new_tokens, sampled, temperature, generator)
    return _rows(both, slice(0, num_videos)), _rows(both, slice(num_videos, None))


def beam(
    model: VideoBlip2, states: Tensor, mask: Tensor, max_new_tokens: int, num_beams: int, length_penalty: float = 1.0
) -> tuple[Decoded, Tensor]:
    """Beam search (transformers' `generate`): B captions and their scores [B]."""
    out = model.language_model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        length_penalty=length_penalty,
        do_sample=False,
        early_stopping=True,
        return_dict_in_generate=True,
        output_scores=True,
    )
    ids = out.sequences[:, 1:]
    end = end_token(model)
    decoded = Decoded(ids, (ids == end).any(dim=1), torch.zeros(ids.shape, device=ids.device), end)
    return decoded, out.sequences_scores


def end_token(model: VideoBlip2) -> int:
    end = model.config.text_config.eos_token_id  # type: ignore[union-attr]
    return int(end[0] if isinstance(end, list) else end)


@torch.no_grad()
def _roll(
    model: VideoBlip2,
    states: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    sampled: Tensor,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Token by token with a key-value cache; `sampled` [N] says which rows draw and which take the likeliest."""
    text = model.config.text_config
    pad, end = text.pad_token_id, end_token(model)  # type: ignore[union-attr]
    sampled = sampled.to(states.device)
    token = states.new_full((len(states), 1), text.decoder_start_token_id, dtype=torch.long)  # type: ignore[union-attr]
    ended = torch.zeros(len(states), dtype=torch.bool, device=states.device)
    encoded, cache, ids, log_probs = BaseModelOutput(last_hidden_state=states), None, [], []
    for _ in range(max_new_tokens):
        out = model.language_model(
            encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=token, past_key_values=cache, use_cache=True
        )
        cache = out.past_key_values
        scores = torch.log_softmax(out.logits[:, -1].float() / temperature, dim=-1)  # [N,V]
        token = _choose(scores, sampled, generator)
        chosen = scores.gather(1, token).squeeze(1)
        token = token.masked_fill(ended[:, None], pad)
        ids.append(token)
        log_probs.append(chosen.masked_fill(ended, 0.0))
        ended = ended | (token.squeeze(1) == end)
        if ended.all():
            break
    return Decoded(torch.cat(ids, dim=1), ended, torch.stack(log_probs, dim=1), end)


def _choose(scores: Tensor, sampled: Tensor, generator: torch.Generator | None) -> Tensor:
    """[N,V] log-probabilities → [N,1] tokens."""
    likeliest = scores.argmax(dim=-1, keepdim=True)
    if not sampled.any():
        return likeliest
    drawn = torch.multinomial(scores.exp(), 1, generator=generator)
    return torch.where(sampled[:, None], drawn, likeliest)


def _live(ids: Tensor, end: int) -> Tensor:
    """1 up to and with the first end token."""
    before = (ids == end).cumsum(dim=1) - (ids == end).long()
    return (before == 0).to(ids.dtype)


def _rows(decoded: Decoded, rows: slice) -> Decoded:
    """Some of the captions, cut to the longest of them."""
    mask = decoded.mask[rows]
    length = int(mask.sum(dim=1).max())
    return Decoded(decoded.ids[rows, :length], decoded.ended[rows], decoded.log_probs[rows, :length], decoded._end)
