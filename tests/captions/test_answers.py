"""Answers: normalised as VQA does it, judged exactly, reported by question type."""

import pytest

from videoblip2.captions.functions import (
    answer_accuracy,
    blind_answers,
    normalise_answer,
    question_type,
    typed_answers,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Man.", "man"),
        ("two", "2"),
        ("2", "2"),
        ("none", "0"),
        ("an ice-cream", "ice cream"),
        ("a", "a"),
        ("man's", "mans"),
        ("don't", "dont"),
        ("", ""),
    ],
)
def test_normalisation(text, normal):
    assert normalise_answer(text) == normal


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("What is it?", "what"),
        ("who's there?", "who"),
        ("how many?", "how"),
        ('"where" is it', "where"),
        ("whatever", "other"),
        ("is it red?", "other"),
        ("", "other"),
    ],
)
def test_types_are_first_words(question, kind):
    assert question_type(question) == kind


QUESTIONS = ["what is it?", "what is red?", "who runs?", "is it late?"]
EXPECTED = ["dog", "ball", "man", "yes"]


def test_accuracy_overall_by_type_and_in_the_map():
    scores = answer_accuracy(QUESTIONS, ["A dog", "cat", "man", "no"], EXPECTED, {"dog": 0, "ball": 1, "no": 2})
    assert scores == {
        "accuracy": 0.5,
        "accuracy_what": 0.5,
        "accuracy_who": 1.0,
        "accuracy_other": 0.0,
        "accuracy_in_map": 0.5,  # dog and ball are in it; dog is right
        "expected_in_map": 0.5,
        "given_in_map": 0.5,
    }


def test_a_longer_answer_is_not_right_by_its_first_word():
    assert answer_accuracy(["what?"], ["dog house"], ["dog"])["accuracy"] == 0


def test_what_questions_alone_tell():
    train = ["what is it?", "what is it?", "what is there?", "who is it?", "what is there?", "what is there?"]
    answers = ["cat", "cat", "dog", "man", "dog", "dog"]
    assert typed_answers(["what is it?", "who?", "where?"], train, answers) == ["dog", "man", "dog"]
    assert blind_answers(["What is it", "what is new?", "who?", "is it?"], train, answers) == [
        "cat",
        "dog",
        "man",
        "dog",
    ]
