"""Both sides of the gate: their models on the frozen validation videos, captions and latency, taken in turn."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoblip2.captions import caption_metrics, typical_caption
from videoblip2.captions.metrics import PRIMARY, default_metrics
from videoblip2.config import Config
from videoblip2.data.annotations import read_annotations
from videoblip2.evaluate import Evaluation, evaluate
from videoblip2.features.store import FeatureStore, digest
from videoblip2.predict import OpenModel, open_model
from videoblip2.progress import Progress

SPLIT = "val.json"  # promotion reads the validation split; the test split is for the final number only


@dataclass(frozen=True)
class Manifest:
    """What a score was made on: the validation videos, their references and their features, as digests."""

    size: int
    videos: str
    references: str
    features: str

    @property
    def digest(self) -> str:
        return _sha({"videos": self.videos, "references": self.references, "features": self.features})

    def differs(self, other: "Manifest", same_features: bool = True) -> str:
        """What differs, in words; empty where nothing does that counts."""
        if self.videos != other.videos:
            return f"other videos ({self.size} and {other.size})"
        if self.references != other.references:
            return "other references"
        return "other features" if same_features and self.features != other.features else ""


@dataclass(frozen=True)
class Contender:
    """A model with the validation videos of its own configuration."""

    label: str
    model: OpenModel
    references: dict[str, Sequence[str]]
    manifest: Manifest

    @property
    def config(self) -> Config:
        return self.model.config

    @property
    def paths(self) -> str:
        """Where its validation videos come from, for an error."""
        return f"data.annotations={self.config.data.annotations} data.features={self.config.data.features}"

    def caption(self, video_ids: Sequence[str]) -> dict[str, str]:
        """Captions of a few videos, decoded as its own configuration says."""
        stream = self.model.captioner.caption_videos(video_ids, self.model.store, self.config.decode)
        return {video_id: caption.text for video_id, caption in stream}


def open_contender(model: str, label: str, overrides: Sequence[str] = ()) -> Contender:
    """Load MODEL and read its validation data. Raises InputError where the model or its data cannot be used.

    Args:
        overrides: `key=value` on the configuration of its checkpoint, such as data.annotations=DIR.
    """
    opened = open_model(model, overrides)
    references: dict[str, Sequence[str]] = {video.video_id: video.captions for video in opened.videos(SPLIT)}
    return Contender(label, opened, references, freeze(references, opened.store))


def freeze(references: Mapping[str, Sequence[str]], store: FeatureStore) -> Manifest:
    """Digest videos (in no order), references (in order) and features."""
    ids = sorted(references)
    texts = {video_id: list(references[video_id]) for video_id in ids}
    return Manifest(len(ids), _sha(ids), _sha(texts), digest(store, ids))


def caption_in_turn(contenders: Sequence[Contender], progress: Progress) -> list[dict[str, str]]:
    """Each contender's captions of all videos; batch by batch in turn, so that both meet the machine as it is."""
    captions: list[dict[str, str]] = [{} for _ in contenders]
    ids = list(contenders[0].references)
    size = contenders[0].config.decode.batch_size
    batches = [ids[start : start + size] for start in range(0, len(ids), size)]
    jobs = [(number, batch) for batch in batches for number in range(len(contenders))]
    for number, batch in progress(jobs, len(jobs), "caption val, in turn"):
        captions[number] |= contenders[number].caption(batch)
    return captions


def time_in_turn(one: Contender, other: Contender, videos: int, progress: Progress) -> list[tuple[float, float]]:
    """(one, other): seconds for each of the first videos alone; who begins changes, and the first pair is a warm-up."""
    ids = list(one.references)[:videos]
    pairs = [_time_pair(one, other, video_id, n % 2 == 1) for n, video_id in _counted(progress, [ids[0], *ids])]
    return pairs[1:]


def _counted(progress: Progress, ids: list[str]) -> Iterator[tuple[int, str]]:
    timed: Iterable[Any] = progress(ids, len(ids), "latency, in turn")
    return enumerate(timed)


def _time_pair(one: Contender, other: Contender, video_id: str, swap: bool) -> tuple[float, float]:
    seconds = {}
    for contender in (other, one) if swap else (one, other):
        start = time.perf_counter()
        contender.caption([video_id])
        seconds[contender.label] = time.perf_counter() - start
    return seconds[one.label], seconds[other.label]


def score(captions: Mapping[str, str], references: Mapping[str, Sequence[str]], metric: str = PRIMARY) -> Evaluation:
    """The default metrics that need no Java, and `metric`, by video and for the split."""
    return evaluate(captions, references, list(dict.fromkeys([*default_metrics(fast=True), metric])))


def mean_scores(
    metrics: Sequence[str], sides: Sequence[Mapping[str, str]], references: Mapping[str, Sequence[str]]
) -> dict[str, tuple[float, float] | str]:
    """Metric → the mean of the videos' scores for each of two sides, or why it could not be measured.

    Both sides go through one Java process, whose start takes longer than its work; so METEOR is the mean over videos,
    which differs from its corpus score.
    """
    if not metrics:
        return {}
    captions = {f"{n}/{video}": text for n, side in enumerate(sides) for video, text in side.items()}
    own = {key: references[key.partition("/")[2]] for key in captions}
    result = caption_metrics(own, captions, metrics)
    means: dict[str, tuple[float, float] | str] = dict(result.unavailable)
    for name in result.corpus:
        one, other = (sum(result.per_video[f"{n}/{video}"][name] for video in s) / len(s) for n, s in enumerate(sides))
        means[name] = one, other
    return means


def trivial_captions(contender: Contender) -> dict[str, str]:
    """The most typical training caption, said of every validation video."""
    config = contender.config
    train = read_annotations(Path(config.data.annotations) / config.scst.all_references)
    same = typical_caption({video.video_id: video.captions for video in train})
    return dict.fromkeys(contender.references, same)


def _sha(content: object) -> str:
    text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
