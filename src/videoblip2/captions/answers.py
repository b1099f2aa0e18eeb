"""Answers to open-ended questions: normalisation, and accuracy by question type as the field reports it.

An answer is correct if it equals the expected one, both normalised as in the VQA v2 evaluation (Antol et al. 2015,
`vqaEval.py`, without its contractions). Question types are the first words used in MSRVTT-QA (Xu et al. 2017).
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

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
    """1 if an answer equals one of its expected answers, both normalised; else 0."""
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


def common_answers(questions: Sequence[str], expected: Sequence[str]) -> dict[str, str]:
    """The most frequent answer to each question type, and to all questions under ""; ties go to the first."""
    kinds = [(kind, answer) for q, answer in zip(questions, expected, strict=True) for kind in (question_type(q), "")]
    return _most_frequent(kinds)


def blind_answers(questions: Sequence[str], train_questions: Sequence[str], train_answers: Sequence[str]) -> list[str]:
    """A baseline without video: the most frequent training answer to the same question, else to its type."""
    same = _most_frequent(zip(map(normalise_answer, train_questions), train_answers, strict=True))
    common = common_answers(train_questions, train_answers)
    return [same.get(normalise_answer(q)) or typed_answer(common, q) for q in questions]


def typed_answer(common: Mapping[str, str], question: str) -> str:
    """The common answer to a question's type, or to all questions if training has none of this type."""
    return common.get(question_type(question), common.get("", ""))


def _most_frequent(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """(key, answer) pairs → the most frequent answer of each key."""
    counts: dict[str, Counter[str]] = {}
    for key, answer in pairs:
        counts.setdefault(key, Counter())[answer] += 1
    return {key: count.most_common(1)[0][0] for key, count in counts.items()}


def _mean(hits: Sequence[float]) -> float:
    return sum(hits) / len(hits) if hits else 0.0
