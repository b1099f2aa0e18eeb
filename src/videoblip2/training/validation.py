"""Validation by generated captions, and the best of a training."""

import math
from dataclasses import dataclass, field

from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.training.workspace import Workspace


@dataclass
class Best:
    """The best validation so far."""

    cider: float = -math.inf
    step: int = 0
    captions: dict[str, str] = field(default_factory=dict)


class Validator:
    """Greedy captions of the validation videos, and their CIDEr as pycocoevalcap computes it on that split."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self.references = {video.video_id: video.captions for video in work.val_videos}
        self._scorer = CiderD(self.references, DocumentFrequencies.from_references(self.references))

    def captions(self) -> dict[str, str]:
        work = self._work
        work.model.eval()
        with work.autocast():
            stream = work.captioner.caption_videos(list(self.references), work.features, work.config.decode)
            return {video_id: caption.text for video_id, caption in stream}

    def cider(self, captions: dict[str, str]) -> float:
        return float(self._scorer.score(list(captions), list(captions.values())).mean())
