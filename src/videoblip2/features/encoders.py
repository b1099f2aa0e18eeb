"""The two frozen encoders: a vision tower of transformers for frames, and an audio tower for windows of sound.

They are loaded from any folder in the standard format or by hub name. The slots are called clip and clap after the
usual encoders; any tower will do that gives one vector a frame or a window.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from videoblip2.errors import InputError, refused
from videoblip2.features.towers import FrameEncoder, SoundEncoder
from videoblip2.imports import LightMeta, quiet_transformers

DTYPES = ("float32", "bfloat16", "float16")
#: Models with more than one tower, or whose AutoModel lacks the projection: the class that is just the tower.
TOWERS = {
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "metaclip_2": "MetaClip2VisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
    "clap": "ClapAudioModelWithProjection",
    "clap_audio_model": "ClapAudioModelWithProjection",
}
E = TypeVar("E", bound=FrameEncoder | SoundEncoder)


def load_clip(
    name_or_folder: str | Path,
    device: str = "cpu",
    revision: str | None = None,
    dtype: str = "float32",
    output: str = "projected",
    tokens: str = "pooled",
) -> FrameEncoder:
    """Load a vision tower and its image processor from a folder or the hub.

    Args:
        revision: commit, tag or branch in the hub repository.
        dtype: of weights and arithmetic: "float32", "bfloat16" or "float16". The fingerprint is of the stored weights.
        output: "projected" or "hidden"; the same for a model without a projection.
        tokens: "pooled" or "patch"; see `FrameEncoder.encode_pixels`.

    Raises `InputError` if it cannot be loaded, weights are missing, or model and processor do not fit together.
    """
    pair = _load_pair("AutoImageProcessor", name_or_folder, device, revision, dtype)
    return _tried(FrameEncoder(*pair, output=output, tokens=tokens))


def load_clap(
    name_or_folder: str | Path, device: str = "cpu", revision: str | None = None, dtype: str = "float32"
) -> SoundEncoder:
    """Load an audio tower and its feature extractor from a folder or the hub; see `load_clip`."""
    return _tried(SoundEncoder(*_load_pair("AutoFeatureExtractor", name_or_folder, device, revision, dtype)))


def _tried(encoder: E) -> E:
    """The encoder after a trial: a processor of another model would otherwise fail after minutes of work, or never."""
    config, processor = encoder.model.config, encoder.processor
    fault = f"{encoder.name}: its preprocessor_config.json does not fit its weights"
    remedy = "copy config, weights and preprocessor_config.json from one repository"
    with refused(fault, remedy, Exception):  # any layer may be the one that does not fit
        expected = _usual_processor(config.model_type)
        if expected and type(processor).__name__ != expected:
            raise ValueError(f"{config.model_type} takes {expected}, that is {type(processor).__name__}")
        fused = getattr(processor, "truncation", None) == "fusion"
        if fused != getattr(config, "enable_fusion", False):  # fused weights would take unfused mel filters
            raise ValueError(f"that is for {'fused' if fused else 'unfused'} CLAP, the weights are not")
        _ = encoder.width
    return encoder


def _family(model_type: str) -> str:
    """`clip_vision_model`, a tower that was saved alone -> `clip`, by which transformers knows its processor."""
    return re.sub("_(vision|audio)_model$", "", model_type)


def _usual_processor(model_type: str) -> Any:
    """The class that prepares this model's input; None if transformers names none."""
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    family = _family(model_type)
    images = IMAGE_PROCESSOR_MAPPING_NAMES.get(family, {})
    return images.get("pil") or FEATURE_EXTRACTOR_MAPPING_NAMES.get(family)


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


def _load_pair(
    kind: str, name: str | Path, device: str, revision: str | None, dtype: str
) -> tuple[str, str, Any, Any, str | None]:
    """Name, fingerprint, model, preprocessor and commit; refused if weights are missing, which would be random."""
    folder = Path(name).is_dir()
    if not folder and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)):  # the hub's OWNER/MODEL
        raise InputError(f"{name}: no such folder, and not a hub name (OWNER/MODEL); give the encoder's folder")
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype}: not one of {', '.join(DTYPES)}; give one of these")
    from transformers import AutoConfig

    config = _load("AutoConfig", name, revision)
    cached = None if folder else try_to_load_from_cache(str(name), "config.json", revision=revision)
    commit = Path(cached).parent.name if isinstance(cached, str) else revision
    family = _family(config.model_type)
    options = {"config": config if family == config.model_type else AutoConfig.for_model(family)}
    processor = _load(kind, name, commit, **options, **({"backend": "pil"} if kind == "AutoImageProcessor" else {}))
    tower = TOWERS.get(config.model_type, "AutoModel")
    model, info = _load(tower, name, commit, output_loading_info=True, dtype=torch.float32)
    if config.is_encoder_decoder:
        model = model.get_encoder()
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise InputError(
            f"{name}: holds no weights for {missing[0]} (of {len(missing)}); give a {type(model).__name__}"
        )
    remedy = "give cpu, or cuda if torch sees a GPU"
    with refused(f"device={device}: cannot be used", remedy, RuntimeError, AssertionError):
        model = model.to(device).eval().requires_grad_(False)
    full = str(Path(name).resolve()) if folder else str(name)  # found from any working directory
    return full, fingerprint(model, processor), model.to(getattr(torch, dtype)), processor, commit


def _load(kind: str, name: str | Path, revision: str | None, **options: Any) -> Any:
    """`from_pretrained` of a class of transformers. Any failure becomes an `InputError` with its remedy."""
    import transformers

    fault = f"{name}: no {kind.removeprefix('Auto')} could be loaded from it"
    remedy = "give a folder with its config, weights and preprocessor_config.json, or a hub name if you are online"
    options |= {"revision": revision} if revision else {}
    with refused(fault, remedy, Exception), quiet_transformers(), LightMeta():  # any of its readers can fail
        return getattr(transformers, kind).from_pretrained(str(name), **options)
