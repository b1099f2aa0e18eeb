"""A reusable decoder: buffers of fixed shape, weights updated in place, and on a GPU whole steps as CUDA graphs.

A step of T5's decoder is some four hundred small operations, which a GPU finishes faster than they can be launched. A
captured graph is launched at once, but always on the same memory, so no buffer may move between calls. Not thread-safe.

Letters: B videos · R rows (captions) per video · S encoder places · E width · T tokens · V vocabulary.
"""

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from videoblip2.model.decode.t5_stepper import T5Stepper
from videoblip2.model.language_model import LanguageModel

#: Decoders cached per network; the oldest is evicted.
MOST = 4
_kept: "WeakKeyDictionary[Any, dict[Hashable, StaticDecoder]]" = WeakKeyDictionary()


class StaticDecoder:
    """A `stepper.Stepper` that has all R rows of a video from the start, and drops none.

    at: [1], the place of the next token.
    """

    def __init__(self, inner: T5Stepper, videos: int, rows: int) -> None:
        inner.repeat(rows)
        self._inner, self._rows = inner, rows
        self.at = torch.zeros(1, dtype=torch.long, device=inner.device)
        self._tokens = torch.zeros(videos * rows, dtype=torch.long, device=inner.device)
        self._logits = torch.empty(0)
        self._captured: dict[Hashable, tuple[Any, Callable[[], object]]] = {}

    def refresh(self, fresh: T5Stepper) -> None:
        """Copy the weights and encoder states of another stepper, and start at the first token."""
        pairs = zip(self._inner.tensors, fresh.tensors, strict=True)
        moved = [(old, new) for old, new in pairs if old.data_ptr() != new.data_ptr()]
        torch._foreach_copy_([old for old, _ in moved], [new for _, new in moved])
        self.at.zero_()

    @torch.inference_mode(False)
    @torch.no_grad()
    def captured(self, key: Hashable, make: Callable[[], tuple[Any, Callable[[], object]]]) -> Any:
        """The result of `make` at the first call with this key: its buffers, and its step, on a GPU as a graph."""
        if key not in self._captured:
            buffers, step = make()
            self._captured[key] = buffers, as_graph(step, self.at)
        return self._captured[key]

    def logits(self, tokens: Tensor) -> Tensor:
        """Tokens [B·R] at place `at` → [B·R,V] float32."""
        return self._inner.advance(tokens, self.at)

    def step(self, tokens: Tensor) -> Tensor:
        first = len(tokens) < len(self._tokens)
        self._tokens.copy_(tokens.repeat_interleave(self._rows) if first else tokens)
        _, step = self.captured("step", lambda: (None, self._step))
        step()
        return self._logits[:: self._rows] if first else self._logits

    def _step(self) -> None:
        self._logits = self.logits(self._tokens)
        self.at += 1

    def repeat(self, rows: int) -> None:
        """Do nothing: all rows exist."""

    def reorder(self, rows: Tensor) -> None:
        self._inner.reorder_in_place(rows)

    def select(self, videos: Tensor, rows: Tensor) -> None:
        raise RuntimeError("a captured step keeps all of its rows; none can be dropped")


def as_graph(step: Callable[[], object], at: Tensor) -> Callable[[], object]:
    """The step as one CUDA graph; unchanged on a CPU. It runs once, at place 0, before it is captured."""
    if at.device.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    at.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.inference_mode(False)
@torch.no_grad()
def static_decoder(model: LanguageModel, states: Tensor, mask: Tensor, max_tokens: int, rows: int) -> StaticDecoder:
    """The cached decoder for these sizes, with the current weights; arguments as for `start`."""
    fresh = T5Stepper(model, states, mask, max_tokens, 0)
    kept, key = _kept.setdefault(model.network, {}), (states.shape, max_tokens, rows, fresh.dtype, fresh.device)
    if key not in kept:
        while len(kept) >= MOST:
            kept.pop(next(iter(kept)))
        kept[key] = StaticDecoder(T5Stepper(model, states, mask, max_tokens, 0), len(states), rows)
    kept[key].refresh(fresh)
    return kept[key]


def is_static(model: LanguageModel) -> bool:
    """Whether to use a static decoder: `decode.compile`, and a T5 without forced tokens."""
    kind, tokens = model.network.config.model_type, model.tokens
    return model.compiled and kind == "t5" and tokens.first is tokens.last is None


def bucketed(model: LanguageModel, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """For a static decoder, the last video repeated up to a power of two: [B',S,E], [B',S] and the index of each."""
    if not is_static(model):
        return states, mask, None
    places = torch.arange(1 << (len(states) - 1).bit_length(), device=states.device).clamp(max=len(states) - 1)
    return states[places], mask[places], places
