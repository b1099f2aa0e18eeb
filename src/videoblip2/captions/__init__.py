"""Text in, numbers out: tokenisation, CIDEr-D with frozen document frequencies, metrics, confidence. No torch."""

from videoblip2.captions.bootstrap import BootstrapResult, paired_bootstrap
from videoblip2.captions.cider import CiderD
from videoblip2.captions.consensus import leave_one_out, typical_caption
from videoblip2.captions.frequencies import DocumentFrequencies
from videoblip2.captions.metrics import CaptionMetrics, caption_metrics, diversity
from videoblip2.captions.rewards import MixedReward, RewardWeights
from videoblip2.captions.tokenizer import tokenize

__all__ = [
    "BootstrapResult",
    "CaptionMetrics",
    "CiderD",
    "DocumentFrequencies",
    "MixedReward",
    "RewardWeights",
    "caption_metrics",
    "diversity",
    "leave_one_out",
    "paired_bootstrap",
    "tokenize",
    "typical_caption",
]
