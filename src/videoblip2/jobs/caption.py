"""A captioning job: decode, encode and caption videos at the same time, in batches that span videos.

Threads decode and encode, as in `vb2 features extract`, while the calling thread captions one batch. The rows of a
video are yielded together once all are complete.
"""

import gc
import math
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoblip2.config import GREEDY, Decoding
from videoblip2.errors import InputError, first_line
from videoblip2.features.sources import VideoSource, keepable
from videoblip2.files import printable
from videoblip2.jobs.forms import Row
from videoblip2.jobs.segments import Segment, ShotWatch, cut, merged
from videoblip2.modality import Features

if TYPE_CHECKING:
    from videoblip2.captioner import Captioner
    from videoblip2.features.engines import VideoOutcome


LINGER = 4.0  # seconds that a caption waits for others to fill its batch: alone, it costs several times as much


@dataclass(frozen=True)
class CaptionOptions:
    """What to do with each video.

    questions: to answer instead of captioning. samples: captions to draw per video, if `decoding` samples. segments:
    None = the whole video; a number = seconds per segment; "scenes" = one segment per shot. batch_size: captions
    decoded together. workers: decoding threads; None = one per core, at most 8. explain: also measure how much each
    word depends on the sound and on the picture.
    """

    decoding: Decoding = GREEDY
    prompt: str | None = None
    questions: tuple[str, ...] = ()
    samples: int = 1
    segments: float | str | None = None
    batch_size: int = 16
    workers: int | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        if blank := [question for question in self.questions if not question.strip()]:
            raise InputError(f"question {blank[0]!r}: is empty; ask something")
        if self.samples > 1 and self.decoding.consensus:
            raise InputError(f"--samples {self.samples}: consensus gives one caption; drop --samples or --consensus")
        if self.samples > 1 and not self.decoding.sampled:
            raise InputError(f"--samples {self.samples}: greedy and beam decoding give one caption; sample instead")
        if self.segments not in (None, "scenes") and (isinstance(self.segments, str) or not self.segments > 0):
            raise InputError(f"--segments {self.segments}: give a number of seconds, or scenes")

    def __str__(self) -> str:
        """What differs from the greedy caption, as recorded in rows; the same for all runs of one job."""
        decoding, beams = self.decoding, self.decoding.num_beams > 1
        options = {
            "beams": decoding.num_beams if beams else None,
            "length_penalty": decoding.length_penalty if beams and decoding.length_penalty != 1 else None,
            "max_new_tokens": decoding.max_new_tokens if decoding.max_new_tokens != GREEDY.max_new_tokens else None,
            "consensus": decoding.consensus or None,
            "temperature": decoding.temperature if decoding.sampled or decoding.consensus else None,
            "prompt": self.prompt,
            "samples": self.samples if self.samples > 1 else None,
            "segments": self.segments,
            "questions": sha256("\n".join(self.questions).encode()).hexdigest()[:8] if self.questions else None,
            "explain": self.explain or None,
        }
        return " ".join(f"{name}={value}" for name, value in options.items() if value is not None)


@dataclass(frozen=True)
class DecodeItem:
    """One text to decode: its row without the text, and its input."""

    row: Row
    features: Features
    rows: list[Row]  # the video's complete rows, shared by its items
    count: int  # how many rows the video will have


@dataclass(frozen=True)
class JobPlan:
    """A job before its model is loaded, which can be sent to another process.

    store: a feature store whose ids are the sources. keep_features: a store to write features to; shards share it.
    """

    model: str = ""
    options: CaptionOptions = field(default_factory=CaptionOptions)
    encoders: Mapping[str, str | None] = field(default_factory=dict)
    store: Path | None = None
    keep_features: Path | None = None
    shard: tuple[int, int] | None = None

    @cached_property
    def version(self) -> str:
        """The model's version; for a folder, with a digest, since its name does not identify its weights."""
        from videoblip2.predict import find_model

        found, digest = find_model(self.model), sha256()
        if found.version != found.folder.name:
            return found.version
        for path in sorted(found.folder.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(file_digest(file, "sha256").digest())
        return f"{found.version}-{digest.hexdigest()[:8]}"

    def open(self) -> "CaptionJob":
        """Load the model. Raises InputError for questions if it was never trained on any."""
        gc.disable()  # loading leaves no garbage, and collection takes a sixth of the startup time
        try:
            from videoblip2.imports import threads_of_torch
            from videoblip2.predict import load_captioner

            with threads_of_torch(1):  # for such small operations, several threads are slower if a core is busy
                captioner = load_captioner(self.model, encoders=self.encoders)
                captioner.version = self.version
                if self.options.questions and captioner.never_asked:
                    remedy = "ask a model trained with data.task=qa or data.task=mixed"
                    raise InputError(f"{self.model}: was never trained on questions; {remedy}")
                if self.store is None:
                    captioner.load_media_encoders()
            return CaptionJob(captioner, self)
        finally:
            gc.enable()


@dataclass
class CaptionJob:
    """Captions videos with one model."""

    captioner: "Captioner"
    plan: JobPlan = JobPlan()

    @property
    def options(self) -> CaptionOptions:
        return self.plan.options

    def run(self, sources: Sequence[VideoSource], done: Mapping[str, str]) -> Generator[list[Row], None, None]:
        """Yield the rows of each video once all are complete; a bad video yields a row with an error.

        Args:
            done: path → sha256 of the files that an earlier run captioned; unchanged ones yield [].
        """
        size, waiting, due = self.options.batch_size, list[DecodeItem](), 0.0
        with closing(self._outcomes(sources, done)) as ready:
            for outcomes in ready:  # videos encoded during the last batch
                for outcome in outcomes:
                    if outcome.features is not None:
                        due = due if waiting else time.monotonic() + LINGER
                        waiting += self._items(outcome)
                    else:
                        yield [self._row(outcome, error=printable(outcome.failure))] if outcome.failure else []
                while len(waiting) >= size or (waiting and (not outcomes or time.monotonic() >= due)):
                    batch, waiting = waiting[:size], waiting[size:]
                    yield from self._decode(batch)
                    due = time.monotonic() + LINGER

    def _outcomes(
        self, sources: Sequence[VideoSource], done: Mapping[str, str]
    ) -> Generator[list["VideoOutcome"], None, None]:
        """Outcomes of the sources as they become ready; one that is done has neither features nor a failure.

        Yields [] if none is ready for `LINGER` seconds, and last.
        """
        from videoblip2.features.engines import VideoOutcome, overlapped

        sources = keepable(sources) if self.plan.keep_features is not None else sources
        yield [VideoOutcome(source.path, failure=printable(source.error)) for source in sources if source.error]
        good = [source for source in sources if not source.error]
        if self.plan.store is not None:
            yield from overlapped([partial(self._stored, good, done)], 1, self.options.batch_size, LINGER)
        else:
            yield from self._encoded({source.path: Path(source.path) for source in good}, done)
        yield []

    def _encoded(
        self, files: Mapping[str, Path], done: Mapping[str, str]
    ) -> Generator[list["VideoOutcome"], None, None]:
        """Outcomes of media files, with shot changes for scenes; also stores their features if the plan says so."""
        from videoblip2.features.engines import encode_videos, stored
        from videoblip2.features.extract import ExtractionRun, open_ledger

        encoders, kept = self.captioner.media_encoders, self.plan.keep_features
        if self.options.segments is not None:  # a segment keeps all of its frames
            encoders = encoders.every_frame
        elif kept is None:
            encoders = encoders.for_model(self.captioner.model.config.max_positions)
        run = ExtractionRun(self.options.workers, self.plan.shard)
        watches = {path: ShotWatch() for path in files} if self.options.segments == "scenes" else {}
        encoded = encode_videos(
            files, lambda path, sha: done.get(printable(path)) == sha, encoders, run.threads, watches, LINGER
        )
        with open_ledger(kept, encoders, run) if kept else nullcontext() as ledger, closing(encoded):
            for outcomes in encoded:
                for place, outcome in enumerate(outcomes):
                    if kept and ledger and outcome.features is not None:
                        ledger.note(stored(kept, replace(outcome, video_id=Path(outcome.video_id).stem)))
                    if (watch := watches.pop(outcome.video_id, None)) and outcome.features:
                        outcomes[place] = replace(outcome, changes=watch.changes())
                yield outcomes

    def _stored(self, sources: Iterable[VideoSource], done: Mapping[str, str]) -> Generator["VideoOutcome", None, None]:
        from videoblip2.features.engines import VideoOutcome
        from videoblip2.features.manifest import VideoNote

        store = self.captioner.store(self.plan.store or Path())
        notes = store.manifest.videos if store.manifest else {}
        for source in sources:
            try:
                features = None if printable(source.path) in done else store.features(source.path)
                frames = VideoNote(frames=notes[source.path].frames) if source.path in notes else None
                yield VideoOutcome(source.path, frames, features=features)
            except (InputError, OSError) as error:
                yield VideoOutcome(source.path, failure=str(error))

    def _items(self, outcome: "VideoOutcome") -> list[DecodeItem]:
        """The texts to decode for a video: segments × questions × samples."""
        options, features = self.options, outcome.features or {}
        length, window = self.captioner.timeline(features, outcome.note.frames if outcome.note else None)
        segments = [Segment(0.0 if length else None, length, features)]
        if options.segments is not None:
            every = None if options.segments == "scenes" else float(options.segments)
            encoders = self.captioner.media_encoders
            segments = cut(features, encoders.settings.fps, window, every, outcome.changes, encoders.clip.rows)
        samples = range(1, options.samples + 1) if options.samples > 1 else (None,)
        texts = [(s, q, n) for s in segments for q in options.questions or (None,) for n in samples]
        rows = list[Row]()
        return [
            DecodeItem(self._row(outcome, start=s.start, end=s.end, question=q, sample=n), s.item, rows, len(texts))
            for s, q, n in texts
        ]

    def _decode(self, batch: Sequence[DecodeItem]) -> list[list[Row]]:
        """Decode a batch; return the rows of each video that this completes."""
        complete = []
        for item, row in zip(batch, self._captioned(batch), strict=True):
            item.rows.append(row)
            if len(item.rows) == item.count:
                complete.append(merged(item.rows) if self.options.segments is not None else item.rows)
        return complete

    def _captioned(self, batch: Sequence[DecodeItem]) -> list[Row]:
        """The rows with captions. If the batch fails, decode each item alone; those that fail get an error."""
        from videoblip2.data.annotations import question_prompt

        questions = [item.row.question for item in batch]
        prompts = [self.options.prompt if question is None else question_prompt(question) for question in questions]
        seeds = [item.row.sample or 1 for item in batch] if self.options.decoding.sampled else None
        try:
            features = [item.features for item in batch]
            captions = self.captioner.caption(features, prompts, self.options.decoding, seeds)
            texts = [caption.text for caption in captions]
            words = self.captioner.explain(features, texts, prompts) if self.options.explain else [None] * len(texts)
        except Exception as error:
            if len(batch) > 1:
                return [row for item in batch for row in self._captioned([item])]
            return [replace(batch[0].row, error=str(error) if isinstance(error, InputError) else first_line(error))]
        return [
            replace(item.row, caption=caption.text, score=_rounded(caption.score), ended=caption.ended, words=each)
            for item, caption, each in zip(batch, captions, words, strict=True)
        ]

    def _row(self, outcome: "VideoOutcome", **values: Any) -> Row:
        name, digest = VideoSource(outcome.video_id).video_id, outcome.note.sha256 if outcome.note else ""
        values |= {"model_version": self.captioner.version, "options": str(self.options), "sha256": digest}
        return Row(printable(outcome.video_id), printable(name), **values)


def _rounded(score: float) -> float | None:
    """To four digits; None for NaN and infinity, which JSON lacks."""
    return round(score, 4) if math.isfinite(score) else None
