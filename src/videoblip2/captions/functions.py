"""The functions behind the tables of metrics and rewards: captions and their references in, numbers out.

N captions and N groups of references, tokenized (`tokenizer.joined`), give one number per caption [N] by default.
"""

import importlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Texts = Sequence[str]
Groups = Sequence[Sequence[str]]
Floats = NDArray[np.float64]

#: Articles, prepositions and auxiliaries, after which another word must follow. Captions end on them if the reward
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
    """Share of a caption's distinct content words that occur in any reference; 0 if the caption has none."""
    pairs = zip(map(_content, captions), (_content(" ".join(group)) for group in references), strict=True)
    return np.array([len(own & theirs) / max(1, len(own)) for own, theirs in pairs], np.float64)


def content_recall(captions: Texts, references: Groups) -> Floats:
    """Share of a reference's distinct content words that occur in the caption, averaged over the references."""
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
    """Per caption [N,10]: its words, those of the closest reference, possible and correct n-grams of orders 1 to 4.

    Consecutive captions that share a group object share the counts of its references.
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
    for pipe in (scorer.meteor_p.stdout, scorer.meteor_p.stderr):  # the scorer leaves these open
        pipe.close()
    return OwnCorpusScore(float(corpus), each)


def spice(captions: Texts, references: Groups) -> list[float]:
    """SPICE's F-score by its Java process."""
    return [score["All"]["f"] for score in _pycocoevalcap("Spice", captions, references)[1]]


def _pycocoevalcap(name: str, captions: Texts, references: Groups) -> tuple[float, Any, Any]:
    """The corpus score, the score of each caption, and the scorer; texts are keyed by number, in order."""
    scorer = getattr(importlib.import_module(f"pycocoevalcap.{name.lower()}.{name.lower()}"), name)()
    candidates = {number: [caption] for number, caption in enumerate(captions)}
    return *scorer.compute_score(dict(enumerate(references)), candidates), scorer


# --- answers to open-ended questions: right if equal, both normalized as in VQA v2's `vqaEval.py` (Antol et al. 2015)
# without its contractions; types are the first words in MSRVTT-QA (Xu et al. 2017)

QUESTION_TYPES = ("what", "who", "how", "when", "where")
MAP_SIZE = 1500  # the usual number of answers that a classifier on MSRVTT-QA chooses from

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_APOSTROPHES = re.compile("['\u2019`]")
_PUNCTUATION = re.compile(r"[^\w\s]|_")


def normalise_answer(text: str) -> str:
    """ "The  man." → "man", "Two" → "2". An answer made only of articles is kept."""
    words = _PUNCTUATION.sub(" ", _APOSTROPHES.sub("", text.lower())).split()
    kept = [word for word in words if word not in ("a", "an", "the")] or words
    return " ".join(_DIGITS.get(word, word) for word in kept)


def question_type(question: str) -> str:
    """One of QUESTION_TYPES by the first word, or "other"."""
    first = re.match(r"\W*([^\W\d_]+)", question.lower())
    return first[1] if first and first[1] in QUESTION_TYPES else "other"


def exact_match(answers: Sequence[str], expected: Sequence[Sequence[str]]) -> list[float]:
    """1 if an answer equals one of its expected answers after normalization; else 0."""
    pairs = zip(answers, expected, strict=True)
    return [float(normalise_answer(given) in map(normalise_answer, true)) for given, true in pairs]


def answer_accuracy(
    questions: Sequence[str], answers: Sequence[str], expected: Sequence[str], answer_map: Collection[str] | None = None
) -> dict[str, float]:
    """Shares between 0 and 1: `accuracy`, and `accuracy_TYPE` for each type that occurs.

    With an answer map also `accuracy_in_map` (over the questions whose answer is in the map, which some papers report),
    `expected_in_map` (their share, an upper bound for a classifier) and `given_in_map` (share of the answers given).
    """
    right = exact_match(answers, [[answer] for answer in expected])
    kinds = [question_type(question) for question in questions]
    scores = {"accuracy": _mean(right)}
    for kind in (*QUESTION_TYPES, "other"):
        if kind in kinds:
            scores[f"accuracy_{kind}"] = _mean([hit for hit, own in zip(right, kinds, strict=True) if own == kind])
    if answer_map:
        known = {normalise_answer(answer) for answer in answer_map}
        inside = [normalise_answer(answer) in known for answer in expected]
        scores["accuracy_in_map"] = _mean([hit for hit, within in zip(right, inside, strict=True) if within])
        scores["expected_in_map"] = _mean(inside)
        scores["given_in_map"] = _mean([normalise_answer(answer) in known for answer in answers])
    return scores


def typed_answers(questions: Sequence[str], train_questions: Sequence[str], train_answers: Sequence[str]) -> list[str]:
    """The most frequent training answer to each question's type, or to all questions if training lacks this type.

    Ties go to the first.
    """
    pairs = zip(train_questions, train_answers, strict=True)
    common = _most_frequent((kind, answer) for q, answer in pairs for kind in (question_type(q), ""))
    return [common.get(question_type(q), common.get("", "")) for q in questions]


def blind_answers(questions: Sequence[str], train_questions: Sequence[str], train_answers: Sequence[str]) -> list[str]:
    """A baseline without video: the most frequent training answer to the same question, else to its type."""
    same = _most_frequent(zip(map(normalise_answer, train_questions), train_answers, strict=True))
    typed = typed_answers(questions, train_questions, train_answers)
    return [same.get(normalise_answer(q)) or other for q, other in zip(questions, typed, strict=True)]


def _most_frequent(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = {}
    for key, answer in pairs:
        counts.setdefault(key, Counter())[answer] += 1
    return {key: count.most_common(1)[0][0] for key, count in counts.items()}


def _mean(hits: Sequence[float]) -> float:
    return sum(hits) / len(hits) if hits else 0.0
