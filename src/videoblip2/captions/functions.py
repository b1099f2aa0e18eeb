"""The functions behind the tables of metrics and rewards: captions and their references in, numbers out.

N captions and N groups of references, tokenised (`tokenizer.joined`), give one number per caption, [N], unless a
docstring says otherwise.
"""

import importlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Texts = Sequence[str]
Groups = Sequence[Sequence[str]]
Floats = NDArray[np.float64]

#: Articles, prepositions and auxiliaries, after which another word must follow. Captions end on them when the reward
#: leaves out the end token (Rennie et al. 2017, appendix E).
BAD_ENDINGS = {
    *("a", "an", "the", "and", "is", "are", "am"),
    *("in", "for", "at", "of", "with", "before", "after", "on", "upon", "near", "to"),
}

_SAYS_LITTLE = """
's n't about above across against all along also another any around as away back be been being behind below beside
between both but by can could did do does doing done down during each every from get gets getting go goes going had
has have having he her here hers him himself his how i if into it its itself just like may me more most my no nor not
off one or other others our out over own same she should so some such than that their them themselves then there these
they this those through too toward towards under until up us very via was we were what when where which while who whom
whose why will within without would you your
"""
FUNCTION_WORDS = BAD_ENDINGS.union(_SAYS_LITTLE.split())  # all others are content words

_SMALL, _TINY = 1e-9, 1e-15  # pycocoevalcap's guards against division by zero


class OwnCorpusScore(NamedTuple):
    """Scores per caption, and a score of the whole set that is not their mean."""

    corpus: float
    each: Sequence[float]


def length(captions: Texts, references: Groups) -> Floats:
    """Words in each caption."""
    return np.array([len(caption.split()) for caption in captions], np.float64)


def bad_ending(captions: Texts, references: Groups) -> Floats:
    """1 if the last word is one of BAD_ENDINGS, else 0."""
    return np.array([caption.rpartition(" ")[2] in BAD_ENDINGS for caption in captions], np.float64)


def repetition(captions: Texts, references: Groups) -> Floats:
    """Share of a caption's bigrams that occur earlier in it: 0 (none) to almost 1."""
    pairs = [list(pairwise(caption.split())) for caption in captions]
    return np.array([1.0 - len(set(own)) / len(own) if own else 0.0 for own in pairs], np.float64)


def content_precision(captions: Texts, references: Groups) -> Floats:
    """Share of a caption's distinct content words that one of its references has; 0 for a caption without any."""
    pairs = zip(map(_content, captions), (_content(" ".join(group)) for group in references), strict=True)
    return np.array([len(own & theirs) / max(1, len(own)) for own, theirs in pairs], np.float64)


def content_recall(captions: Texts, references: Groups) -> Floats:
    """Share of a reference's distinct content words that the caption has, as the mean over its references."""
    pairs = zip(map(_content, captions), (list(map(_content, group)) for group in references), strict=True)
    shares = [[len(own & theirs) / max(1, len(theirs)) for theirs in group] for own, group in pairs]
    return np.array([sum(each) / max(1, len(each)) for each in shares], np.float64)


def _content(text: str) -> set[str]:
    return set(text.split()) - FUNCTION_WORDS


def distinct(captions: Texts, references: Groups, order: int) -> float:
    """One number: distinct n-grams over all n-grams of the whole set (Li et al. 2016)."""
    words = [caption.split() for caption in captions]
    grams = [gram for own in words for gram in zip(*(own[at:] for at in range(order)), strict=False)]
    return len(set(grams)) / max(1, len(grams))


def vocabulary(captions: Texts, references: Groups) -> float:
    """One number: distinct words of the whole set."""
    return float(len({word for caption in captions for word in caption.split()}))


def bleu_counts(captions: Texts, references: Groups) -> Floats:
    """Per caption [N,10]: its words, those of the nearest reference, possible and correct n-grams of orders 1 to 4.

    Neighbours that share one group object share the counting of its references.
    """
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    group, cooked, rows = None, None, []
    for caption, own in zip(captions, references, strict=True):
        if own is not group:
            group, cooked = own, cook_refs(own)
        counts = cook_test(caption, cooked)
        nearest = min((abs(other - counts["testlen"]), other) for other in counts["reflen"])[1]
        rows.append([counts["testlen"], nearest, *counts["guess"], *counts["correct"]])
    return np.array(rows, np.float64).reshape(-1, 10)


def bleu(counts: Floats, order: int) -> Floats:
    """BLEU of summed (or averaged) counts [...,10] → [...], as pycocoevalcap computes it."""
    precision = (counts[..., 6 : 6 + order] + _TINY) / (counts[..., 2 : 2 + order] + _SMALL)
    ratio = (counts[..., 0] + _TINY) / (counts[..., 1] + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    return np.asarray(precision.prod(axis=-1) ** (1.0 / order) * brevity)


def cider(captions: Texts, references: Groups) -> Floats:
    """pycocoevalcap's CIDEr-D, with document frequencies from these references."""
    return np.asarray(_pycocoevalcap("Cider", captions, references)[1])


def rouge(captions: Texts, references: Groups) -> Floats:
    """pycocoevalcap's ROUGE-L."""
    return np.asarray(_pycocoevalcap("Rouge", captions, references)[1])


def meteor(captions: Texts, references: Groups) -> OwnCorpusScore:
    """METEOR 1.5 by its Java process, which computes the corpus score from summed statistics."""
    corpus, each, scorer = _pycocoevalcap("Meteor", captions, references)
    for pipe in (scorer.meteor_p.stdout, scorer.meteor_p.stderr):  # it leaves these open
        pipe.close()
    return OwnCorpusScore(float(corpus), each)


def spice(captions: Texts, references: Groups) -> list[float]:
    """SPICE's F-score by its Java process."""
    return [score["All"]["f"] for score in _pycocoevalcap("Spice", captions, references)[1]]


def _pycocoevalcap(name: str, captions: Texts, references: Groups) -> tuple[float, Any, Any]:
    """The corpus score, the score of each caption, and the scorer; texts go by number, which keeps their order."""
    scorer = getattr(importlib.import_module(f"pycocoevalcap.{name.lower()}.{name.lower()}"), name)()
    asked = {number: [caption] for number, caption in enumerate(captions)}
    return *scorer.compute_score(dict(enumerate(references)), asked), scorer
