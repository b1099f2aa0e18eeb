"""Small CLIP and CLAP models with random weights, in the same classes as real ones, for runs without a network.

At its usual initialisation (std 0.02) a random transformer gives nearly the same vector for every input. Larger
weights, kernels that see shape and colour, and a calibrated output keep the toy world's content visible.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from videoblip2.features.media import SAMPLING_RATE
from videoblip2.features.media_features import FeatureSettings
from videoblip2.imports import quiet_transformers
from videoblip2.modality import MODALITIES

TOY_SETTINGS = FeatureSettings(fps=4.0, window_seconds=1.0)  # toy videos last 2 to 3 s

IMAGE_SIZE, PATCH = 64, 16  # pixels
POSITION_STD = 3.0
GREY_KERNELS = 0.7  # part of the patch kernels
SMOOTHING = 5  # pixels
MEL_BINS, SPECTROGRAM = 64, 64  # HTSAT's input side; 1 s of audio makes 51 columns, which it stretches to 64
CALIBRATION = 256  # random pictures or sounds


def build_toy_clip(folder: str | Path, seed: int) -> Path:
    """Write a random `CLIPVisionModelWithProjection` (64 px, projection 768) and its image processor to `folder`.

    Its patch kernels are smoothed, as pictures are smooth; most see grey, and respond to shape whatever its colour.
    """
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"image_size": IMAGE_SIZE, "patch_size": PATCH, "projection_dim": MODALITIES["video"].width}
    model = _random_model(CLIPVisionModelWithProjection, CLIPVisionConfig(**sizes), seed, gain=1.0)
    _shape_kernels(model.vision_model.embeddings.patch_embedding.weight)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side)
    pixels = processor(images=list(_random_pictures(seed)), return_tensors="pt")["pixel_values"]
    _calibrate(model.vision_model.post_layernorm, lambda: model(pixel_values=pixels))
    return _save(folder, model, processor)


def build_toy_clap(folder: str | Path, seed: int) -> Path:
    """Write a random `ClapAudioModelWithProjection` (1 s windows, projection 512) and its extractor to `folder`.

    HTSAT has no absolute positions: its first batch norm gets a random scale and shift for each mel bin instead. Its
    patch norm, which would remove loudness, is off.
    """
    from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

    sizes = {"num_mel_bins": MEL_BINS, "spec_size": SPECTROGRAM, "window_size": 4, "patch_size": 8}
    sizes |= {"patch_embeds_hidden_size": 64, "hidden_size": 128, "num_hidden_layers": 2}
    sizes |= {"projection_dim": MODALITIES["audio"].width, "enable_patch_layer_norm": False}
    config = ClapAudioConfig(**sizes, patch_stride=(8, 8), depths=(2, 2), num_attention_heads=(4, 4))
    model = _random_model(ClapAudioModelWithProjection, config, seed, gain=1.5)
    norm, generator = model.audio_model.audio_encoder.batch_norm, torch.Generator().manual_seed(seed)
    with torch.no_grad():  # decibels (about -100 … 40) to unit scale, then a random scale and shift for each mel bin
        norm.running_mean.fill_(-30)
        norm.running_var.fill_(900)
        norm.weight.normal_(0, 1, generator=generator)
        norm.bias.normal_(0, 1, generator=generator)
    extractor = ClapFeatureExtractor(feature_size=MEL_BINS, hop_length=960, max_length_s=1, truncation="rand_trunc")
    mels = extractor(list(_random_sounds(seed)), sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"]
    _calibrate(model.audio_projection.linear1, lambda: model(input_features=mels.float()))
    return _save(folder, model, extractor)


def _save(folder: str | Path, model: Any, preprocessor: Any) -> Path:
    folder = Path(folder)
    with quiet_transformers():
        model.save_pretrained(folder)
        preprocessor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _random_model(kind: Any, config: Any, seed: int, gain: float) -> Any:
    """std gain / sqrt(fan in) for linear maps and convolutions, 0.1 for biases, `POSITION_STD` for embeddings.

    Positions are stronger than patches, so the MLPs mix content with position: the pooled vector shows what is where.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # what is not drawn anew below, such as the class token
        torch.manual_seed(seed)
        model = kind(config).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, gain / math.sqrt(fan_in), generator=generator)
            if module.bias is not None:
                module.bias.normal_(0, 0.1, generator=generator)
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, POSITION_STD, generator=generator)
    return model


@torch.no_grad()
def _shape_kernels(weight: torch.Tensor) -> None:
    """Smooth kernels [D,3,P,P]; make the last `GREY_KERNELS` of them alike in the three colours, at the same energy."""
    grey = weight[-int(GREY_KERNELS * len(weight)) :]
    grey.copy_((grey.mean(1, keepdim=True) * math.sqrt(3)).expand_as(grey))
    weight.copy_(nn.functional.avg_pool2d(weight, SMOOTHING, stride=1, padding=SMOOTHING // 2) * SMOOTHING)


@torch.no_grad()
def _calibrate(module: nn.LayerNorm | nn.Linear, run: Callable[[], object]) -> None:
    """Give a module's outputs while `run` runs mean 0 and variance 1, as in LSUV (Mishkin & Matas 2016)."""
    seen: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    run()
    hook.remove()
    outputs = torch.cat(seen).flatten(0, -2)
    scale = 1 / (outputs.std(0) + 1e-3)
    module.weight.mul_(scale[:, None] if isinstance(module, nn.Linear) else scale)
    module.bias.copy_((module.bias - outputs.mean(0)) * scale)


def _random_pictures(seed: int) -> NDArray[np.uint8]:
    """uint8 [256, 64, 64, 3]: each has one rectangle of random place, size and colour on a dark ground."""
    rng = np.random.default_rng([seed, 0])
    pictures = np.empty((CALIBRATION, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for picture in pictures:
        picture[:] = rng.integers(20, 80, 3)
        (x, y), (width, height) = rng.integers(0, 48, 2), rng.integers(10, 30, 2)
        picture[y : y + height, x : x + width] = rng.integers(0, 256, 3)
    return pictures


def _random_sounds(seed: int) -> list[NDArray[np.float32]]:
    """256 sounds of one second: each is a tone of random pitch and loudness in noise of random loudness."""
    rng = np.random.default_rng([seed, 1])
    time = np.arange(SAMPLING_RATE) / SAMPLING_RATE
    sounds = []
    for _ in range(CALIBRATION):
        pitch = np.exp(rng.uniform(np.log(80), np.log(8000)))
        loudness, noise = rng.random(), 10 ** rng.uniform(-4, -0.5)
        sound = loudness * np.sin(2 * np.pi * pitch * time) + noise * rng.normal(size=len(time))
        sounds.append(sound.astype(np.float32))
    return sounds
