"""Load the two frozen encoders with transformers: a vision tower for frames, an audio tower for windows of sound.

Each comes from a local folder or the hub. The options are called clip and clap after the usual encoders, but any tower
that returns one vector per frame or window works.
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
from videoblip2.imports import LightMeta, hub_answers, quiet_transformers
from videoblip2.provenance import EncoderIdentity

DTYPES = ("float32", "bfloat16", "float16")
#: Model type → the class of the tower alone, for models with several towers or whose AutoModel lacks the projection.
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
        dtype: "float32", "bfloat16" or "float16", of weights and computation. The fingerprint is of the stored weights.
        output: "projected" or "hidden"; no difference for a model without a projection.
        tokens: "pooled" or "patch"; see `FrameEncoder.encode_pixels`.

    Raises `InputError` if it cannot be loaded, weights are missing, or the processor belongs to another model.
    """
    pair = _load_pair("AutoImageProcessor", name_or_folder, device, revision, dtype)
    return _checked(FrameEncoder(*pair, output=output, tokens=tokens))


def load_clap(
    name_or_folder: str | Path, device: str = "cpu", revision: str | None = None, dtype: str = "float32"
) -> SoundEncoder:
    """Load an audio tower and its feature extractor from a folder or the hub; see `load_clip`."""
    return _checked(SoundEncoder(*_load_pair("AutoFeatureExtractor", name_or_folder, device, revision, dtype)))


def _checked(encoder: E) -> E:
    """Run the encoder once: with a processor of another model it would fail minutes later, or give wrong features."""
    config, processor = encoder.model.config, encoder.processor
    fault = f"{encoder.identity.name}: its preprocessor_config.json does not match its weights"
    remedy = "copy config, weights and preprocessor_config.json from one repository"
    with refused(fault, remedy, Exception):  # any layer may fail
        expected = _usual_processor(config.model_type)
        if expected and type(processor).__name__ != expected:
            raise ValueError(f"{config.model_type} needs {expected}, not {type(processor).__name__}")
        fused = getattr(processor, "truncation", None) == "fusion"
        if fused != getattr(config, "enable_fusion", False):  # fused weights would run on unfused mel filters
            raise ValueError(f"it is for {'fused' if fused else 'unfused'} CLAP, but the weights are not")
        _ = encoder.width
    return encoder


def _family(model_type: str) -> str:
    """`clip_vision_model`, the type of a tower saved alone -> `clip`, under which transformers lists its processor."""
    return re.sub("_(vision|audio)_model$", "", model_type)


def _usual_processor(model_type: str) -> Any:
    """Name of the processor class for this model type; None if transformers lists none."""
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    family = _family(model_type)
    images = IMAGE_PROCESSOR_MAPPING_NAMES.get(family, {})
    return images.get("pil") or FEATURE_EXTRACTOR_MAPPING_NAMES.get(family)


def fingerprint(model: nn.Module, preprocessor: Any) -> str:
    """16 hex digits that change if any weight or preprocessing setting changes."""
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
) -> tuple[EncoderIdentity, Any, Any]:
    """Identity, model and preprocessor."""
    folder = Path(name).is_dir()
    if not folder and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)):  # the hub's OWNER/MODEL
        raise InputError(f"{name}: no such folder, and not a hub name (OWNER/MODEL); give the encoder's folder")
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype}: not one of {', '.join(DTYPES)}; give one of these")
    config = _load("AutoConfig", name, revision)
    cached = None if folder else try_to_load_from_cache(str(name), "config.json", revision=revision)
    commit = Path(cached).parent.name if isinstance(cached, str) else revision
    processor, model = _load_processor(kind, name, commit, config), _load_tower(name, commit, config)
    remedy = "give cpu, or cuda if torch sees a GPU"
    with refused(f"device={device}: cannot be used", remedy, RuntimeError, AssertionError):
        model = model.to(device).eval().requires_grad_(False)
    full = str(Path(name).resolve()) if folder else str(name)  # found from any working directory
    identity = EncoderIdentity(name=full, revision=commit, fingerprint=fingerprint(model, processor))
    return identity, model.to(getattr(torch, dtype)), processor


def _load_processor(kind: str, name: str | Path, commit: str | None, config: Any) -> Any:
    from transformers import AutoConfig

    family = _family(config.model_type)
    config = config if family == config.model_type else AutoConfig.for_model(family)
    return _load(kind, name, commit, config=config, **({"backend": "pil"} if kind == "AutoImageProcessor" else {}))


def _load_tower(name: str | Path, commit: str | None, config: Any) -> Any:
    """The model in float32. Raises `InputError` if weights are missing, since they would be random."""
    tower = TOWERS.get(config.model_type, "AutoModel")
    model, info = _load(tower, name, commit, output_loading_info=True, dtype=torch.float32)
    model = model.get_encoder() if config.is_encoder_decoder else model
    if missing := [*sorted(info["missing_keys"]), *sorted(map(str, info["mismatched_keys"]))]:
        count, wanted = len(missing), type(model).__name__
        raise InputError(f"{name}: has no weights for {missing[0]} ({count} missing in all); give a {wanted}")
    return model


def _load(kind: str, name: str | Path, revision: str | None, **options: Any) -> Any:
    """Call `from_pretrained` of a transformers class. Raises `InputError` for any failure."""
    import transformers

    fault = f"{name}: no {kind.removeprefix('Auto')} could be loaded from it"
    remedy = "give a folder with its config, weights and preprocessor_config.json, or a hub name if you are online"
    options |= {"local_files_only": not hub_answers(str(name)), **({"revision": revision} if revision else {})}
    with refused(fault, remedy, Exception), quiet_transformers(), LightMeta():  # transformers raises many types
        return getattr(transformers, kind).from_pretrained(str(name), **options)
