"""CLAP's input by torch beside transformers' own extractor."""

import numpy as np
import pytest
from transformers import ClapFeatureExtractor

from videoblip2.features.mel import clap_inputs

RATE = 48_000


def both(extractor: ClapFeatureExtractor, windows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    expected = extractor(windows, sampling_rate=RATE, return_tensors="np")["input_features"]
    return clap_inputs(extractor, windows).numpy(), expected


def noise(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(length).astype(np.float32) * 0.1 for length in lengths]


@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_inputs_are_those_of_transformers(truncation, padding):
    extractor = ClapFeatureExtractor(max_length_s=2, truncation=truncation, padding=padding)
    got, expected = both(extractor, [*noise(96_000, 48_000, 30_001), np.zeros(RATE, np.float32)])
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 2e-3  # decibels, of a range of some 100


def test_power_of_any_sound_agrees_to_float32():
    extractor = ClapFeatureExtractor(max_length_s=2, truncation="rand_trunc", padding="repeatpad")
    tone = np.sin(2 * np.pi * 440 * np.arange(96_000) / RATE).astype(np.float32)
    got, expected = (10 ** (mels.astype(np.float64) / 10) for mels in both(extractor, [tone, *noise(1, 7, 500)]))
    loudest = expected.max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(got - expected) / loudest).max() < 1e-6
