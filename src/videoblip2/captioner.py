"""A network with its tokenizers and media encoders: features or media in, captions and answers out."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from videoblip2.config import DecodeConfig, Decoding, InputError
from videoblip2.errors import refused, warn
from videoblip2.modality import MODALITIES, ExplainedWord, FeatureReader, Features
from videoblip2.provenance import ENCODERS, FeatureOrigin, Provenance

SEEDS = 1_000_003  # distance of two neighboring seeds' samples

if TYPE_CHECKING:
    from videoblip2.captions import DocumentFrequencies
    from videoblip2.data.batches import Batch
    from videoblip2.features.media_features import Encoders
    from videoblip2.features.media_features import PreparedVideo as PreparedVideo
    from videoblip2.features.store import FeatureStore
    from videoblip2.model.network import VideoBlip2
    from videoblip2.model.tokenizers import Tokenizers


@dataclass(frozen=True)
class Caption:
    """A caption and its score: mean log-probability of its tokens (greedy), or the beam's length-normalized one."""

    text: str
    score: float
    ended: bool = True


def pick_device(name: str) -> Any:
    """`auto` → CUDA if available, else the CPU; any other name is passed to torch."""
    import torch

    if name == "auto":
        number = int(os.environ.get("LOCAL_RANK", 0))  # one GPU per local process
        return torch.device("cuda", number) if torch.cuda.is_available() else torch.device("cpu")
    with refused(f"device={name}: torch has no such device", "use auto, cpu or cuda", RuntimeError):
        device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={name}: no CUDA device here; use device=cpu or device=auto")
    return device


@dataclass(eq=False)
class Captioner:
    """A network with its tokenizers: features or media in, captions out."""

    model: "VideoBlip2"
    tokenizers: "Tokenizers"
    provenance: Provenance = field(default_factory=Provenance)
    model_name: str = ""
    version: str = ""
    frequencies: "Callable[[], DocumentFrequencies] | None" = None  # of the training captions, for consensus

    def caption(
        self,
        items: Sequence[Features],
        prompt: str | Sequence[str | None] | None = None,
        decoding: Decoding | None = None,
        seeds: Sequence[int] | None = None,
        watch: Callable[[list[str]], None] | None = None,
    ) -> list[Caption]:
        """N items → N captions, decoded as one batch. A modality that a video lacks is left out, or has no rows.

        Args:
            prompt, decoding: None = the model's own; a prompt is for all items, or one per item.
            seeds: one per item, for sampling; a caption depends on its own seed, not on its batch.
            watch: called after each token with the N captions so far (not with beams or consensus).
        """
        import torch

        from videoblip2.model import decode

        def captions(decoding: Decoding, seeds: Sequence[int] | None) -> list[Caption]:
            generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
            out, scores = decode.generate(self.model.text, encoded, decoding, generators, watch=seen)
            texts = self.tokenizers.texts(out.ids)
            return [Caption(*row) for row in zip(texts, scores.tolist(), out.ended.tolist(), strict=True)]

        decoding = decoding or self.model.decoding
        count = decoding.consensus
        if count and self.frequencies is None:
            remedy = "train a model on captions, or decode greedily or with beams"
            raise InputError(f"model {self.model_name}: has no document_frequencies, so no consensus; {remedy}")
        seen = None if watch is None or count else lambda ids: watch(self.tokenizers.texts(ids))
        with torch.inference_mode():
            encoded = self.model.encode(**self._batch(items, prompt).inputs)
            if not count:
                return captions(decoding, seeds)
            likeliest = captions(replace(decoding, sampled=False), None)
            own = [(seed * SEEDS + number) % 2**63 for seed in seeds or [0] * len(items) for number in range(count)]
            drawn = captions(replace(decoding, sampled=True, num_beams=1), own)
        return self._agreed([[one, *drawn[n * count : (n + 1) * count]] for n, one in enumerate(likeliest)])

    def _agreed(self, groups: Sequence[Sequence[Caption]]) -> list[Caption]:
        """Of each group, the caption with the highest mean CIDEr-D against the others; the first if tied."""
        from videoblip2.captions import leave_one_out

        assert self.frequencies is not None
        texts = {str(number): [caption.text for caption in group] for number, group in enumerate(groups)}
        votes = leave_one_out(texts, self.frequencies())
        return [group[int(votes[number].argmax())] for number, group in zip(texts, groups, strict=True)]

    def explain(
        self, items: Sequence[Features], captions: Sequence[str], prompt: str | Sequence[str | None] | None = None
    ) -> list[tuple[ExplainedWord, ...]]:
        """How much each word of N captions, one per item, depends on the sound and on the picture."""
        from videoblip2.model.explain import explain

        return explain(self.model, self.tokenizers, self._batch(items, prompt).inputs, captions)

    def _batch(self, items: Sequence[Features], prompt: str | Sequence[str | None] | None) -> "Batch":
        from videoblip2.data.batches import collate

        checked = []
        for number, item in enumerate(items):
            try:
                checked.append(self.check(item))
            except InputError as error:
                raise InputError(f"item {number}: {error}") from error
        given = [prompt] * len(items) if isinstance(prompt, str | None) else prompt
        prompts = [self.model.config.prompt if text is None else text for text in given]
        ids = [str(number) for number in range(len(items))]
        batch = collate(ids, checked, prompts, self.tokenizers, self.model.config.max_positions)
        return batch.to(self.model.device)

    def in_batches(
        self, entries: Sequence[tuple[str, str, str | None]], features: FeatureReader, decode: DecodeConfig
    ) -> Iterator[tuple[str, Caption]]:
        """Caption entries of (key, video id, prompt) in batches; yield (key, caption)."""
        for start in range(0, len(entries), decode.batch_size):
            keys, video_ids, prompts = zip(*entries[start : start + decode.batch_size], strict=True)
            items = [features(video_id) for video_id in video_ids]
            yield from zip(keys, self.caption(items, prompts, decode.decoding), strict=True)

    @property
    def never_asked(self) -> bool:
        """Whether the model was never trained on questions; False if that is not recorded."""
        return bool(self.provenance.kinds) and "answers" not in self.provenance.kinds

    def attention(self, item: Features, prompt: str | None = None) -> dict[str, np.ndarray]:
        """Where the Q-Formers look: [rows] of each modality that the model reads, each summing to 1.

        Rows are thinned evenly to the model's positions, as for a caption; a modality that the video lacks has none.
        """
        item = self.check(item)
        inputs = self._batch([item], prompt).inputs
        weights = self.model.cross_attention(**{name: x for name, x in inputs.items() if "prompt" not in name})
        return {name: row[0, : len(item[name])].cpu().numpy() for name, row in weights.items()}

    def timeline(self, item: Features, frames: int | None = None) -> tuple[float | None, float | None]:
        """Length in seconds of the clip, to within a frame, and of an audio window; None if unknown.

        frames: number of frames behind the item; None = one per row, unknown for patch tokens.
        """
        made = (self.provenance.features or FeatureOrigin()).settings
        fps, most, window = made.fps, made.max_frames, made.window_seconds
        frames = frames or (0 if made.tokens == "patch" else len(item.get("video", ())))
        windows = len(item.get("audio", ()))
        if fps and frames and not (most and frames >= most):  # frames were not thinned
            return frames / fps, window
        return (windows * window if window and windows else None), window

    @property
    def encoders_name(self) -> str:
        """Names the encoders that turn media into features: two models with the same name can share features."""
        origin = self.provenance.features or FeatureOrigin()
        return repr([*map(origin.fingerprint, ENCODERS), *origin.settings.model_dump().values()])

    def warm(self) -> None:
        """Caption dummy features, by default and with beams, so that no user waits for the first batch."""
        item = {name: np.zeros((8, width), "float32") for name, width in self.model.config.widths.items()}
        for count, beams in ((1, None), (4, None), (1, 3)):
            self.caption([item] * count, decoding=self.model.decoding.but(num_beams=beams, max_new_tokens=8))

    @cached_property
    def media_encoders(self) -> "Encoders":
        """CLIP and CLAP, loaded on first use. Raises InputError if those of its features are not available."""
        from videoblip2.features.media_features import load_encoders

        origin, name = self.provenance.features or FeatureOrigin(), self.model_name
        if given := [m for m in self.model.config.modality_names if not MODALITIES[m].extracted]:
            warn(f"{name} reads {', '.join(given)}, which media files do not give; use features to caption with it")
        remedy = f"name them with --clip and --clap, or copy them to {name}/encoders/clip and {name}/encoders/clap"
        try:
            return load_encoders(origin, str(self.model.device), f"model {name}")
        except InputError as error:
            raise InputError(f"{error}; {remedy}" if origin.encoders else str(error)) from error

    def load_media_encoders(self) -> None:
        """Load CLIP and CLAP now rather than with the first media file."""
        _ = self.media_encoders

    def store(self, root: Path) -> "FeatureStore":
        """A feature store. Raises InputError if it was made with other encoders: captions would be random."""
        from videoblip2.features.store import FeatureStore, refuse_other_encoders

        store = FeatureStore(root, self.model.config.modality_names)
        refuse_other_encoders(store, self.provenance.features, self.model_name)
        return store

    def cut(self, item: Features) -> Features:
        """The rows of an item that the model reads: at most `max_positions`, evenly spaced; see `check`."""
        from videoblip2.data.batches import thin

        return {name: thin(array, self.model.config.max_positions) for name, array in self.check(item).items()}

    def check(self, item: Features) -> Features:
        """The modalities that this model reads, with no rows where one is missing. Raises InputError for bad arrays."""
        checked = {}
        for name, width in self.model.config.widths.items():
            array, required = item.get(name, np.zeros((0, width), np.float32)), MODALITIES[name].required
            if array.ndim != 2 or array.shape[1] != width or (required and not len(array)):
                least = ", N at least 1" if required else ""
                raise InputError(f"{name} features of shape {list(array.shape)}; this model takes [N,{width}]{least}")
            if not np.isfinite(array).all():
                raise InputError(f"{name} features contain NaN or infinity; extract them again")
            checked[name] = array
        return checked
