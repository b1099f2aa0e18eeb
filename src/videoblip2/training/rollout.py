"""The samples of a self-critical training step, their reward, and the monitors that reveal a gamed reward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from videoblip2.captions import diversity
from videoblip2.captions.functions import Floats, repetition
from videoblip2.captions.rewards import MixedReward, Scorer
from videoblip2.captions.tokenizer import joined
from videoblip2.config import Config, InputError, WatchConfig
from videoblip2.data.annotations import Question
from videoblip2.model.decode import Decoded
from videoblip2.model.network import VideoBlip2
from videoblip2.training.distributed import World
from videoblip2.training.tasks import ANSWERS
from videoblip2.training.workspace import Workspace, no_cider, start_copy

#: The remedy for a number that is not finite.
NOT_FINITE = "lower optim.lr, use precision=fp32, or check these features with `vb2 features check`"
#: Used if `scst.log_prob_tolerance` is not set. In bf16 a logit of 20 is only accurate to 0.06.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.5}
#: Videos per step whose first sample goes into the table.
TABLE_VIDEOS = 4
#: Samples this close to the greedy caption never count as far behind (CIDEr-D, 0.1 = ten points).
NEAR_GREEDY = 0.1


@dataclass(frozen=True)
class Rollout:
    """B videos, K samples each: rewards and advantages [B,K], the greedy captions and their reward [B].

    mask: [B·K,T], the tokens in the loss. terms: the mean of each term of a mixed reward over the samples.
    """

    sampled: Decoded
    captions: list[str]
    greedy_captions: list[str]
    reward: Tensor
    greedy_reward: Tensor
    advantage: Tensor
    mask: Tensor
    terms: dict[str, float]

    def of(self, videos: slice) -> "Rollout":
        """The samples of some videos, for the loss; tokens stay as wide as in the whole batch."""
        count = self.advantage.shape[1]
        rows = slice(videos.start * count, videos.stop * count)
        sampled = replace(self.sampled, ids=self.sampled.ids[rows], log_probs=self.sampled.log_probs[rows])
        return replace(self, sampled=sampled, mask=self.mask[rows], advantage=self.advantage[videos])

    def metrics(self) -> dict[str, float | Tensor]:
        """Statistics of the samples: lengths in words and tokens, shares from 0 to 1, rewards in CIDEr scale."""
        words = diversity(self.captions)
        repeated = repetition([joined(caption) for caption in self.captions], ())
        return {
            "reward": self.reward.mean(),
            "reward_spread": self.reward.std(dim=1, correction=0).mean(),
            "greedy_reward": self.greedy_reward.mean(),
            "sample_minus_greedy": (self.reward.mean(dim=1) - self.greedy_reward).mean(),
            "zero_advantage": (self.advantage == 0).float().mean(),
            "ended": self.sampled.ended.float().mean(),
            "tokens": self.sampled.mask.sum(dim=1).float().mean(),
            "length": words["mean_length"],
            "bad_endings": words["bad_endings"],
            "distinct_1": words["distinct_1"],
            "distinct_2": words["distinct_2"],
            "repetition": float(repeated.mean()),
            **{f"reward/{name}": mean for name, mean in self.terms.items()},
        }

    def rows(self, video_ids: Sequence[str]) -> list[dict[str, object]]:
        """The first sample of the first few videos beside their greedy captions, with rewards."""
        return [
            {
                "video_id": video_id,
                "sampled": self.captions[place * self.reward.shape[1]],
                "reward": round(float(self.reward[place, 0]), 4),
                "greedy": self.greedy_captions[place],
                "greedy_reward": round(float(self.greedy_reward[place]), 4),
            }
            for place, video_id in enumerate(video_ids[:TABLE_VIDEOS])
        ]


def build_reward(work: Workspace, start: VideoBlip2 | None = None, videos: int | None = None) -> MixedReward:
    """Build the weighted sum of `scst.reward`, against the references that `scst.references` selects.

    Document frequencies always come from all training references.

    Args:
        start: the result of `start_copy`; it reads captions if `answers` is rewarded.
        videos: score only the first few; None = all.
    """
    references, weights = dict(islice(reward_references(work).items(), videos)), work.config.scst.reward.weights
    reader = CaptionReader.of(work, start) if start and "answers" in weights and ANSWERS.kind in work.train else None
    return MixedReward(references, work.document_frequencies, weights, reader)


def check_reward(work: Workspace) -> None:
    """Raise InputError if even human captions earn no reward, as with one training video."""
    some, reward = dict(islice(reward_references(work).items(), 50)), build_reward(work, start_copy(work), 50)
    if not reward.score(list(some), [texts[0] for texts in some.values()], [True] * len(some)).any():
        fault = f"{work.config.data.train}: {no_cider(work.all_references)}, so no sample would earn a reward"
        raise InputError(f"{fault}; add videos, or another term of scst.reward")


def reward_references(work: Workspace) -> dict[str, tuple[str, ...]]:
    """Reference captions by training video: those of the training file (`selected`) or all."""
    if work.config.scst.references == "all":
        return work.all_references
    return {video.video_id: video.captions for video in work.train_videos}


def rewards(
    scorer: Scorer, video_ids: Sequence[str], captions: Sequence[str], ended: Sequence[bool]
) -> tuple[Tensor, dict[str, Floats]]:
    """The reward of each caption [N] in float32 on the CPU, and its terms before weighting."""
    asked = list(video_ids), list(captions), list(ended)
    terms = scorer.terms(*asked) if isinstance(scorer, MixedReward) else {}
    scores = scorer.total(terms, len(captions)) if isinstance(scorer, MixedReward) else scorer.score(*asked)
    return torch.from_numpy(np.asarray(scores, dtype=np.float32)), terms


def gathered(decoded: Decoded, world: World, first: int, pad: int) -> Decoded:
    """The captions of all processes; log-probabilities only of this process, whose captions begin at `first`."""
    if world.size == 1:
        return decoded
    ids, ended = world.rows([decoded.ids.tolist(), decoded.ended.tolist()])
    width = max(map(len, ids))
    every = decoded.ids.new_tensor([row + [pad] * (width - len(row)) for row in ids])
    log_probs = decoded.log_probs.new_zeros(every.shape)
    log_probs[first : first + len(decoded.ids), : decoded.ids.shape[1]] = decoded.log_probs
    return replace(decoded, ids=every, ended=decoded.ended.new_tensor(ended), log_probs=log_probs)


def check_finite(video_ids: Sequence[str], states: Tensor) -> None:
    """Raise FloatingPointError that names the videos whose encoder states [B,S,E] are NaN or infinite."""
    bad = [video_ids[row] for row in (~states.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()]
    if bad:
        raise FloatingPointError(f"the encoder's states are not finite on videos {', '.join(bad)}; {NOT_FINITE}")


def check_same_policy(gap: float, config: Config) -> None:
    """Raise AssertionError if the two passes, without dropout, give a token different log-probabilities."""
    tolerance = config.scst.log_prob_tolerance or TOLERANCE[config.precision]
    if gap > tolerance and not config.scst.dropout:
        fault = f"the sampling and the gradient pass differ by {gap:.2g} nats at a token, more than {tolerance:g}"
        remedy = "they are not the same policy; use precision=fp32 or raise scst.log_prob_tolerance"
        raise AssertionError(f"scst: {fault}: {remedy}")


class BandMonitor:
    """Compares each interval's means with their bands and warns once when one leaves its band.

    Args:
        references: those of the training videos, the standard for lengths and bad endings.
    """

    def __init__(self, config: WatchConfig, references: Mapping[str, Sequence[str]]) -> None:
        words = diversity([caption for captions in references.values() for caption in captions])
        self._config, self._references = config, words
        self.start: dict[str, float] = {}
        self.outside: set[str] = set()

    def look(self, means: Mapping[str, float], step: int) -> dict[str, str]:
        """Warnings, by name, about monitors that just left their bands. The first call sets the start for later ones.

        Args:
            means: of an interval, by the names of `Rollout.metrics`.
        """
        self.start = self.start or {name: means[name] for name in WatchConfig.model_fields}
        left = {name: ends for name, ends in self.bands().items() if not ends[0] <= means[name] <= ends[1]}
        new, self.outside = left.keys() - self.outside, set(left)
        return {
            name: f"step {step}: {name} is {means[name]:.3g}, outside {low:.3g} to {high:.3g}"
            for name, (low, high) in left.items()
            if name in new
        }

    def bands(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of each monitor."""
        config, start, references = self._config, self.start, self._references
        shortest, longest = (factor * references["mean_length"] for factor in config.length)
        bad = max(start["bad_endings"], references["bad_endings"]) + config.bad_endings
        behind = config.sample_minus_greedy * min(start["sample_minus_greedy"], -NEAR_GREEDY)
        return {
            "length": (shortest, longest),
            "ended": (start["ended"] - config.ended, 1.0),
            "bad_endings": (0.0, bad),
            "distinct_2": (config.distinct_2 * start["distinct_2"], 1.0),
            "repetition": (0.0, start["repetition"] + config.repetition),
            "zero_advantage": (0.0, config.zero_advantage),
            "sample_minus_greedy": (behind, float("inf")),
        }


#: Questions per video, spread evenly; always the same ones, so that all captions of a video compete on equal terms.
MOST_QUESTIONS = 4


@dataclass(frozen=True)
class CaptionReader:
    """Scores a caption by how much it raises the probability of the right answers, averaged over the questions.

    The language model reads `{caption} question: … answer:` without any queries, so it sees and hears nothing.
    From -1 to 1; a caption of a video without questions earns 0.

    Args:
        questions: from the training split, by video.
    """

    work: Workspace
    model: VideoBlip2
    questions: Mapping[str, Sequence[Question]]

    @classmethod
    def of(cls, work: Workspace, model: VideoBlip2) -> "CaptionReader":
        """Raises InputError if no training video has a question."""
        asked: dict[str, list[Question]] = {video.video_id: [] for video in work.train_videos}
        for question in work.train[ANSWERS.kind]:
            if question.video_id in asked:
                asked[question.video_id].append(question)
        if not any(asked.values()):
            file, videos = ANSWERS.file(work.config.data, "train"), work.config.data.train
            raise InputError(f"{file}: no question on videos of {videos}; drop scst.reward.terms.answers")
        return cls(work, model, {video: own[:: -(-len(own) // MOST_QUESTIONS) or 1] for video, own in asked.items()})

    def score(self, video_ids: Sequence[str], captions: Sequence[str], ended: Sequence[bool] | None = None) -> Floats:
        """Gain of each caption over no caption, [M], from one forward pass."""
        own = list(zip(video_ids, captions, strict=True))
        texts = list(dict.fromkeys([*own, *((video, "") for video in video_ids)]))
        asked = [(text, question) for text in texts for question in self.questions.get(text[0], ())]
        if not asked:
            return np.zeros(len(own))
        prompts = [f"{caption} {question.prompt}".lstrip() for (_, caption), question in asked]
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
