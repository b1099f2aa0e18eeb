"""The two encoders, as published: CLIP's vision tower and CLAP's audio tower, each with its projection.

Both are transformers' own classes, loaded from any folder in the standard form or by hub name, and both are frozen.

1. Frames are prepared as `preprocessor_config.json` says: resized (bicubic, antialiased), centre crop, normalised.
2. CLAP's feature extractor draws random crops only from audio that is longer than its window. We cut the windows
   ourselves, so nothing is random. In a model with fusion it also marks one short window at random as "longer", a
   trick of its training; we mark none, so that a window's vector does not depend on its neighbours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from videoblip2.config import InputError
from videoblip2.features.mel import clap_inputs
from videoblip2.features.settings import SAMPLING_RATE

VIDEO_WIDTH, AUDIO_WIDTH = 768, 512
MIN_TAIL = 0.15  # a last window shorter than this part of a full one is left out: codecs pad by some milliseconds
BATCH_WINDOWS = 16
DTYPES = ("float32", "bfloat16", "float16")
PROJECTED_768 = "use a model that projects to 768, such as openai/clip-vit-large-patch14"
HIDDEN_768 = "use a ViT-B, such as openai/clip-vit-base-patch16, or the projected output"


@dataclass(frozen=True)
class ClipEncoder:
    """CLIP's vision tower: RGB frames to image embeddings."""

    name: str
    fingerprint: str
    model: Any
    processor: Any
    output: str = "projected"
    tokens: str = "pooled"
    revision: str | None = None  # of the hub's repository: a commit

    @property
    def rows(self) -> int:
        """Vectors to a frame: 1, or P patches."""
        config = self.model.config
        return 1 if self.tokens == "pooled" else int((config.image_size // config.patch_size) ** 2)

    def pixels(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [H, W, 3] -> float32 [3, S, S], ready for the model."""
        pixels: NDArray[np.float32] = self.processor(images=frame, return_tensors="np")["pixel_values"][0]
        return pixels

    def encode_pixels(self, pixels: Sequence[NDArray[np.float32]], batch: int = 64) -> NDArray[np.float32]:
        """F prepared frames [3, S, S] -> float32 [F * rows, 768].

        Pooled, that is CLIP's `image_embeds`, or hidden, its `pooler_output`. Patch tokens come without the class
        token: hidden, the last layer's; projected, these through the last norm and the projection.
        """
        chunks = (np.stack(pixels[i : i + batch]) for i in range(0, len(pixels), batch))
        batches = ({"pixel_values": torch.from_numpy(c)} for c in chunks)
        return _forward(self.model, batches, lambda inputs: _image_vectors(self, inputs), VIDEO_WIDTH)

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [F, H, W, 3] -> float32 [F, 768]."""
        return self.encode_pixels([self.pixels(frame) for frame in frames])


@dataclass(frozen=True)
class ClapEncoder:
    """CLAP's audio tower: mono audio to one embedding a window."""

    name: str
    fingerprint: str
    model: Any
    extractor: Any
    revision: str | None = None  # of the hub's repository: a commit

    @property
    def max_window_seconds(self) -> float:
        """The longest window that the model takes whole: 10 s for every published CLAP."""
        return float(self.extractor.nb_max_samples / self.extractor.sampling_rate)

    def windows(self, audio: NDArray[np.float32], window_seconds: float | None = None) -> list[NDArray[np.float32]]:
        """Cut audio [N] at 48 kHz into consecutive windows; the last may be shorter, a mere sliver is left out."""
        return list(self.stream_windows([audio], window_seconds))

    def stream_windows(
        self, chunks: Iterable[NDArray[np.float32]], window_seconds: float | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """The windows of `chunks` [n], one after the other; one window and one chunk are in memory at a time."""
        seconds = self.max_window_seconds if window_seconds is None else window_seconds
        if seconds > self.max_window_seconds:
            raise InputError(
                f"window_seconds={seconds}: {self.name} takes {self.max_window_seconds:g} s; give that or less"
            )
        size, count, waiting = round(seconds * SAMPLING_RATE), 0, np.zeros(0, np.float32)
        for chunk in chunks:
            waiting = np.concatenate([waiting, chunk]) if len(waiting) else chunk
            while len(waiting) >= size:
                yield waiting[:size]
                waiting, count = waiting[size:], count + 1
        if len(waiting) > round(MIN_TAIL * size) or (len(waiting) and not count):
            yield waiting

    def encode(self, audio: NDArray[np.float32], window_seconds: float | None = None) -> NDArray[np.float32]:
        """float32 [N] mono at 48 kHz -> float32 [A, 512]: `audio_embeds`; [0, 512] for N = 0."""
        return self.encode_windows(self.windows(audio, window_seconds))

    def encode_windows(self, windows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """A windows of at most `max_window_seconds` -> float32 [A, 512]."""
        chunks = (list(windows[i : i + BATCH_WINDOWS]) for i in range(0, len(windows), BATCH_WINDOWS))
        return _forward(self.model, map(self._inputs, chunks), self._vectors, AUDIO_WIDTH)

    def _vectors(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        embeds: torch.Tensor = self.model(**inputs).audio_embeds
        return embeds

    def _inputs(self, windows: list[NDArray[np.float32]]) -> dict[str, torch.Tensor]:
        return {
            "input_features": clap_inputs(self.extractor, windows, self.model.device),
            "is_longer": torch.zeros(len(windows), 1, dtype=torch.bool),
        }


def load_clip(
    name_or_folder: str | Path,
    device: str = "cpu",
    revision: str | None = None,
    dtype: str = "float32",
    output: str = "projected",
    tokens: str = "pooled",
) -> ClipEncoder:
    """Load a `CLIPVisionModelWithProjection` and its image processor from a folder or the hub.

    Args:
        revision: commit, tag or branch of the hub's repository.
        dtype: of weights and arithmetic: "float32", "bfloat16" or "float16". The fingerprint is of the file's weights.
        output: "projected" or "hidden".
        tokens: "pooled" or "patch"; see `ClipEncoder.encode_pixels`.

    Raises `InputError` where it cannot be loaded, where weights are missing, and where that output is not 768 wide.
    """
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    model, commit = _load_model(CLIPVisionModelWithProjection, name_or_folder, device, revision)
    width = model.config.projection_dim if output == "projected" else model.config.hidden_size
    what, remedy = ("projection", PROJECTED_768) if output == "projected" else ("hidden vector", HIDDEN_768)
    _refuse_width(name_or_folder, what, width, VIDEO_WIDTH, remedy)
    processor = _load(CLIPImageProcessorPil, name_or_folder, revision=commit)
    mark = _fingerprint(model, processor)
    return ClipEncoder(_name(name_or_folder), mark, _cast(model, dtype), processor, output, tokens, commit)


def load_clap(
    name_or_folder: str | Path, device: str = "cpu", revision: str | None = None, dtype: str = "float32"
) -> ClapEncoder:
    """Load a `ClapAudioModelWithProjection` and its feature extractor from a folder or the hub; see `load_clip`.

    Raises `InputError` where it cannot be loaded, where weights are missing, where the projection is not 512 wide, and
    where it wants another sampling rate than 48 kHz.
    """
    from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

    model, commit = _load_model(ClapAudioModelWithProjection, name_or_folder, device, revision)
    remedy = "use a model that projects to 512, such as laion/clap-htsat-unfused"
    _refuse_width(name_or_folder, "projection", model.config.projection_dim, AUDIO_WIDTH, remedy)
    extractor = _load(ClapFeatureExtractor, name_or_folder, revision=commit)
    if extractor.sampling_rate != SAMPLING_RATE:
        raise InputError(
            f"{name_or_folder}: takes audio at {extractor.sampling_rate} Hz, features are made at {SAMPLING_RATE} Hz; "
            "use a CLAP model for 48 kHz"
        )
    mark = _fingerprint(model, extractor)
    return ClapEncoder(_name(name_or_folder), mark, _cast(model, dtype), extractor, commit)


@contextmanager
def quiet() -> Iterator[None]:
    """Within: no bars and warnings of transformers; what matters in them is raised as an error here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _name(name: str | Path) -> str:
    """A folder's full path, so that it is found from another working directory; a hub name as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else str(name)


def _load_model(kind: Any, name: str | Path, device: str, revision: str | None) -> tuple[Any, str | None]:
    """The model and its commit; no weight is left at random: that would give plausible vectors without meaning."""
    model, info = _load(kind, name, revision=revision, output_loading_info=True, dtype=torch.float32)
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise InputError(
            f"{name}: holds no weights for {missing[0]} ({len(missing)} such); give a folder of {kind.__name__}"
        )
    commit = None if Path(name).is_dir() else getattr(model.config, "_commit_hash", None) or revision
    return model.to(device).eval().requires_grad_(False), commit


def _cast(model: Any, dtype: str) -> Any:
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype}: not one of {', '.join(DTYPES)}; give one of these")
    return model.to(getattr(torch, dtype))


def _load(kind: Any, name: str | Path, revision: str | None = None, **options: Any) -> Any:
    if revision:
        options["revision"] = revision
    try:
        with quiet():
            return kind.from_pretrained(str(name), **options)
    except Exception as error:  # a file of another model breaks in whichever of its readers comes first
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name}: no {kind.__name__} could be loaded from it ({reason}); give a folder with its config, weights "
            "and preprocessor_config.json, or a hub name while online"
        ) from error


def _refuse_width(name: str | Path, what: str, width: int, wanted: int, remedy: str) -> None:
    if width != wanted:
        raise InputError(f"{name}: its {what} is {width} wide, features are {wanted} wide; {remedy}")


def _image_vectors(clip: ClipEncoder, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, 3, S, S] -> [B * rows, 768]."""
    if clip.output == "projected" and clip.tokens == "pooled":
        embeds: torch.Tensor = clip.model(**inputs).image_embeds
        return embeds
    tower = clip.model.vision_model
    seen = tower(**inputs)
    if clip.tokens == "pooled":
        return seen.pooler_output  # type: ignore[no-any-return]
    patches: torch.Tensor = seen.last_hidden_state[:, 1:]  # [B, P, D]
    if clip.output == "projected":
        patches = clip.model.visual_projection(tower.post_layernorm(patches))
    return patches.flatten(0, 1)


@torch.inference_mode()
def _forward(
    model: Any,
    batches: Iterator[dict[str, torch.Tensor]],
    vectors: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    width: int,
) -> NDArray[np.float32]:
    rows = [np.zeros((0, width), np.float32)]
    for batch in batches:
        given = {key: _placed(value, model) for key, value in batch.items()}
        rows.append(vectors(given).float().cpu().numpy())
    return np.concatenate(rows)


def _placed(value: torch.Tensor, model: Any) -> torch.Tensor:
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


def _fingerprint(model: nn.Module, preprocessor: Any) -> str:
    """16 hex digits that change with any weight and with any preprocessing setting."""
    settings = {key: value for key, value in preprocessor.to_dict().items() if not isinstance(value, np.ndarray)}
    state = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        state.update(name.encode())
        state.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data
            if tensor.dim()
            else str(tensor.item()).encode()
        )
    return state.hexdigest()[:16]
