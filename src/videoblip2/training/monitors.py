"""What shows whether self-critical training goes well or cheats its reward, and the bands it should stay in."""

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor

from videoblip2.captions import diversity
from videoblip2.captions.functions import repetition
from videoblip2.captions.tokenizer import joined
from videoblip2.config import Config, WatchConfig
from videoblip2.training.rollout import Rollout

#: Where `scst.log_prob_tolerance` is left out. In bf16 a logit of 20 is known to 0.06 only.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.5}
#: Videos of a step whose first sample goes into the table.
TABLE_VIDEOS = 4
#: Samples this near to the greedy caption are never called far behind (CIDEr-D, 0.1 = ten points).
NEAR_GREEDY = 0.1

log = logging.getLogger(__name__)


def check_same_policy(gap: Tensor, config: Config) -> None:
    """Raise AssertionError where both passes, without dropout, give a token different log-probabilities."""
    if config.scst.dropout:
        return
    tolerance = config.scst.log_prob_tolerance or TOLERANCE[config.precision]
    if float(gap) > tolerance:
        raise AssertionError(
            f"scst: the sampling and the gradient pass differ by {float(gap):.2g} nats at a token, more than "
            f"{tolerance:g}: they are not one policy; use precision=fp32 or raise scst.log_prob_tolerance"
        )


def rollout_metrics(rollout: Rollout) -> dict[str, float | Tensor]:
    """Rewards and words of B·K samples: lengths in words and tokens, shares from 0 to 1, rewards in CIDEr scale."""
    words = diversity(rollout.captions)
    repeated = repetition([joined(caption) for caption in rollout.captions], ())
    return {
        "reward": rollout.reward.mean(),
        "reward_spread": rollout.reward.std(dim=1, correction=0).mean(),
        "greedy_reward": rollout.greedy_reward.mean(),
        "sample_minus_greedy": (rollout.reward.mean(dim=1) - rollout.greedy_reward).mean(),
        "zero_advantage": (rollout.advantage == 0).float().mean(),
        "ended": rollout.sampled.ended.float().mean(),
        "tokens": rollout.sampled.mask.sum(dim=1).float().mean(),
        "length": words["mean_length"],
        "bad_endings": words["bad_endings"],
        "distinct_1": words["distinct_1"],
        "distinct_2": words["distinct_2"],
        "repetition": float(repeated.mean()),
        **{f"reward/{name}": mean for name, mean in rollout.terms.items()},
    }


def sample_rows(video_ids: Sequence[str], rollout: Rollout) -> list[dict[str, object]]:
    """The first sample of the first few videos beside their greedy captions, with rewards."""
    return [
        {
            "video_id": video_id,
            "sampled": rollout.captions[place * rollout.reward.shape[1]],
            "reward": round(float(rollout.reward[place, 0]), 4),
            "greedy": rollout.greedy_captions[place],
            "greedy_reward": round(float(rollout.greedy_reward[place]), 4),
        }
        for place, video_id in enumerate(video_ids[:TABLE_VIDEOS])
    ]


class BandMonitor:
    """Compares each interval's means with their bands and warns once when one is left.

    Args:
        references: of the training videos; lengths and bad endings are compared with theirs.
    """

    def __init__(self, config: WatchConfig, references: Mapping[str, Sequence[str]]) -> None:
        words = diversity([caption for captions in references.values() for caption in captions])
        self._config, self._references = config, words
        self.start: dict[str, float] = {}
        self.outside: set[str] = set()

    def look(self, means: Mapping[str, float], step: int) -> list[str]:
        """Warnings about what has just left its band; the first look is the start that later ones are compared with.

        Args:
            means: an interval's, by the names of `rollout_metrics`.
        """
        self.start = self.start or {name: means[name] for name in NAMES}
        warnings, outside = [], set()
        for name, (low, high) in self.bands().items():
            if low <= means[name] <= high:
                continue
            outside.add(name)
            if name not in self.outside:
                warnings.append(f"step {step}: {name} is {means[name]:.3g}, outside {low:.3g} to {high:.3g}")
        self.outside = outside
        return warnings

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


NAMES = ("length", "ended", "bad_endings", "distinct_2", "repetition", "zero_advantage", "sample_minus_greedy")


def warn(line: str) -> None:
    """Say one warning on standard error, or where logging is set up to go."""
    log.warning("warning: %s", line)
