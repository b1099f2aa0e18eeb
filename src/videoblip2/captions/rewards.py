"""Mixed rewards for SCST: CIDEr-D and, off until given a weight, BLEU-4, a repetition and a bad-ending penalty.

reward = w_cider CIDEr-D + w_bleu BLEU-4 - w_repetition repetition - w_bad_ending bad_ending
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from videoblip2.captions.cider import CiderD
from videoblip2.captions.frequencies import DocumentFrequencies
from videoblip2.captions.tokenizer import words
from videoblip2.config import InputError

# Words on which no English caption ends well: words that wait for what they belong
# to. They are what a caption model stops on when its reward forgets the end token (Rennie et al. 2017, appendix E).
_ARTICLES = frozenset({"a", "an", "the"})
_PREPOSITIONS = frozenset({"in", "for", "at", "of", "with", "before", "after", "on", "upon", "near", "to", "and"})
_AUXILIARIES = frozenset({"is", "are", "am"})
BAD_ENDINGS = _ARTICLES | _PREPOSITIONS | _AUXILIARIES

Ngram = tuple[str, ...]


class RewardWeights(NamedTuple):
    """Weights of the terms; a term with weight 0 is not computed."""

    cider: float = 1.0
    bleu: float = 0.0
    repetition: float = 0.0
    bad_ending: float = 0.0


class MixedReward:
    """The weighted sum, with the signature of `CiderD`: made once, then scores batches."""

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        df: DocumentFrequencies,
        weights: RewardWeights = RewardWeights(),
    ) -> None:
        self._cider = CiderD(references, df)
        self._weights = weights
        self._references = {}
        if weights.bleu:
            self._references = {
                video: cook_bleu_references([words(text) for text in group]) for video, group in references.items()
            }

    def score(
        self, video_ids: Sequence[str], captions: Sequence[str], ended: Sequence[bool] | None = None
    ) -> NDArray[np.float64]:
        """Reward of each caption: [M]. Arguments and errors as of `CiderD.score`."""
        weights = self._weights
        rewards = weights.cider * self._cider.score(video_ids, captions, ended)
        if weights.bleu or weights.repetition or weights.bad_ending:
            for place, (video, caption) in enumerate(zip(video_ids, captions, strict=True)):
                rewards[place] += self._beside_cider(video, words(caption))
        return rewards

    def _beside_cider(self, video: str, tokens: Sequence[str]) -> float:
        weights, value = self._weights, 0.0
        if weights.bleu:
            value += weights.bleu * bleu4(tokens, self._references[video])
        if weights.repetition:
            value -= weights.repetition * repetition(tokens)
        if weights.bad_ending:
            value -= weights.bad_ending * bad_ending(tokens)
        return value


class BleuReferences(NamedTuple):
    """What BLEU needs of a video's references."""

    lengths: tuple[int, ...]
    counts: dict[Ngram, int]  # the largest count of each n-gram in one reference


def cook_bleu_references(references: Sequence[Sequence[str]]) -> BleuReferences:
    """Prepares tokenised references for `bleu4`."""
    if not references:
        raise InputError("BLEU-4 of a video without references: give at least one")
    largest: Counter[Ngram] = Counter()
    for tokens in references:
        largest |= _ngram_counts(tokens)
    return BleuReferences(tuple(len(tokens) for tokens in references), dict(largest))


def bleu4(tokens: Sequence[str], references: BleuReferences) -> float:
    """BLEU-4 of one caption in 0 to 1, with pycocoevalcap's smoothing (1e-15 / 1e-9) and closest reference length."""
    correct, guessed = [0.0] * 4, [max(0, len(tokens) - order) for order in range(4)]
    for gram, count in _ngram_counts(tokens).items():
        correct[len(gram) - 1] += min(count, references.counts.get(gram, 0))
    precision = math.prod((right + 1e-15) / (all_ + 1e-9) for right, all_ in zip(correct, guessed, strict=True))
    closest = min((abs(length - len(tokens)), length) for length in references.lengths)[1]
    ratio = (len(tokens) + 1e-15) / (closest + 1e-9)
    return precision**0.25 * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def repetition(tokens: Sequence[str]) -> float:
    """Share of the caption's bigrams that it has said before: 0 (none) to almost 1."""
    pairs = list(pairwise(tokens))
    return 1.0 - len(set(pairs)) / len(pairs) if pairs else 0.0


def bad_ending(tokens: Sequence[str]) -> float:
    """1.0 where the last token is one of BAD_ENDINGS, else 0.0."""
    return float(bool(tokens) and tokens[-1] in BAD_ENDINGS)


def _ngram_counts(tokens: Sequence[str]) -> Counter[Ngram]:
    return Counter(tuple(tokens[at : at + order]) for order in range(1, 5) for at in range(len(tokens) - order + 1))
