"""Run a frozen tower: frames to vectors, and windows of sound to vectors.

CLAP's windows are cut here, so its extractor never takes a random crop. With fusion, the extractor also marks a random
short window as "longer", which is a training trick. Here none is marked: a vector depends on its own window alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from videoblip2.errors import InputError
from videoblip2.provenance import EncoderIdentity

MIN_TAIL = 0.15  # a last window below this share of a full one is dropped: codecs pad by a few milliseconds
BATCH_WINDOWS = 16
LONGEST_WINDOW = 10.0  # seconds, for towers that accept sound of any length
LARGEST = 2048  # pixels; the processor itself resizes larger frames
POOLED = ("image_embeds", "audio_embeds", "pooler_output")  # a model's vector is the first of these in its output


#: One prepared frame: the model's inputs by name, without the batch dimension.
Pixels = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Encoder:
    """A tower and its preprocessor, from one folder or hub repository."""

    identity: EncoderIdentity
    model: Any
    processor: Any

    def _to_model(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Inputs on the model's device, floats in the model's type."""
        tensors = {name: torch.as_tensor(array).to(self.model.device) for name, array in inputs.items()}
        return {name: x.to(self.model.dtype) if x.is_floating_point() else x for name, x in tensors.items()}

    def _pooled(self, output: Any) -> torch.Tensor:
        """The vectors [B, width] in the model's output."""
        if found := [output[name] for name in POOLED if name in output]:
            return found[0]  # type: ignore[no-any-return]
        fault = f"{self.identity.name}: returns {', '.join(output)}, none of {', '.join(POOLED)}"
        raise InputError(f"{fault}; use --tokens patch, or add the name of its vector to POOLED in features/towers.py")


@dataclass(frozen=True)
class FrameEncoder(Encoder):
    """A vision tower: RGB frames to vectors; see `load_clip` for its options."""

    output: str = "projected"
    tokens: str = "pooled"

    @cached_property
    def width(self) -> int:
        """Width of its vectors, found by encoding a black frame: 768 for CLIP ViT-L/14 projected."""
        return int(self._vectors([self.pixels(np.zeros((9, 16, 3), np.uint8))]).shape[1])

    @cached_property
    def rows(self) -> int:
        """Vectors per frame: 1, or P patches."""
        if self.tokens == "pooled":
            return 1
        height, width = self._process(np.zeros((9, 16, 3), np.uint8))["pixel_values"].shape[1:]
        return int(height // self.model.config.patch_size * (width // self.model.config.patch_size))

    def pixels(self, frame: NDArray[np.uint8]) -> Pixels:
        """uint8 [H, W, 3] -> `pixel_values` float32 [3, S, S], ready for the model."""
        if self._levels is None:
            return self._process(frame)
        return {"pixel_values": self._process_quickly(frame, self._levels)}

    @cached_property
    def _levels(self) -> NDArray[np.float32] | None:
        """float32 [3, 256]: the processor's value for each level; None if it does more than resize, crop and map."""
        ramp = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
        rng = np.random.default_rng(0)
        try:
            mapped = self._process(ramp, do_resize=False, do_center_crop=False)
            levels: NDArray[np.float32] = mapped["pixel_values"][:, :, 0]
            for shape in ((9, 16, 3), (301, 157, 3)):
                probe = rng.integers(0, 256, shape).astype(np.uint8)
                values = self._process(probe)
                if len(values) > 1 or not np.array_equal(values["pixel_values"], self._process_quickly(probe, levels)):
                    return None
        except (ValueError, TypeError, IndexError, AttributeError):
            return None
        return levels

    def _process_quickly(self, frame: NDArray[np.uint8], levels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The processor's `pixel_values` for a frame, in less than half the time."""
        processor, (height, width) = self.processor, frame.shape[:2]
        if processor.do_resize:
            short = processor.size.get("shortest_edge")
            if short:
                height, width = (int(short * side / min(height, width)) for side in (height, width))
            else:
                height, width = processor.size["height"], processor.size["width"]
        crop = processor.crop_size if processor.do_center_crop else {"height": height, "width": width}
        top, left = (height - crop["height"]) // 2, (width - crop["width"]) // 2
        if min(top, left) < 0 or max(frame.shape) > LARGEST:  # it needs padding, or its weights are large
            return self._process(frame)["pixel_values"]
        across = _bands(frame.shape[1], width, left, crop["width"], processor.resample)
        down = _bands(frame.shape[0], height, top, crop["height"], processor.resample)
        rows = _resized(frame.transpose(2, 0, 1), across)
        planes = _resized(rows.swapaxes(1, 2), down).swapaxes(1, 2)
        return np.stack([table.take(plane) for table, plane in zip(levels, planes, strict=True)])

    def _process(self, image: NDArray[np.uint8], **steps: bool) -> Pixels:
        """[H, W, 3] -> [3, height, width]. steps: such as do_resize=False. The channel order is stated, not guessed."""
        inputs = self.processor(images=image, input_data_format="channels_last", return_tensors="np", **steps)
        return {name: np.asarray(array[0]) for name, array in inputs.items()}

    def encode_pixels(self, pixels: Sequence[Pixels], batch: int = 64) -> NDArray[np.float32]:
        """F prepared frames -> float32 [F * rows, width].

        With pooled tokens, a row is the projected vector, or the pooler's if the model has no projection. Patch tokens
        exclude class and register tokens; unless `output` is hidden, the last norm and the projection are applied.
        """
        return _rows(self._vectors, pixels, batch, self.width)

    @torch.inference_mode()
    def _vectors(self, pixels: Sequence[Pixels]) -> torch.Tensor:
        """B prepared frames -> [B * rows, width]."""
        inputs = self._to_model({name: np.stack([frame[name] for frame in pixels]) for name in pixels[0]})
        projection = getattr(self.model, "visual_projection", None)
        if self.tokens == "pooled" and (self.output == "projected" or projection is None):
            return self._pooled(getattr(self.model, "get_image_features", self.model)(**inputs))
        tower = self.model if projection is None else self.model.vision_model
        output = tower(**inputs)
        if self.tokens == "pooled":
            return self._pooled(output)
        patches: torch.Tensor = output.last_hidden_state[:, -self.rows :]  # [B, P, D]
        if projection is not None and self.output == "projected":
            patches = projection(tower.post_layernorm(patches))
        return patches.flatten(0, 1)


@dataclass(frozen=True)
class SoundEncoder(Encoder):
    """An audio tower: mono audio to one vector per window. See `load_clap`."""

    @cached_property
    def width(self) -> int:
        """Width of its vectors, found by encoding silence: 512 for every published CLAP."""
        return int(self._vectors([np.zeros(1, np.float32)]).shape[1])

    @property
    def rate(self) -> int:
        """The sampling rate in Hz that it expects: 48,000 for CLAP, 16,000 for most others."""
        return int(self.processor.sampling_rate)

    @property
    def max_window_seconds(self) -> float:
        """The longest window that the model accepts: 10 s for every published CLAP, 30 s for Whisper."""
        return (self._input_length or LONGEST_WINDOW * self.rate) / self.rate

    @property
    def _input_length(self) -> int | None:
        """Fixed length of the input in samples (CLAP, Whisper, AST with its 10 ms frames); None if it varies."""
        extractor = self.processor
        if samples := getattr(extractor, "nb_max_samples", None) or getattr(extractor, "n_samples", None):
            return int(samples)
        return extractor.max_length * self.rate // 100 if hasattr(extractor, "max_length") else None

    def samples(self, window_seconds: float | None) -> int:
        """Samples in a full window; None = the model's longest. Raises `InputError` if the model accepts fewer."""
        most = self.max_window_seconds
        seconds = most if window_seconds is None else window_seconds
        if seconds > most:
            raise InputError(f"window_seconds={seconds:g}: {self.identity.name} takes at most {most:g} s; lower it")
        return round(seconds * self.rate)

    def windows(
        self, chunks: Iterable[NDArray[np.float32]], window_seconds: float | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Cut audio at `rate`, in chunks [n], into consecutive windows; holds one window and one chunk at a time.

        The last window may be shorter. Below `MIN_TAIL` of a full one it is dropped, unless it is the only one.
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
        """A windows of at most `max_window_seconds` -> float32 [A, width]."""
        return _rows(self._vectors, windows, BATCH_WINDOWS if self._input_length else 1, self.width)

    @torch.inference_mode()
    def _vectors(self, windows: Sequence[NDArray[np.float32]]) -> torch.Tensor:
        """B windows -> [B, width]: the model's vector, or else the mean of its states over time, without padding."""
        if hasattr(self.processor, "mel_filters_slaney"):  # CLAP
            longer = torch.zeros(len(windows), 1, dtype=torch.bool)
            inputs = {"input_features": clap_inputs(self.processor, windows, self.model.device), "is_longer": longer}
        else:
            least = self.rate // 10  # filter banks and convolutions fail on less
            padded = [np.pad(window, (0, max(0, least - len(window)))) for window in windows]
            inputs = dict(self.processor(padded, sampling_rate=self.rate, return_tensors="pt"))
        output = self.model(**self._to_model(inputs))
        if any(name in output for name in POOLED):
            return self._pooled(output)
        states: torch.Tensor = output.last_hidden_state  # [B, T, D]
        shares = [min(1.0, len(window) / self._input_length) if self._input_length else 1.0 for window in windows]
        ends = [max(1, math.ceil(states.shape[1] * share)) for share in shares]
        return torch.stack([row[:end].mean(0) for row, end in zip(states, ends, strict=True)])


@lru_cache
def _bands(size: int, resized: int, first: int, count: int, resample: int) -> list[tuple[int, int, torch.Tensor]]:
    """Pillow's weights to make `count` of `resized` pixels, from `first`, out of `size`, in bands of the new pixels:
    start and end of the old pixels that a band reads, and float64 [old, new], multiples of 2^-22."""
    ones = Image.fromarray(np.eye(size, dtype=np.int32) << 22)
    weights = np.asarray(ones.resize((resized, size), resample))[:, first : first + count] / 2.0**22
    bands, step = [], max(16, 64 * resized // size)  # in wider bands most weights are 0
    for band in np.split(weights, range(step, count, step), axis=1):
        start, *_, end = np.flatnonzero(band.any(axis=1)).tolist() * 2
        bands.append((start, end + 1, torch.from_numpy(band[start : end + 1])))
    return bands


def _resized(levels: NDArray[np.uint8], bands: list[tuple[int, int, torch.Tensor]]) -> NDArray[np.uint8]:
    """[..., size] -> [..., count], rounded as by Pillow. Sums are exact in float64, so their order does not matter."""
    parts = [torch.from_numpy(levels[..., a:b].astype(np.float64, order="C")) @ weights for a, b, weights in bands]
    return torch.cat(parts, -1).add_(0.5).floor_().clamp_(0, 255).byte().numpy()


def clap_inputs(extractor: Any, windows: Sequence[NDArray[np.float32]], device: Any = "cpu") -> torch.Tensor:
    """A windows of 1 to `nb_max_samples` samples each -> float32 [A, channels, frames, mels], in decibels.

    Repeats or pads windows to the model's length, as `extractor.padding` says. Returns one channel, or four identical
    ones with `truncation="fusion"`, since these windows are too short to be fused.
    """
    length, size = extractor.nb_max_samples, extractor.fft_window_size
    filled = []
    for window in windows:
        times = {"repeat": length // len(window) + 1, "repeatpad": length // len(window)}.get(extractor.padding, 1)
        whole = np.tile(window, times)[:length].astype(np.float32, copy=False)
        whole = np.pad(whole, (0, length - len(whole)))
        filled += [whole[size // 2 : 0 : -1], whole, whole[-2 : -2 - size // 2 : -1]]  # as `center=True`, but faster
    waves = torch.from_numpy(np.concatenate(filled)).to(device).view(len(windows), -1)  # [A,N]
    hann = torch.hann_window(size, device=waves.device)
    spectrum = torch.stft(waves, size, extractor.hop_length, window=hann, center=False, return_complex=True)
    fusion = extractor.truncation == "fusion"
    filters = torch.from_numpy(extractor.mel_filters if fusion else extractor.mel_filters_slaney).to(waves)
    power = spectrum.real.square() + spectrum.imag.square()  # [A,bins,frames]
    mels = 10 * (power.transpose(1, 2) @ filters).clamp(min=1e-10).log10()[:, None]  # [A,1,frames,mels]
    return mels.repeat(1, 4, 1, 1) if fusion else mels


def _rows(
    encode: Callable[[Sequence[Any]], torch.Tensor], items: Sequence[Any], batch: int, width: int
) -> NDArray[np.float32]:
    batches = (encode(items[start : start + batch]) for start in range(0, len(items), batch))
    return np.concatenate([np.zeros((0, width), np.float32), *(rows.float().cpu().numpy() for rows in batches)])
