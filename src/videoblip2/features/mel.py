"""CLAP's log-mel spectrogram by torch, on the model's device: `ClapFeatureExtractor` in a part of its time.

In float32, as in CLAP's own code, where transformers' NumPy has float64: 2e-4 dB apart on noise, up to 0.45 dB in bins
at the floor of a periodic sound; 1e-6 of a window's largest power at most (tests/test_mel.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FLOOR = 1e-10  # of power, before the logarithm


def clap_inputs(extractor: Any, windows: Sequence[NDArray[np.float32]], device: Any = "cpu") -> torch.Tensor:
    """A windows, each of 1 to `nb_max_samples` samples -> float32 [A, channels, frames, mels], in decibels.

    One channel, or for `truncation="fusion"` four times the same: these windows are too short to be fused.
    """
    waves = torch.from_numpy(np.stack([_filled(window, extractor) for window in windows])).to(device)  # [A,N]
    mels = _log_mel(waves, extractor)[:, None]  # [A,1,frames,mels]
    return mels.repeat(1, 4, 1, 1) if extractor.truncation == "fusion" else mels


def _filled(window: NDArray[np.float32], extractor: Any) -> NDArray[np.float32]:
    """Repeated or padded to the length that the model takes, as `extractor.padding` says."""
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
