"""The reward from questions: by hand, in a run, and where it is refused."""

from math import exp
from types import SimpleNamespace

import pytest
import torch
from small_stage import config, stages
from tiny_training import VIDEOS, workspace
from torch.nn import functional

from videoblip2.config import InputError
from videoblip2.data.annotations import Question
from videoblip2.tracking.mlflow.store import connect
from videoblip2.training.rollout import MOST_QUESTIONS, CaptionReader
from videoblip2.training.stage import open_stage, run_stage

LIKELIER = 3.0  # nats


class Copier:
    """A language model to which every piece that it reads is likelier by 3 nats than any other."""

    def __init__(self, pieces):
        self.pieces, self.calls = pieces, 0

    def embed(self, ids):
        return ids

    def encode(self, embeddings, mask):
        self.calls += 1
        return embeddings * mask

    def decode(self, states, mask, labels):
        read = functional.one_hot(states, self.pieces).amax(dim=1)  # [N,V]
        read[:, 0] = 0  # padding
        return LIKELIER * read[:, None].expand(-1, labels.shape[1], -1).float()


@pytest.fixture
def work(tiny_model, tokenizers):
    """A mixture with two questions on video0 and none on the other videos."""
    work = workspace(tiny_model, tokenizers, "data.task=mixed")
    asked = [Question(str(n), "video0", "is it?", answer) for n, answer in enumerate(("circle", "red"))]
    work.train = {**work.train, "answers": asked}
    return work


def reader(work):
    copier = Copier(len(work.tokenizers.text))
    return CaptionReader.of(work, SimpleNamespace(text=copier, device=torch.device("cpu"))), copier


def test_a_caption_that_holds_the_answers_earns_more(work):
    judge, copier = reader(work)
    captions = ["a red circle", "a circle", "a dog", "", "a red circle"]
    both, one, neither, none, elsewhere = judge.score(["video0"] * 4 + ["video3"], captions)
    assert both > one > 0 > neither and none == 0 == elsewhere  # the dog's words make the answers less likely
    assert copier.calls == 1


def test_the_reward_is_the_mean_rise_in_the_probability_of_whole_answers(work):
    judge, _ = reader(work)
    pieces = work.tokenizers.pieces

    def right(text, answer):
        """By hand: each piece of the answer is among those read, or is not."""
        read = set(pieces([text])[0])
        total = exp(LIKELIER) * len(read) + len(work.tokenizers.text) - len(read)
        probability = 1.0
        for piece in pieces([answer])[0]:
            probability *= (exp(LIKELIER) if piece in read else 1.0) / total
        return probability

    bare, told = "question: is it? answer:", "a red dog question: is it? answer:"
    expected = sum(right(told, answer) - right(bare, answer) for answer in ("circle", "red")) / 2
    assert judge.score(["video0"], ["a red dog"]) == pytest.approx([expected], rel=1e-4)


def test_few_questions_are_asked_of_each_video_and_always_the_same(work):
    many = [Question(str(n), "video1", f"{n} is it?", "a") for n in range(11)]
    work.train["answers"] += [*many, Question("x", "video99", "is it?", "a")]
    asked = {video: [q.question_id for q in own] for video, own in reader(work)[0].questions.items()}
    expected = {video: [] for video in VIDEOS} | {"video0": ["0", "1"], "video1": ["0", "3", "6", "9"]}
    assert asked == expected
    assert len(asked["video1"]) == MOST_QUESTIONS


def test_a_run_is_rewarded_for_answers_and_judged_by_both_tasks(monkeypatch):
    made = stages(monkeypatch)
    keys = [f"train.start_from={made.ce.checkpoint}", "data.task=mixed", "train.steps=2", "train.log_every=1"]
    ready = config(made.root, "asked", *keys, "scst.reward.terms={answers: 2.0}")
    assert open_stage("scst", ready).work.captions_only
    found = connect().get_run(run_stage("scst", ready).run_id).data.metrics
    assert found["train/reward"] == pytest.approx(found["train/reward/cider"] + 2 * found["train/reward/answers"])
    assert found["train/reward/answers"] != 0 and {"val/CIDEr", "val/accuracy"} <= found.keys()


def test_without_questions_the_reward_is_refused(monkeypatch, work):
    made = stages(monkeypatch)
    ready = config(made.root, "x", f"train.start_from={made.ce.checkpoint}", "scst.reward.terms={answers: 1}")
    with pytest.raises(InputError, match=r"scst.reward: answers needs training questions; set data.task=mixed"):
        run_stage("scst", ready)
    work.train["answers"] = [Question("x", "video99", "is it?", "a")]
    with pytest.raises(InputError, match=r"no question on videos of train.json; drop scst.reward.terms.answers"):
        reader(work)
