"""Is the tuned better than the default? On the validation videos, and honest about having chosen.

The best of k trials looks good partly because it was chosen for it. Two answers to that:

1. The paired bootstrap interval of best minus default has the confidence 1 - 0.05 / (k - 1) (Bonferroni): among k - 1
   others that are no better than the default, one ends outside by chance in 5 % of studies. `better` is its verdict.
2. `chosen_again`: videos are resampled, the best trial is chosen on them, and judged on the videos left out (out-of-bag
   bootstrap): the gain that the choice brings where it has not looked.

Left out: another seed of training could differ as well; both trials were trained once. The test split is never read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial

from videoblip2.captions import paired_bootstrap
from videoblip2.captions.metrics import PRIMARY, label_of, shown, shown_interval
from videoblip2.tune.study import best_of, name_of

ALPHA = 0.05
RESAMPLES = 2000


@dataclass(frozen=True)
class Verdict:
    """Best minus default in pycocoevalcap's scale, its interval, and the gain where the choice has not looked."""

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
        again = f"chosen on resampled videos and judged on those left out: {shown(PRIMARY, self.chosen_again, '+')}"
        return f"{head} (interval for the best of {self.chosen_among}); {again}"


def judge(trials: Sequence[FrozenTrial]) -> Verdict | None:
    """The verdict over complete trials; None where the default, or a trial's scores, are missing."""
    complete = [trial for trial in trials if trial.value is not None and trial.user_attrs.get("scores")]
    default = next((trial for trial in complete if trial.user_attrs.get("default")), None)
    best = best_of(complete)
    if default is None or best is None:
        return None
    scores = {trial.number: np.asarray(trial.user_attrs["scores"], np.float64) for trial in complete}
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
