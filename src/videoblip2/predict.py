"""Captions from features or media, by a checkpoint, an MLflow run or a registered model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from videoblip2.config import GREEDY, Config, DecodeConfig, Decoding, InputError, parse_config, read_yaml
from videoblip2.modality import MODALITIES, Features
from videoblip2.provenance import ENCODERS, FeatureOrigin, Provenance
from videoblip2.tracking import FoundModel as FoundModel
from videoblip2.tracking import find_model as find_model

if TYPE_CHECKING:
    from videoblip2.data.annotations import VideoAnnotation
    from videoblip2.data.questions import Question
    from videoblip2.features.media_features import Encoders
    from videoblip2.features.media_features import PreparedVideo as PreparedVideo
    from videoblip2.features.store import FeatureStore
    from videoblip2.model.network import VideoBlip2
    from videoblip2.model.tokenizers import Tokenizers


@dataclass(frozen=True)
class Caption:
    """A caption and its score: mean log-probability of its tokens (greedy), or the beam's length-normalised one."""

    text: str
    score: float
    ended: bool = True


@dataclass(frozen=True)
class OpenModel:
    """A model, and the data that its configuration names. Each part is loaded on first use.

    Args:
        name: MODEL as the user gave it.
        version: `NAME/3`, `m-…` or the folder's name.
        overrides: `key=value` on the configuration of its checkpoint.
        device: None = the configuration's.
    """

    name: str
    folder: Path
    version: str
    overrides: tuple[str, ...] = ()
    device: str | None = None

    @cached_property
    def config(self) -> Config:
        """The configuration that it was trained with, overridden."""
        content = read_yaml(self.folder / "config.yaml")
        return parse_config(content, self.overrides, source=f"{self.name}'s config.yaml")

    @cached_property
    def captioner(self) -> "Captioner":
        """The network in eval mode on its device."""
        from videoblip2.model.checkpoint import load_checkpoint

        device = pick_device(self.device or self.config.device)
        checkpoint = load_checkpoint(self.folder)
        features = checkpoint.provenance.features
        provenance = checkpoint.provenance.model_copy(update={"features": features and features.stored_in(self.folder)})
        network = checkpoint.model.to(device).eval()
        if self.device is None:
            network.compiled_decoding = self.config.decode.compile
        return Captioner(network, checkpoint.tokenizers, provenance, self.name, self.version)

    @cached_property
    def store(self) -> "FeatureStore":
        """The features of `data.features`. Raises InputError where other encoders made them than the model's."""
        return self.captioner.store(Path(self.config.data.features))

    def annotations(self, file: str) -> Path:
        """A file in `data.annotations`."""
        return Path(self.config.data.annotations) / file

    def videos(self, file: str) -> "list[VideoAnnotation]":
        """The videos of an annotation file. Raises InputError for a video without features."""
        from videoblip2.data.annotations import read_annotations, require_features

        return require_features(read_annotations(self.annotations(file)), self.store, file)

    def questions(self, file: str) -> "list[Question]":
        """The questions of an annotation file. Raises InputError for a question on a video without features."""
        from videoblip2.data.annotations import require_features
        from videoblip2.data.questions import read_questions

        return require_features(read_questions(self.annotations(file)), self.store, file)


def open_model(
    model: str | Path, overrides: Sequence[str] = (), device: str | None = None, found: FoundModel | None = None
) -> OpenModel:
    """MODEL (a checkpoint folder, an MLflow run id, `models:/videoblip2@champion`) → the model with its data.

    Raises InputError where MODEL does not exist.

    Args:
        overrides: `key=value` on the configuration of its checkpoint, such as data.features=DIR.
        device: auto, cpu, cuda …; None = the configuration's.
        found: what `find_model` returned for MODEL earlier: an alias may have moved since.
    """
    there = found or find_model(model)
    return OpenModel(str(model), there.folder, there.version, tuple(overrides), device)


def load(model: str | Path, device: str | None = None) -> "VideoBlip2":
    """MODEL → the network in eval mode."""
    return load_captioner(model, device).model


def load_captioner(model: str | Path, device: str | None = None) -> "Captioner":
    """MODEL → a Captioner on `device` (default: CUDA where there is one)."""
    return open_model(model, device=device or "auto").captioner


def pick_device(name: str) -> Any:
    """`auto` → CUDA where there is one, else the CPU; any other name is torch's own."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device={name}: torch knows no such device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={name}: no CUDA device here; use device=cpu or device=auto")
    return device


class Captioner:
    """A network with its tokenizers: features or media in, captions out."""

    def __init__(
        self,
        model: "VideoBlip2",
        tokenizers: "Tokenizers",
        provenance: Provenance | None = None,
        name: str = "",
        version: str = "",
    ) -> None:
        self.model = model
        self.tokenizers = tokenizers
        self.provenance = provenance or Provenance()
        self.model_name = name
        self.version = version
        self._encoders: Encoders | None = None

    def caption(
        self,
        items: Sequence[Features],
        prompt: str | Sequence[str | None] | None = None,
        decoding: Decoding = GREEDY,
        seeds: Sequence[int] | None = None,
        watch: Callable[[list[str]], None] | None = None,
    ) -> list[Caption]:
        """N items → N captions, decoded as one batch. A modality that a video lacks is left out, or has no rows.

        Args:
            prompt: one for all items, or one for each; None = the model's own.
            seeds: one for each item, where captions are sampled: each depends on its own seed, not on its batch.
            watch: called after each token with the N captions so far (not with beams).
        """
        import torch

        from videoblip2.data.batches import collate

        items = self._checked_items(items)
        given = [prompt] * len(items) if isinstance(prompt, str | None) else prompt
        prompts = [self.model.config.prompt if text is None else text for text in given]
        ids = [str(number) for number in range(len(items))]
        batch = collate(ids, items, prompts, self.tokenizers, self.model.config.max_positions)
        with torch.inference_mode():
            states, mask = self.model.encode(**batch.to(self.model.device).inputs)
            if decoding.num_beams > 1:
                out, scores = self._beam(states, mask, decoding)
            else:
                out = self._roll(states, mask, decoding, seeds, watch)
                scores = out.log_probs.sum(dim=1) / out.mask.sum(dim=1)
        texts = self.tokenizers.texts(out.ids)
        return [Caption(*row) for row in zip(texts, scores.tolist(), out.ended.tolist(), strict=True)]

    def _beam(self, states: Any, mask: Any, decoding: Decoding) -> Any:
        from videoblip2.model import decode

        return decode.beam(
            self.model.text, states, mask, decoding.max_new_tokens, decoding.num_beams, decoding.length_penalty
        )

    def _roll(self, states: Any, mask: Any, decoding: Decoding, seeds: Sequence[int] | None, watch: Any) -> Any:
        """Greedy or sampled captions."""
        import torch

        from videoblip2.model import decode

        seen = None if watch is None else lambda ids: watch(self.tokenizers.texts(ids))
        if not decoding.sampled:
            return decode.greedy(self.model.text, states, mask, decoding.max_new_tokens, seen)
        generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
        sampling = decode.Sampling(1, decoding.temperature, generators)
        return decode.sample(self.model.text, states, mask, decoding.max_new_tokens, sampling, seen)

    def caption_videos(
        self, video_ids: Sequence[str], source: Any, decode: DecodeConfig, prompt: str | None = None
    ) -> Iterator[tuple[str, Caption]]:
        """(video id, caption) for every id, batch by batch; features come from `source` (a feature store)."""
        for start in range(0, len(video_ids), decode.batch_size):
            ids = video_ids[start : start + decode.batch_size]
            items = [source.features(video_id) for video_id in ids]
            captions = self.caption(items, prompt, decode.decoding)
            yield from zip(ids, captions, strict=True)

    def answer(self, items: Sequence[Features], questions: Sequence[str], decoding: Decoding = GREEDY) -> list[Caption]:
        """N items and a question on each → N answers, decoded as one batch."""
        from videoblip2.data.batches import question_prompt

        return self.caption(items, [question_prompt(question) for question in questions], decoding)

    def answer_questions(
        self, questions: Sequence["Question"], source: Any, decode: DecodeConfig
    ) -> Iterator[tuple[str, Caption]]:
        """(question id, answer) for every question, batch by batch; features come from `source`."""
        from videoblip2.data.batches import question_prompt

        for start in range(0, len(questions), decode.batch_size):
            asked = questions[start : start + decode.batch_size]
            items = [source.features(question.video_id) for question in asked]
            prompts = [question_prompt(question.question) for question in asked]
            answers = self.caption(items, prompts, decode.decoding)
            yield from zip([question.question_id for question in asked], answers, strict=True)

    def attention(self, item: Features, prompt: str | None = None) -> dict[str, np.ndarray]:
        """Where the Q-Formers look: [rows] of each modality that the model reads, each summing to 1.

        See `model.attention.cross_attention`. Longer features than the model's positions are thinned evenly, as when
        they are captioned; a modality that the video lacks has no rows.
        """
        from videoblip2.data.batches import collate
        from videoblip2.model.attention import cross_attention

        text = self.model.config.prompt if prompt is None else prompt
        item = self.check(item)
        batch = collate(["0"], [item], [text], self.tokenizers, self.model.config.max_positions)
        inputs = batch.to(self.model.device).inputs
        weights = cross_attention(self.model, **{name: x for name, x in inputs.items() if "prompt" not in name})
        return {name: row[0, : len(item[name])].cpu().numpy() for name, row in weights.items()}

    def timeline(self, item: Features) -> tuple[float | None, float | None]:
        """Seconds that a clip lasts, to a frame, and that an audio window spans; None where that is not known."""
        settings = (self.provenance.features or FeatureOrigin()).settings
        fps, most, window = settings.fps, settings.max_frames, settings.window_seconds
        frames, windows = (len(item.get(name, ())) for name in ("video", "audio"))
        if fps and not (most and frames >= most):  # frames were not thinned
            return frames / fps, window
        return (windows * window if window and windows else None), window

    def caption_media(
        self, paths: Sequence[Path], prompt: str | None = None, decoding: Decoding = GREEDY
    ) -> list[Caption]:
        """Media files → captions, through the encoders that made the training features.

        Raises InputError for a file that cannot be decoded, naming it.
        """
        return self.caption([self.media_features(path) for path in paths], prompt, decoding)

    def media_features(self, path: Path) -> Features:
        """One media file → its features, through the encoders that made the training features."""
        return self._media_encoders().encode_file(path)

    @property
    def encoders_name(self) -> str:
        """What media become features with: two models with the same name can share features."""
        origin = self.provenance.features or FeatureOrigin()
        return repr([*map(origin.fingerprint, ENCODERS), *origin.settings.model_dump().values()])

    def warm(self) -> None:
        """Caption made-up features, greedily and with beams, so that no user's request is the first one."""
        item = {name: np.zeros((8, width), "float32") for name, width in self.model.config.widths.items()}
        for count, beams in ((1, 1), (4, 1), (1, 3)):
            self.caption([item] * count, decoding=Decoding(beams, max_new_tokens=8))

    def load_media_encoders(self) -> None:
        """Load CLIP and CLAP now and not with the first media file. Raises InputError where they are not to be had."""
        self._media_encoders()

    @property
    def media_fps(self) -> float:
        """Frames a second that this model's encoders want."""
        return self._media_encoders().settings.fps

    def prepare_media(
        self, frames: Iterable[np.ndarray], sound_after: Callable[[], np.ndarray | None]
    ) -> "PreparedVideo":
        """A decoded file (`features.media.stream_untrusted`), in two parts → what `encode_prepared` takes.

        Args:
            frames: uint8 [H, W, 3] each, `media_fps` a second; taken one by one, so that a film is never in memory.
            sound_after: called once they are taken; mono float32 [N] at 48 kHz, or None for a video without audio.
        """
        return self._media_encoders().prepare(frames, sound_after)

    def encode_prepared(self, videos: Sequence["PreparedVideo"]) -> list[Features]:
        """N prepared videos → their features, as `media_features` makes them of the same files, in one pass."""
        return self._media_encoders().encode(videos)

    def _media_encoders(self) -> "Encoders":
        from videoblip2.features.media_features import load_encoders

        if self._encoders is None:
            device = str(self.model.device)
            self._encoders = load_encoders(self.provenance.features, device, f"model {self.model_name}")
        return self._encoders

    def store(self, root: Path) -> "FeatureStore":
        """A feature store. Raises InputError for one of other encoders than the model's: it would caption by chance."""
        from videoblip2.features.check import refuse_other_encoders
        from videoblip2.features.store import FeatureStore

        store = FeatureStore(root, self.model.config.modality_names)
        refuse_other_encoders(store, self.provenance.features, self.model_name)
        return store

    def cut(self, item: Features) -> Features:
        """The rows of an item that the model will read: `max_positions` at most, evenly, in arrays of their own."""
        from videoblip2.data.batches import thin

        return {name: thin(array, self.model.config.max_positions) for name, array in item.items()}

    def check(self, item: Features) -> Features:
        """Exactly the modalities that this model reads; one that the video lacks has no rows.

        Raises InputError for features that the model cannot take.
        """
        return {name: _checked(name, item.get(name), width) for name, width in self.model.config.widths.items()}

    def _checked_items(self, items: Sequence[Features]) -> list[Features]:
        complete = []
        for number, item in enumerate(items):
            try:
                complete.append(self.check(item))
            except InputError as error:
                raise InputError(f"item {number}: {error}") from error
        return complete


def _checked(modality: str, array: np.ndarray | None, width: int) -> np.ndarray:
    required = MODALITIES[modality].required
    if array is None:
        array = np.zeros((0, width), np.float32)
    if array.ndim != 2 or array.shape[1] != width or (required and not len(array)):
        least = ", N at least 1" if required else ""
        raise InputError(f"{modality} features of shape {list(array.shape)}; this model takes [N,{width}]{least}")
    if not np.isfinite(array).all():
        raise InputError(f"{modality} features hold NaN or infinity; extract them again")
    return array


def caption_each(
    captioner: Captioner,
    videos: Sequence[str],
    features: Path | None = None,
    prompt: str | None = None,
    decoding: Decoding = GREEDY,
) -> Iterator[dict[str, Any]]:
    """One row a video, {"video", "caption", "score"} or {"video", "error"}: a bad one does not stop the rest.

    Args:
        videos: media files, or with `features` (a feature store) video ids.
    """
    for video in videos:
        try:
            item = _features(captioner, video, features)
            (caption,) = captioner.caption([item], prompt, decoding)
            yield {"video": video, "caption": caption.text, "score": round(caption.score, 4)}
        except InputError as error:
            yield {"video": video, "error": str(error)}


def _features(captioner: Captioner, video: str, features: Path | None) -> Features:
    """Of a media file, or with `features` of a stored video id."""
    if features is None:
        return captioner.media_features(Path(video))
    return captioner.store(features).features(video)


def ask_video(
    captioner: Captioner,
    video: str,
    questions: Sequence[str],
    features: Path | None = None,
    decoding: Decoding = GREEDY,
) -> list[Caption]:
    """Answers to questions on one video, a media file or with `features` (a feature store) an id, as one batch.

    Raises InputError for an empty question, a file that cannot be decoded and an id without features.
    """
    for question in questions:
        if not question.strip():
            raise InputError(f"question {question!r}: is empty; ask something")
    item = _features(captioner, video, features)
    return captioner.answer([item] * len(questions), questions, decoding)
