"""The reward of a stage, made once from its configuration and data."""

from videoblip2.captions import MixedReward
from videoblip2.captions.rewards import find_reward
from videoblip2.config import Config
from videoblip2.training.workspace import Workspace


def check_reward(config: Config) -> None:
    """Raise InputError for a term of `scst.reward` that is no reward, before anything is loaded."""
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
