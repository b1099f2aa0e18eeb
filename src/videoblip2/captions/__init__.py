"""Text in, numbers out: tokenization, CIDEr-D with frozen document frequencies, the tables of metrics and rewards."""

from videoblip2.captions.cider import CiderD, leave_one_out, typical_caption
from videoblip2.captions.frequencies import DocumentFrequencies
from videoblip2.captions.intervals import BootstrapResult, paired_bootstrap
from videoblip2.captions.metrics import METRICS, CaptionMetrics, Metric, caption_metrics, diversity
from videoblip2.captions.rewards import REWARDS, MixedReward
from videoblip2.captions.tokenizer import tokenize

__all__ = [
    "METRICS",
    "REWARDS",
    "BootstrapResult",
    "CaptionMetrics",
    "CiderD",
    "DocumentFrequencies",
    "Metric",
    "MixedReward",
    "caption_metrics",
    "diversity",
    "leave_one_out",
    "paired_bootstrap",
    "tokenize",
    "typical_caption",
]
