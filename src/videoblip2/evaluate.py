"""Captions of a split against its references: corpus metrics, per-video scores, a predictions file."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from videoblip2.captions import caption_metrics, diversity
from videoblip2.config import InputError

#: What CIDEr, BLEU and ROUGE need nothing for; METEOR and SPICE need Java.
FAST_METRICS = ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L")
ALL_METRICS = (*FAST_METRICS, "METEOR")


@dataclass(frozen=True)
class Evaluation:
    """corpus: metric → score in pycocoevalcap's scale. per_video: id → metric → score. unavailable: metric → reason."""

    corpus: dict[str, float]
    per_video: dict[str, dict[str, float]]
    unavailable: dict[str, str]
    captions: dict[str, str]
    references: dict[str, Sequence[str]]

    def rows(self) -> list[dict[str, object]]:
        """One row a video for tables and files, `video_id` first."""
        return [
            {
                "video_id": video_id,
                "caption": caption,
                **{name: round(score, 4) for name, score in self.per_video[video_id].items() if name == "CIDEr"},
                "reference": self.references[video_id][0],
            }
            for video_id, caption in self.captions.items()
        ]


def evaluate(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], metrics: Sequence[str] = ALL_METRICS
) -> Evaluation:
    """Score one caption a video against that video's references."""
    missing = sorted(set(references) - set(captions))
    if missing:
        raise InputError(
            f"video {missing[0]}: has references but no caption ({len(missing)} such); caption every video"
        )
    result = caption_metrics(references, captions, list(metrics))
    corpus = {**result.corpus, **diversity(captions)}
    return Evaluation(corpus, result.per_video, result.unavailable, dict(captions), dict(references))


def write_predictions(path: Path, evaluation: Evaluation, categories: Mapping[str, int] | None = None) -> None:
    """One JSON line a video: video_id, caption, all its scores, references, and its category where that is given."""
    lines = [
        json.dumps(
            {
                "video_id": video_id,
                "caption": caption,
                "scores": evaluation.per_video[video_id],
                "references": list(evaluation.references[video_id]),
                **({"category": categories[video_id]} if categories else {}),
            },
            ensure_ascii=False,
        )
        for video_id, caption in evaluation.captions.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(draft, path)
