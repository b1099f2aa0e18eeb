"""The two encoders, as published: CLIP's vision tower and CLAP's audio tower, each with its projection.

Both are transformers' own classes, loaded from any folder in the standard format or by hub name, and both are frozen.

1. Frames are prepared as `preprocessor_config.json` says: resized (bicubic, antialiased), centre crop, normalised.
2. CLAP's windows are cut here, so its feature extractor never draws a random crop. With fusion it also marks one short
   window at random as "longer", a training trick; we mark none: a window's vector ignores its neighbours.
3. CLAP's log-mel spectrogram is computed by torch, on the model's device, in a fraction of the time that
   `ClapFeatureExtractor` takes; in float32, as in CLAP's own code, to within 1e-6 of a window's largest power.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from videoblip2.errors import InputError, first_line
from videoblip2.features.media import SAMPLING_RATE
from videoblip2.progress import quiet_transformers

DTYPES = ("float32", "bfloat16", "float16")
MIN_TAIL = 0.15  # drop a last window shorter than this share of a full one: codecs pad by some milliseconds
BATCH_WINDOWS = 16


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
        side = self.model.config.image_size // self.model.config.patch_size
        return 1 if self.tokens == "pooled" else int(side**2)

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
        pixels = self.processor(images=image, input_data_format="channels_last", return_tensors="np", **steps)
        return np.asarray(pixels["pixel_values"][0])

    def encode_pixels(self, pixels: Sequence[NDArray[np.float32]], batch: int = 64) -> NDArray[np.float32]:
        """F prepared frames [3, S, S] -> float32 [F * rows, width].

        Pooled: CLIP's `image_embeds`, or its `pooler_output` if hidden. Patch tokens exclude the class token: the last
        layer's if hidden, otherwise these through the last norm and the projection.
        """
        batches = (np.stack(pixels[i : i + batch]) for i in range(0, len(pixels), batch))
        return _rows(map(self._vectors, batches), self.width)

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
            raise InputError(f"window_seconds={seconds}: {self.name} takes at most {self.max_window_seconds:g}")
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
        batches = (windows[i : i + BATCH_WINDOWS] for i in range(0, len(windows), BATCH_WINDOWS))
        return _rows(map(self._vectors, batches), self.width)

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

    Raises `InputError` if it cannot be loaded, weights are missing, or model and processor do not fit together.
    """
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    kinds = CLIPVisionModelWithProjection, CLIPImageProcessorPil
    name, mark, model, processor, commit = _load_pair(kinds, name_or_folder, device, revision, dtype)
    clip = ClipEncoder(name, mark, model, processor, output, tokens, commit)
    with _refused_mismatch(clip.name):
        clip.encode_pixels([clip.pixels(np.zeros((9, 16, 3), np.uint8))])
    return clip


def load_clap(
    name_or_folder: str | Path, device: str = "cpu", revision: str | None = None, dtype: str = "float32"
) -> ClapEncoder:
    """Load a `ClapAudioModelWithProjection` and its feature extractor from a folder or the hub; see `load_clip`.

    Also raises `InputError` if its sampling rate is not 48 kHz.
    """
    from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

    kinds = ClapAudioModelWithProjection, ClapFeatureExtractor
    clap = ClapEncoder(*_load_pair(kinds, name_or_folder, device, revision, dtype))
    if clap.extractor.sampling_rate != SAMPLING_RATE:
        raise InputError(
            f"{clap.name}: takes audio at {clap.extractor.sampling_rate} Hz, features are made at {SAMPLING_RATE} Hz; "
            "use a CLAP model for 48 kHz"
        )
    with _refused_mismatch(clap.name):
        processor, weights = clap.extractor.truncation == "fusion", clap.model.config.enable_fusion
        if processor != weights:  # fused weights would take an unfused processor's other mel filters
            raise ValueError(f"that is for {'fused' if processor else 'unfused'} CLAP, the weights are not")
        clap.encode_windows([np.zeros(1, np.float32)])
    return clap


def clap_inputs(extractor: Any, windows: Sequence[NDArray[np.float32]], device: Any = "cpu") -> torch.Tensor:
    """A windows of 1 to `nb_max_samples` samples each -> float32 [A, channels, frames, mels], in decibels.

    Windows are repeated or padded to the model's length, as `extractor.padding` says. One channel, or four identical
    ones for `truncation="fusion"`: these windows are too short to be fused.
    """
    length, size = extractor.nb_max_samples, extractor.fft_window_size
    filled = []
    for window in windows:
        times = {"repeat": length // len(window) + 1, "repeatpad": length // len(window)}.get(extractor.padding, 1)
        whole = np.tile(window, times)[:length].astype(np.float32, copy=False)
        filled.append(np.pad(whole, (0, length - len(whole))))
    waves = torch.from_numpy(np.stack(filled)).to(device)  # [A,N]
    hann = torch.hann_window(size, device=waves.device)
    spectrum = torch.stft(waves, size, extractor.hop_length, window=hann, center=True, return_complex=True)
    fusion = extractor.truncation == "fusion"
    filters = torch.from_numpy(extractor.mel_filters if fusion else extractor.mel_filters_slaney).to(waves)
    power = spectrum.real.square() + spectrum.imag.square()  # [A,bins,frames]
    mels = 10 * (power.transpose(1, 2) @ filters).clamp(min=1e-10).log10()[:, None]  # [A,1,frames,mels]
    return mels.repeat(1, 4, 1, 1) if fusion else mels


def fingerprint(model: nn.Module, preprocessor: Any) -> str:
    """16 hex digits that change with any weight and with any preprocessing setting."""
    settings = {key: value for key, value in preprocessor.to_dict().items() if not isinstance(value, np.ndarray)}
    state = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        state.update(name.encode())
        if tensor.dim():
            state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        else:
            state.update(str(tensor.item()).encode())
    return state.hexdigest()[:16]


def _rows(batches: Iterable[torch.Tensor], width: int) -> NDArray[np.float32]:
    return np.concatenate([np.zeros((0, width), np.float32), *(batch.float().cpu().numpy() for batch in batches)])


def _load_pair(
    kinds: tuple[Any, Any], name: str | Path, device: str, revision: str | None, dtype: str
) -> tuple[str, str, Any, Any, str | None]:
    """Name, fingerprint, model, preprocessor and commit of an encoder.

    Refuses missing weights: random ones would give plausible vectors without meaning.
    """
    kind, folder = kinds[0], Path(name).is_dir()
    if not folder and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)):  # the hub's OWNER/MODEL
        raise InputError(f"{name}: no such folder, and not a hub name (OWNER/MODEL); give the encoder's folder")
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype}: not one of {', '.join(DTYPES)}; give one of these")
    model, info = _load(kind, name, revision, output_loading_info=True, dtype=torch.float32)
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise InputError(f"{name}: holds no weights for {missing[0]} (of {len(missing)}); give a {kind.__name__}")
    commit = None if folder else getattr(model.config, "_commit_hash", None) or revision
    try:
        model = model.to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device={device}: cannot be used ({first_line(error)}); give cpu, or cuda if torch sees a GPU"
        ) from error
    processor = _load(kinds[1], name, commit)
    full = str(Path(name).resolve()) if folder else str(name)  # found from any working directory
    return full, fingerprint(model, processor), model.to(getattr(torch, dtype)), processor, commit


def _load(kind: Any, name: str | Path, revision: str | None, **options: Any) -> Any:
    """`kind.from_pretrained`. Any failure becomes an `InputError` with its remedy."""
    try:
        with quiet_transformers():
            return kind.from_pretrained(str(name), **options, **({"revision": revision} if revision else {}))
    except Exception as error:  # a file of another model can fail in any of its readers
        raise InputError(
            f"{name}: no {kind.__name__} could be loaded from it ({first_line(error)}); give a folder with its "
            "config, weights and preprocessor_config.json, or a hub name if you are online"
        ) from error


@contextmanager
def _refused_mismatch(name: str) -> Iterator[None]:
    """Wraps a trial encoding: a processor of another model would otherwise fail after minutes of work."""
    try:
        yield
    except Exception as error:  # any layer may be the one that does not fit
        raise InputError(
            f"{name}: its preprocessor_config.json does not fit its weights ({first_line(error)}); "
            "copy config, weights and preprocessor_config.json from one repository"
        ) from error
