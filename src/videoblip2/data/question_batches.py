"""Batches of questions with their answers, and the mixture of these with batches of captions."""

from collections.abc import Callable, Sequence

import numpy as np

from videoblip2.config import QUESTION_PROMPT, DataConfig, InputError
from videoblip2.data.dataset import Batch, FeatureSource, TextEncoder, collate
from videoblip2.data.questions import Question

#: Batch number `step`, as a pure function of (seed, step).
Batches = Callable[[int], Batch]


class QuestionBatches:
    """B questions a step, each the prompt of its own video, with one answer to teach: `question: … answer:`.

    The questions come in a new order each epoch; a batch is a pure function of (seed, step).
    """

    def __init__(
        self,
        questions: Sequence[Question],
        source: FeatureSource,
        text: TextEncoder,
        config: DataConfig,
        batch_size: int,
        seed: int,
        max_positions: int,
    ) -> None:
        if not questions:
            raise InputError(f"{config.annotations}/{config.train_qa}: no questions to train on")
        self.questions = list(questions)
        self.batch_size = batch_size
        self._source, self._text, self._config = source, text, config
        self._seed, self._max_positions = seed, max_positions
        self._orders: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> Batch:
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        chosen = [self.questions[self._index(place)] for place in places]
        return collate(
            [question.video_id for question in chosen],
            [self._source.features(question.video_id) for question in chosen],
            [question_prompt(question.question) for question in chosen],
            self._text,
            self._max_positions,
            self._text.labels([question.answer for question in chosen], self._config.max_caption_tokens),
        )

    def _index(self, place: int) -> int:
        epoch, position = divmod(place, len(self.questions))
        if epoch not in self._orders:
            order = np.random.default_rng([self._seed, 2, epoch]).permutation(len(self.questions))
            self._orders = {**{k: v for k, v in self._orders.items() if k == epoch - 1}, epoch: order}
        return int(self._orders[epoch][position])


def mixed(captions: Batches, questions: Batches, qa_share: float) -> Batches:
    """Whole steps of either kind, spread evenly: after s steps, ⌊s · qa_share⌋ have taught answers.

    Each kind counts its own steps, so that neither skips anything.
    """

    def batch(step: int) -> Batch:
        before, after = int(step * qa_share), int((step + 1) * qa_share)
        return questions(before) if after > before else captions(step - before)

    return batch


def question_prompt(question: str) -> str:
    """What both Q-Formers and T5 read beside the queries."""
    return QUESTION_PROMPT.format(question.strip())
