"""Is the best trial better than the default? Measured on the validation videos, and corrected for having chosen it.

The best of k trials looks good partly because it was chosen for its score. Two corrections:

1. The paired bootstrap interval of best minus default has confidence 1 - 0.05 / (k - 1) (Bonferroni): among k - 1
   trials that are no better than the default, one lies outside by chance in 5 % of studies. `better` uses it.
2. `chosen_again`: videos are resampled, the best trial is chosen on them and evaluated on the videos left out
   (out-of-bag bootstrap), which is the gain that the choice brings on videos it has not seen.

Not covered: the variance between training seeds, as each trial is trained once. The test split is never read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial

from videoblip2.captions import paired_bootstrap
from videoblip2.captions.metrics import PRIMARY, label_of, shown, shown_interval
from videoblip2.tune.study import attributes, best_of, default_of, name_of

ALPHA = 0.05
RESAMPLES = 2000


@dataclass(frozen=True)
class Verdict:
    """Best minus default in pycocoevalcap's scale, its interval, and the gain on videos not used for the choice."""

    best: str
    default: str
    difference: float
    low: float
    high: float
    chosen_among: int
    chosen_again: float

    @property
    def better(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low > 0

    def text(self) -> str:
        """One line, with scores as they are printed."""
        if self.best == self.default:
            return f"no gain shown: the default is the best of {self.chosen_among} trials"
        gain = f"{shown_interval(PRIMARY, (self.difference, self.low, self.high))} {label_of(PRIMARY)} on val"
        head = f"better than the default by {gain}" if self.better else f"no gain shown: default + {gain}"
        again = f"chosen on resampled videos and evaluated on those left out: {shown(PRIMARY, self.chosen_again, '+')}"
        return f"{head} (interval for the best of {self.chosen_among}); {again}"


def judge(trials: Sequence[FrozenTrial]) -> Verdict | None:
    """The verdict over complete trials; None where the default or its scores are missing."""
    complete = [trial for trial in trials if trial.value is not None and attributes(trial).scores]
    default, best = default_of(complete), best_of(complete)
    if default is None or best is None:
        return None
    scores = {trial.number: np.asarray(attributes(trial).scores, np.float64) for trial in complete}
    confidence = 1 - ALPHA / max(1, len(complete) - 1)
    resamples = max(10_000, 400 * len(complete))
    result = paired_bootstrap(scores[best.number], scores[default.number], resamples, confidence=confidence)
    again = chosen_again(np.stack(list(scores.values())), list(scores).index(default.number))
    names = name_of(best), name_of(default)
    return Verdict(*names, result.difference, result.low, result.high, len(complete), again)


def chosen_again(scores: np.ndarray, default: int, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Mean gain over row `default` of the row chosen on resampled videos, on the videos left out: scores [K,N]."""
    count = scores.shape[1]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)  # [R,N]
    left_out = drawn == 0
    chosen = (scores @ drawn.T).argmax(axis=0)  # [R]
    sums = ((scores[chosen] - scores[default]) * left_out).sum(axis=1)
    sizes = left_out.sum(axis=1)
    return float((sums[sizes > 0] / sizes[sizes > 0]).mean()) if sizes.any() else 0.0
