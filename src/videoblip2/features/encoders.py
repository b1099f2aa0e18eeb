"""The two encoders, as published: CLIP's vision tower and CLAP's audio tower, each with its projection.

Both are transformers' own classes, loaded from any folder in the standard form or by hub name, and both are frozen.

1. Frames are prepared as `preprocessor_config.json` says: resized (bicubic, antialiased), centre crop, normalised.
2. CLAP's feature extractor draws random crops only from audio longer than its window. We cut the windows ourselves, so
   nothing is random. For a model with fusion it also marks one short window at random as "longer", a trick of its
   training; we mark none, so that a window's vector does not depend on its neighbours.
3. CLAP's log-mel spectrogram is computed by torch, on the model's device, in a fraction of the time that
   `ClapFeatureExtractor` takes. In float32, as in CLAP's own code, where transformers' NumPy has float64: 2e-4 dB apart
   on noise, up to 0.45 dB in bins at the floor of a periodic sound; at most 1e-6 of a window's largest power.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from videoblip2.errors import InputError
from videoblip2.features.encoder_files import cast, fingerprint, load, load_model, name_of
from videoblip2.features.media import SAMPLING_RATE

MIN_TAIL = 0.15  # drop a last window shorter than this share of a full one: codecs pad by some milliseconds
BATCH_WINDOWS = 16
FLOOR = 1e-10  # of power, before the logarithm


@dataclass(frozen=True)
class ClipEncoder:
    """CLIP's vision tower: RGB frames to image embeddings."""

    name: str
    fingerprint: str
    model: Any
    processor: Any
    output: str = "projected"
    tokens: str = "pooled"
    revision: str | None = None  # commit in the hub repository

    @property
    def rows(self) -> int:
        """Vectors per frame: 1, or P patches."""
        config = self.model.config
        return 1 if self.tokens == "pooled" else int((config.image_size // config.patch_size) ** 2)

    @property
    def width(self) -> int:
        """Width of its vectors: 768 for ViT-L/14 projected and for ViT-B hidden."""
        config = self.model.config
        return int(config.projection_dim if self.output == "projected" else config.hidden_size)

    def pixels(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [H, W, 3] -> float32 [3, S, S], ready for the model."""
        levels = self._process(frame, do_rescale=False, do_normalize=False)
        return np.stack([table.take(level) for table, level in zip(self._values, levels, strict=True)])

    @cached_property
    def _values(self) -> NDArray[np.float32]:
        """float32 [3, 256]: the processor's value for each level. Looking it up takes a tenth of the time."""
        ramp = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
        values: NDArray[np.float32] = self._process(ramp, do_resize=False, do_center_crop=False)[:, :, 0]
        return values

    def _process(self, image: NDArray[np.uint8], **steps: bool) -> NDArray[Any]:
        """[H, W, 3] -> [3, height, width] by the given steps; the channel order is stated, never guessed."""
        given = {"images": image, "input_data_format": "channels_last", "return_tensors": "np"}
        pixels: NDArray[Any] = self.processor(**given, **steps)["pixel_values"][0]
        return pixels

    def encode_pixels(self, pixels: Sequence[NDArray[np.float32]], batch: int = 64) -> NDArray[np.float32]:
        """F prepared frames [3, S, S] -> float32 [F * rows, width].

        Pooled: CLIP's `image_embeds`, or its `pooler_output` if hidden. Patch tokens exclude the class token: the last
        layer's if hidden, otherwise these through the last norm and the projection.
        """
        starts = range(0, len(pixels), batch)
        return _rows((self._vectors(np.stack(pixels[i : i + batch])) for i in starts), self.width)

    @torch.inference_mode()
    def _vectors(self, pixels: NDArray[np.float32]) -> torch.Tensor:
        """[B, 3, S, S] -> [B * rows, width]."""
        given = torch.from_numpy(pixels).to(self.model.device, self.model.dtype)
        if self.output == "projected" and self.tokens == "pooled":
            return self.model(pixel_values=given).image_embeds  # type: ignore[no-any-return]
        tower = self.model.vision_model
        seen = tower(pixel_values=given)
        if self.tokens == "pooled":
            return seen.pooler_output  # type: ignore[no-any-return]
        patches: torch.Tensor = seen.last_hidden_state[:, 1:]  # [B, P, D]
        if self.output == "projected":
            patches = self.model.visual_projection(tower.post_layernorm(patches))
        return patches.flatten(0, 1)


@dataclass(frozen=True)
class ClapEncoder:
    """CLAP's audio tower: mono audio to one embedding per window."""

    name: str
    fingerprint: str
    model: Any
    extractor: Any
    revision: str | None = None  # commit in the hub repository

    @property
    def width(self) -> int:
        """Width of its vectors: 512 for every published CLAP."""
        return int(self.model.config.projection_dim)

    @property
    def max_window_seconds(self) -> float:
        """The longest window that the model takes: 10 s for every published CLAP."""
        return float(self.extractor.nb_max_samples / self.extractor.sampling_rate)

    def samples(self, window_seconds: float | None) -> int:
        """Samples in a full window; None: the model's longest. Raises `InputError` for more than the model takes."""
        seconds = self.max_window_seconds if window_seconds is None else window_seconds
        if seconds > self.max_window_seconds:
            raise InputError(
                f"window_seconds={seconds}: {self.name} takes {self.max_window_seconds:g} s; give that or less"
            )
        return round(seconds * SAMPLING_RATE)

    def windows(
        self, chunks: Iterable[NDArray[np.float32]], window_seconds: float | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Consecutive windows of the audio in `chunks` [n], at 48 kHz; holds one window and one chunk at a time.

        The last window may be shorter; a mere sliver is dropped.
        """
        size, count, waiting = self.samples(window_seconds), 0, np.zeros(0, np.float32)
        for chunk in chunks:
            waiting = np.concatenate([waiting, chunk]) if len(waiting) else chunk
            while len(waiting) >= size:
                yield waiting[:size]
                waiting, count = waiting[size:], count + 1
        if len(waiting) > round(MIN_TAIL * size) or (len(waiting) and not count):
            yield waiting

    def encode_windows(self, windows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """A windows of at most `max_window_seconds` -> float32 [A, width]: CLAP's `audio_embeds`."""
        starts = range(0, len(windows), BATCH_WINDOWS)
        return _rows((self._vectors(windows[i : i + BATCH_WINDOWS]) for i in starts), self.width)

    @torch.inference_mode()
    def _vectors(self, windows: Sequence[NDArray[np.float32]]) -> torch.Tensor:
        device = self.model.device
        mels = clap_inputs(self.extractor, windows, device).to(self.model.dtype)
        longer = torch.zeros(len(windows), 1, dtype=torch.bool, device=device)
        return self.model(input_features=mels, is_longer=longer).audio_embeds  # type: ignore[no-any-return]


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
        revision: commit, tag or branch in the hub repository.
        dtype: of weights and arithmetic: "float32", "bfloat16" or "float16". The fingerprint is of the stored weights.
        output: "projected" or "hidden".
        tokens: "pooled" or "patch"; see `ClipEncoder.encode_pixels`.

    Raises `InputError` if it cannot be loaded or weights are missing.
    """
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    model, commit = load_model(CLIPVisionModelWithProjection, name_or_folder, device, revision)
    processor = load(CLIPImageProcessorPil, name_or_folder, revision=commit)
    mark = fingerprint(model, processor)
    return ClipEncoder(name_of(name_or_folder), mark, cast(model, dtype), processor, output, tokens, commit)


def load_clap(
    name_or_folder: str | Path, device: str = "cpu", revision: str | None = None, dtype: str = "float32"
) -> ClapEncoder:
    """Load a `ClapAudioModelWithProjection` and its feature extractor from a folder or the hub; see `load_clip`.

    Raises `InputError` if it cannot be loaded, weights are missing, or its sampling rate is not 48 kHz.
    """
    from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

    model, commit = load_model(ClapAudioModelWithProjection, name_or_folder, device, revision)
    extractor = load(ClapFeatureExtractor, name_or_folder, revision=commit)
    if extractor.sampling_rate != SAMPLING_RATE:
        raise InputError(
            f"{name_or_folder}: takes audio at {extractor.sampling_rate} Hz, features are made at {SAMPLING_RATE} Hz; "
            "use a CLAP model for 48 kHz"
        )
    mark = fingerprint(model, extractor)
    return ClapEncoder(name_of(name_or_folder), mark, cast(model, dtype), extractor, commit)


def _rows(batches: Iterable[torch.Tensor], width: int) -> NDArray[np.float32]:
    return np.concatenate([np.zeros((0, width), np.float32), *(batch.float().cpu().numpy() for batch in batches)])


def clap_inputs(extractor: Any, windows: Sequence[NDArray[np.float32]], device: Any = "cpu") -> torch.Tensor:
    """A windows of 1 to `nb_max_samples` samples each -> float32 [A, channels, frames, mels], in decibels.

    One channel, or four identical ones for `truncation="fusion"`: these windows are too short to be fused.
    """
    waves = torch.from_numpy(np.stack([_filled(window, extractor) for window in windows])).to(device)  # [A,N]
    mels = _log_mel(waves, extractor)[:, None]  # [A,1,frames,mels]
    return mels.repeat(1, 4, 1, 1) if extractor.truncation == "fusion" else mels


def _filled(window: NDArray[np.float32], extractor: Any) -> NDArray[np.float32]:
    """Repeated or padded to the model's length, as `extractor.padding` says."""
    length = extractor.nb_max_samples
    if extractor.padding == "repeat":
        window = np.tile(window, length // len(window) + 1)[:length]
    elif extractor.padding == "repeatpad":
        window = np.tile(window, length // len(window))
    return np.pad(window.astype(np.float32, copy=False), (0, length - len(window)))


def _log_mel(waves: torch.Tensor, extractor: Any) -> torch.Tensor:
    """[A, N] -> [A, frames, mels], in decibels."""
    size = extractor.fft_window_size
    window = torch.hann_window(size, device=waves.device)
    spectrum = torch.stft(waves, size, extractor.hop_length, window=window, center=True, return_complex=True)
    fusion = extractor.truncation == "fusion"
    filters = torch.from_numpy(extractor.mel_filters if fusion else extractor.mel_filters_slaney).to(waves)
    power = spectrum.real.square() + spectrum.imag.square()  # [A,bins,frames]
    return 10 * (power.transpose(1, 2) @ filters).clamp(min=FLOOR).log10()
