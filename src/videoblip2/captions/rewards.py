"""The table of rewards for self-critical training, and their weighted sum; see docs/how-to/add-a-reward.md.

An entry builds a scorer from the training references, their document frequencies and a reader of captions. Most are a
plain function of tokenized captions and references (`captions.functions`); a configuration may name its own
`package.module:function`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Protocol

import numpy as np

from videoblip2.captions import functions
from videoblip2.captions.cider import CiderD
from videoblip2.captions.frequencies import DocumentFrequencies, References
from videoblip2.captions.functions import Floats, Groups, Texts
from videoblip2.captions.tokenizer import joined
from videoblip2.config import InputError
from videoblip2.plugins import load_own

Function = Callable[[Texts, Groups], Sequence[float] | Floats]


class Scorer(Protocol):
    """Built once; then scores batches."""

    def score(self, video_ids: Sequence[str], captions: Sequence[str], ended: Sequence[bool] | None = None) -> Floats:
        """One reward per caption, [M]; see `CiderD.score`."""


class FunctionReward:
    """A plain function of captions and references as a scorer."""

    def __init__(self, name: str, function: Function, references: References, *_: object) -> None:
        self._name, self._function = name, function
        self._tokenised = cache(lambda video: [joined(text) for text in references[video]])

    def score(self, video_ids: Sequence[str], captions: Sequence[str], ended: Sequence[bool] | None = None) -> Floats:
        texts = [joined(caption) for caption in captions]
        scores = np.asarray(self._function(texts, [self._tokenised(video) for video in video_ids]), np.float64)
        if scores.shape != (len(texts),) or not np.isfinite(scores).all():
            fault = f"reward {self._name!r} returned scores of shape {scores.shape} for {len(texts)} captions"
            bad = int((~np.isfinite(scores)).sum())
            raise InputError(f"{fault}, {bad} of them not finite: return one finite number per caption")
        return scores


def answers(references: References, df: DocumentFrequencies, reader: Scorer | None) -> Scorer:
    """How much a caption helps `reader` answer the questions about its video; see `training.rollout`."""
    if reader is None:
        raise InputError("scst.reward: answers needs training questions; set data.task=mixed, or leave it out")
    return reader


Factory = Callable[[References, DocumentFrequencies, Scorer | None], Scorer]

REWARDS: dict[str, Factory] = {
    "cider": lambda references, df, reader: CiderD(references, df),
    "bleu": partial(FunctionReward, "bleu", lambda *texts: functions.bleu(functions.bleu_counts(*texts), order=4)),
    "repetition": partial(FunctionReward, "repetition", lambda *texts: -functions.repetition(*texts)),
    "bad_ending": partial(FunctionReward, "bad_ending", lambda *texts: -functions.bad_ending(*texts)),
    "answers": answers,
}


class MixedReward:
    """The weighted sum of several rewards: `weights` by name (see `find_reward`); weight 0 leaves one out."""

    def __init__(
        self,
        references: References,
        df: DocumentFrequencies,
        weights: Mapping[str, float] = {"cider": 1.0},
        reader: Scorer | None = None,
    ) -> None:
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self._scorers = {name: find_reward(name)(references, df, reader) for name in self.weights}

    def score(self, video_ids: Sequence[str], captions: Sequence[str], ended: Sequence[bool] | None = None) -> Floats:
        """Reward of each caption: [M]. Arguments and errors as for `CiderD.score`."""
        return self.total(self.terms(video_ids, captions, ended), len(captions))

    def terms(
        self, video_ids: Sequence[str], captions: Sequence[str], ended: Sequence[bool] | None = None
    ) -> dict[str, Floats]:
        """Each reward before its weight: name → [M]."""
        return {name: scorer.score(video_ids, captions, ended) for name, scorer in self._scorers.items()}

    def total(self, terms: Mapping[str, Floats], count: int) -> Floats:
        """The weighted sum of the terms of `count` captions: [M]."""
        return sum((self.weights[name] * values for name, values in terms.items()), np.zeros(count))


def find_reward(name: str) -> Factory:
    """The entry of REWARDS, or the user's own `package.module:function`. Raises InputError for any other name."""
    if name in REWARDS:
        return REWARDS[name]
    if ":" not in name:
        own = f"choose from {', '.join(REWARDS)}, or name your own as package.module:function"
        raise InputError(f"scst.reward: unknown reward {name!r}; {own}")
    function = load_own(name, "scst.reward")
    if not callable(function):
        raise InputError(f"scst.reward: {name!r} is a {type(function).__name__}; name a function")
    return partial(FunctionReward, name, function)
