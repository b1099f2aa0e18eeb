"""A reward from questions: a frozen network reads a caption in place of the video, and answers the video's questions.

Letters: N texts · T answer tokens · V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from videoblip2.captions.functions import Floats
from videoblip2.config import InputError
from videoblip2.data.annotations import Question
from videoblip2.data.batches import question_prompt
from videoblip2.model.network import VideoBlip2
from videoblip2.training.tasks import ANSWERS
from videoblip2.training.workspace import Workspace

#: Of each video, spread evenly over them; always the same, so that all captions of a video compete on equal terms.
MOST_QUESTIONS = 4


@dataclass(frozen=True)
class Reader:
    """Scores a caption by how much it raises the probability of the right answers, the mean over the questions.

    The language model reads `{caption} question: … answer:` by itself, without any query: it sees and hears nothing.
    From -1 to 1; a caption of a video without questions earns 0.

    Args:
        questions: those of the training split, by video.
    """

    work: Workspace
    model: VideoBlip2
    questions: Mapping[str, Sequence[Question]]

    @classmethod
    def of(cls, work: Workspace, model: VideoBlip2) -> "Reader":
        """Raises InputError if no training video has a question."""
        asked: dict[str, list[Question]] = {video.video_id: [] for video in work.train_videos}
        for question in work.train[ANSWERS.kind]:
            if question.video_id in asked:
                asked[question.video_id].append(question)
        if not any(asked.values()):
            file = ANSWERS.file(work.config.data, "train")
            raise InputError(f"{file}: asks about no video of {work.config.data.train}; leave scst.reward.answers out")
        return cls(work, model, {video: own[:: -(-len(own) // MOST_QUESTIONS) or 1] for video, own in asked.items()})

    def score(self, video_ids: Sequence[str], captions: Sequence[str], ended: Sequence[bool] | None = None) -> Floats:
        """Gain of each caption over no caption, [M], from one forward pass."""
        own = list(zip(video_ids, captions, strict=True))
        texts = list(dict.fromkeys([*own, *((video, "") for video in video_ids)]))
        asked = [(text, question) for text in texts for question in self.questions.get(text[0], ())]
        if not asked:
            return np.zeros(len(own))
        prompts = [f"{caption} {question_prompt(question.question)}".lstrip() for (_, caption), question in asked]
        right = self.probabilities(prompts, [question.answer for _, question in asked])
        means = dict.fromkeys(texts, 0.0)
        for (text, _), value in zip(asked, right, strict=True):
            means[text] += float(value) / len(self.questions[text[0]])
        return np.array([means[text] - means[text[0], ""] for text in own])

    @torch.no_grad()
    def probabilities(self, prompts: Sequence[str], answers: Sequence[str]) -> Floats:
        """The probability of each whole answer after its prompt: [N]."""
        pieces, text = self.work.tokenizers.prompts(prompts), self.model.text
        ids, mask = (pieces[name].to(self.model.device) for name in ("prompt_ids", "prompt_mask"))
        labels = self.work.tokenizers.labels(answers, self.work.config.data.max_caption_tokens).to(ids.device)
        with self.work.autocast():
            logits = text.decode(text.encode(text.embed(ids), mask), mask, labels)  # [N,T,V]
        nats = functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")  # 0 where padded
        return np.asarray((-nats.sum(dim=1)).exp().cpu().numpy(), np.float64)
