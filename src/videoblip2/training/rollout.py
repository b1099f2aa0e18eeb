"""What a step of self-critical training samples, and the reward of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from videoblip2.captions.rewards import MixedReward, Scorer, find_reward
from videoblip2.config import Config
from videoblip2.model.decode.decoded import Decoded
from videoblip2.training.workspace import Workspace


@dataclass(frozen=True)
class Rollout:
    """B videos, K samples each: rewards and advantages [B,K], the greedy captions and their reward [B].

    mask: [B·K,T], the tokens that the loss counts. terms: of a mixed reward, the mean of each over the samples.
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
        """What the loss needs of some videos' samples; tokens stay as wide as the whole batch's."""
        count = self.advantage.shape[1]
        rows = slice(videos.start * count, videos.stop * count)
        sampled = replace(self.sampled, ids=self.sampled.ids[rows], log_probs=self.sampled.log_probs[rows])
        return replace(self, sampled=sampled, mask=self.mask[rows], advantage=self.advantage[videos])


def check_reward(config: Config) -> None:
    """Raise InputError for a term of `scst.reward` that is not a reward, before anything is loaded."""
    for name in config.scst.reward.weights:
        find_reward(name)


def build_reward(work: Workspace) -> MixedReward:
    """The weighted sum that `scst.reward` describes, against the references that `scst.references` names.

    Document frequencies are those of the complete training references, whichever references score.
    """
    return MixedReward(reward_references(work), work.document_frequencies, work.config.scst.reward.weights)


def reward_references(work: Workspace) -> dict[str, tuple[str, ...]]:
    """Reference captions by training video: the training file's (`selected`) or every one (`all`)."""
    if work.config.scst.references == "all":
        return work.all_references
    return {video.video_id: video.captions for video in work.train_videos}


def rewards(
    scorer: Scorer, video_ids: Sequence[str], captions: Sequence[str], decoded: Decoded
) -> tuple[Tensor, dict[str, float]]:
    """The reward of each caption [N] in float32 on the CPU, and the means of several terms before their weights."""
    asked = list(video_ids), list(captions), decoded.ended.tolist()
    terms = scorer.terms(*asked) if isinstance(scorer, MixedReward) else {}
    scores = scorer.total(terms, len(captions)) if isinstance(scorer, MixedReward) else scorer.score(*asked)
    means = {name: float(values.mean()) for name, values in terms.items()} if len(terms) > 1 else {}
    return torch.from_numpy(np.asarray(scores, dtype=np.float32)), means


def check_finite(video_ids: Sequence[str], states: Tensor) -> None:
    """Raise FloatingPointError that names the videos whose encoder states [B,S,E] are NaN or infinite."""
    bad = [video_ids[row] for row in (~states.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()]
    if bad:
        raise FloatingPointError(
            f"the encoder's states are not finite on videos {', '.join(bad)}; "
            "lower optim.lr, use precision=fp32, or check these features with `vb2 features check`"
        )
