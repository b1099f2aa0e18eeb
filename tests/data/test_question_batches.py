"""Batches of questions: each its own prompt, all equally often; and their mixture with captions."""

from collections import Counter

import torch
from tiny_training import Features

from videoblip2.config import DataConfig
from videoblip2.data.annotations import Question
from videoblip2.data.batches import BatchMaker, mixed
from videoblip2.training.tasks import ANSWERS

QUESTIONS = [
    Question(str(n), f"video{n % 3}", f"a red circle {'moves ' * n}?", f"{'a ' * (n % 2)}dog") for n in range(7)
]


def batches(tokenizers, questions=QUESTIONS, seed=0):
    return ANSWERS.batches(questions, BatchMaker(Features(), tokenizers, DataConfig(), 3, seed, max_positions=10))


def test_a_batch_is_questions_as_prompts_and_answers_as_labels(tokenizers):
    batch = batches(tokenizers)(0)
    again = batches(tokenizers)(0)
    assert batch.video_ids == again.video_ids and torch.equal(batch.labels, again.labels)
    assert batches(tokenizers, seed=1)(0).video_ids != batch.video_ids
    texts = tokenizers.texts(batch.prompt_ids)
    words = tokenizers.bert.batch_decode(batch.qformer_ids, skip_special_tokens=True)
    for video, text, word, answer in zip(batch.video_ids, texts, words, tokenizers.texts(batch.labels), strict=True):
        number = text.count("moves")
        assert word.count("moves") == number and "circle" in word
        assert video == QUESTIONS[number].video_id and answer == QUESTIONS[number].answer


def test_every_question_once_an_epoch(tokenizers):
    source = batches(tokenizers)
    seen = Counter(text for step in range(7) for text in tokenizers.texts(source(step).prompt_ids))
    assert len(seen) == 7 and set(seen.values()) == {3}


def test_a_mixture_is_whole_steps_in_proportion_and_skips_nothing():
    captions, questions = (lambda step: ("caption", step)), (lambda step: ("question", step))
    batch = mixed(captions, questions, 0.3)
    steps = [batch(step) for step in range(20)]
    assert [number for kind, number in steps if kind == "question"] == list(range(6))
    assert [number for kind, number in steps if kind == "caption"] == list(range(14))
    assert all(sum(kind == "question" for kind, _ in steps[:n]) == int(0.3 * n) for n in range(1, 21))


def test_the_prompt():
    assert Question("0", "video0", " what is it? ", "").prompt == "question: what is it? answer:"
