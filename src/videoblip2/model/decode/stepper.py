"""Decoding one token of every caption at a time: the interface between decoding strategies and language models.

Letters: B videos · R rows (captions) per video · N captions · S encoder places · E width · T tokens · V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from videoblip2.model.decode.static_decoder import is_static, static_decoder
from videoblip2.model.decode.t5_stepper import T5Stepper
from videoblip2.model.language_model import LanguageModel

#: On a GPU, checking whether all captions have ended waits for the device: check only every few tokens.
STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 4}


def looks(at: int, device: torch.device) -> bool:
    """Whether to check, after token number `at`, if captions have ended."""
    return (at + 1) % STEPS_BETWEEN_LOOKS.get(device.type, 1) == 0


@dataclass(frozen=True)
class Decoded:
    """Captions as tokens.

    ids: [N,T], the start token left out, the padding token after the end.
    ended: [N], whether the caption reached its end token within T.
    log_probs: [N,T], log-probability of each token under the distribution it was drawn from; 0 after the end.
    end: the end token.
    """

    ids: Tensor
    ended: Tensor
    log_probs: Tensor
    end: int = 1

    @property
    def mask(self) -> Tensor:
        """[N,T]: 1 up to and with the first end token, 0 after it."""
        hits = (self.ids == self.end).long()
        return (hits.cumsum(dim=1) - hits == 0).to(self.ids.dtype)

    def rows(self, chosen: slice) -> "Decoded":
        """Some captions, cut to the length of their longest."""
        length = int(self.mask[chosen].sum(dim=1).max())
        return Decoded(self.ids[chosen, :length], self.ended[chosen], self.log_probs[chosen, :length], self.end)


class Stepper(Protocol):
    """Captions being decoded. They start as one row per video; rows are ordered by video."""

    def step(self, tokens: Tensor) -> Tensor:
        """The latest tokens [B·R] → the next ones' logits [B·R,V] in float32."""

    def repeat(self, rows: int) -> None:
        """Repeat the one row of each video to `rows` equal ones."""

    def select(self, videos: Tensor, rows: Tensor) -> None:
        """Keep some videos [B'], and of their rows those with indices `rows` [B'·R']."""

    def reorder(self, rows: Tensor) -> None:
        """New row i is old row `rows[i]` of the same video."""


class CacheStepper:
    """Any encoder-decoder, through transformers' own cache of keys and values (`past_key_values`)."""

    def __init__(self, language_model: LanguageModel, states: Tensor, mask: Tensor, *_sizes: int) -> None:
        self._network, self._states, self._mask = language_model.network, states, mask
        self._cache: Any = None

    def step(self, tokens: Tensor) -> Tensor:
        training = self._network.training
        self._network.eval()  # without dropout
        try:
            output = self._network(
                encoder_outputs=BaseModelOutput(last_hidden_state=self._states),
                attention_mask=self._mask,
                decoder_input_ids=tokens[:, None],
                past_key_values=self._cache,
                use_cache=True,
            )
        finally:
            self._network.train(training)
        self._cache = output.past_key_values
        return cast(Tensor, output.logits[:, -1].float())

    def repeat(self, rows: int) -> None:
        self._cache.batch_repeat_interleave(rows)
        self._states, self._mask = (part.repeat_interleave(rows, dim=0) for part in (self._states, self._mask))

    def select(self, videos: Tensor, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._states, self._mask = self._states[rows], self._mask[rows]

    def reorder(self, rows: Tensor) -> None:
        self._cache.self_attention_cache.batch_select_indices(rows)


#: Faster steppers than `CacheStepper`, by the `model_type` of the language model's config.json.
STEPPERS: dict[str, Callable[..., Stepper]] = {"t5": T5Stepper}


@torch.no_grad()
def start(language_model: LanguageModel, states: Tensor, mask: Tensor, max_tokens: int, rows: int) -> Stepper:
    """Build the stepper for encoder states [B,S,E], mask [B,S].

    Args:
        max_tokens: at most this many steps follow.
        rows: about this many captions per video.
    """
    kind = STEPPERS.get(language_model.network.config.model_type, CacheStepper)
    if is_static(language_model):
        return static_decoder(language_model, states, mask, max_tokens, rows)
    return kind(language_model, states, mask, max_tokens, rows)
