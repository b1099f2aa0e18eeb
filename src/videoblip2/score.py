"""`vb2 score`: score captions from any system against references in any published format."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoblip2.captions import METRICS
from videoblip2.data import caption_sources
from videoblip2.data.documents import VIDEO, Document, Paths, media_id, read_documents, value_of
from videoblip2.errors import InputError, some
from videoblip2.evaluate import Evaluation, evaluate
from videoblip2.tracking.compare import RunComparison, Side, compare_sides

CAPTION = (*caption_sources.CAPTION, "prediction", "pred")
WRAPPERS = ("predictions", "results", "result", "annotations", "captions")


@dataclass(frozen=True)
class ScoreReport:
    """The scores of one set of captions, or of two over the same videos.

    scores: of the captions and, if given, of the other set. comparison: intervals, and differences from the
    second set. unpredicted: videos that have references but are left out because a set has no caption for them.
    """

    scores: tuple[Evaluation, ...]
    comparison: RunComparison
    unpredicted: int

    @property
    def videos(self) -> int:
        return self.comparison.videos

    def interval(self, metric: str, place: int = 0) -> tuple[float, float] | None:
        """The 95 % interval of a corpus score; None for a metric of the whole set only.

        A corpus score that is not the mean over videos (METEOR) has the interval of that mean, moved to the score.
        """
        side = len(self.scores) - 1 - place  # the comparison's baseline comes first
        for score in self.comparison.scores:
            if score.metric.name == metric:
                found = score.values[side]
                shift = self.scores[place].corpus[metric] - found.value
                return found.low + shift, found.high + shift
        return None


def score_predictions(predictions: str | Path, references: Paths, against: str | Path | None = None) -> ScoreReport:
    """Score a file of captions with every metric that runs here, as `pycocoevalcap` does.

    Args:
        predictions: see `read_predictions`.
        references: files in every format that `vb2 data prepare` reads.
        against: a second file of captions, compared on the videos that both have.

    Raises InputError for an unreadable file and for captions of videos without references.
    """
    known = read_references(references)
    files = [predictions, *([against] if against is not None else [])]
    written = [read_predictions(file) for file in files]
    for file, captions in zip(files, written, strict=True):
        if unknown := [video for video in captions if video not in known]:
            few, remedy = some(unknown), "give the references of the same data set, with ids spelled the same"
            raise InputError(f"{file}: {len(unknown)} of {len(captions)} videos have no references: {few}; {remedy}")
    videos = [video for video in known if all(video in captions for captions in written)]
    if not videos:
        raise InputError(f"{' and '.join(map(str, files))}: no video in common; give captions of the same videos")
    groups = {video: known[video] for video in videos}
    every = [name for name, metric in METRICS.items() if metric.of == "captions"]
    scores = [evaluate({video: captions[video] for video in videos}, groups, every) for captions in written]
    rows = [{row.video_id: row for row in evaluation.caption_rows} for evaluation in scores]
    sides = [Side(str(file), (), (each,)) for file, each in zip(files, rows, strict=True)]
    return ScoreReport(tuple(scores), compare_sides("", sides[::-1], ()), len(known) - len(videos))


def read_references(paths: Paths) -> dict[str, tuple[str, ...]]:
    """Video id → its reference captions, in the files' order. Raises InputError for files without captions."""
    references: dict[str, tuple[str, ...]] = {}
    for document in read_documents(paths):
        for _, video in caption_sources.read_captions(document).videos:
            if video.captions:  # MSR-VTT 2017's test set has none
                references[video.video_id] = (*references.get(video.video_id, ()), *video.captions)
    if not references:
        raise InputError(f"{some([str(path) for path in paths])}: no captions found; give the references")
    return references


def read_predictions(path: str | Path) -> dict[str, str]:
    """Video id → caption.

    Reads COCO's and LAVIS's results (a list of `image_id` or `video_id`, `caption`), JSON lines, CSV and TSV with such
    columns, and JSON that maps an id to a caption or a list with one. Rows with an `error` and no caption are left out.
    Raises InputError for any other layout, several captions for one video, and a file without captions.
    """
    captions: dict[str, str] = {}
    for document in read_documents([path]):
        for where, video, caption in _predicted(document):
            if captions.setdefault(video, caption) != caption:
                raise InputError(f"{where}: a second caption for {video}; give one caption per video")
    if not captions:
        raise InputError(f"{path}: no captions found; give a list of video_id and caption")
    return captions


def _predicted(document: Document) -> Iterable[tuple[str, str, str]]:
    """(where, video id, caption) of each entry."""
    content = document.json if document.kind == "json" else None
    while isinstance(content, dict) and (inner := next((key for key in WRAPPERS if content.get(key)), None)):
        content = content[inner]
        document = Document(document.name, json.dumps(content).encode())
    for where, row in document.rows():
        if row.get("error") and not row.get("caption"):
            continue
        caption = value_of(where, row, CAPTION)
        if isinstance(caption, list) and len(caption) == 1:  # pycocoevalcap's own format
            caption = caption[0].get("caption") if isinstance(caption[0], dict) else caption[0]
        if not isinstance(caption, str):
            raise InputError(f"{where}: the caption is {str(caption)[:60]!r}, not text; give one caption per video")
        yield where, media_id(value_of(where, row, (*VIDEO, "path"))), caption


def record(report: ScoreReport, per_video: bool = False) -> dict[str, Any]:
    """The report as plain data, in pycocoevalcap's scale; "of" names what a difference is about."""
    own, *others = (
        {
            "metrics": scores.corpus,
            "intervals": {name: report.interval(name, place) for name in scores.corpus},
            **({"per_video": {row.video_id: row.scores for row in scores.caption_rows}} if per_video else {}),
        }
        for place, scores in enumerate(report.scores)
    )
    found: dict[str, Any] = {**own, "unavailable": report.scores[0].unavailable}
    found |= {"videos": report.videos, "unpredicted": report.unpredicted}
    for other in others:
        compared = [(score.metric, score.differences[0]) for score in report.comparison.scores]
        gaps = {metric.name: {**gap._asdict(), "of": metric.mean_label} for metric, gap in compared}
        found["against"] = {**other, "differences": gaps}
    return found
