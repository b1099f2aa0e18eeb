"""A registry with two versions of a small random model, features and toy videos: what the serving benchmark serves."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import InstructBlipQFormerConfig, T5Config

from videoblip2.features.encoders import load_clap, load_clip
from videoblip2.features.extract import extract_features
from videoblip2.features.media_features import Encoders, FeatureSettings
from videoblip2.model.checkpoint import Checkpoint, save_checkpoint
from videoblip2.model.configuration import VideoBlip2Config
from videoblip2.model.network import VideoBlip2
from videoblip2.model.tokenizers import QFORMER_FOLDER, Tokenizers, load_tokenizers
from videoblip2.provenance import Provenance
from videoblip2.registry.versions import register, set_champion
from videoblip2.toy.networks import build_toy_clap, build_toy_clip
from videoblip2.toy.world import write_toy_world
from videoblip2.tracking import RunSpec, open_run

ROOT = Path(__file__).resolve().parents[1]
WIDTH, LAYERS, HEADS = 128, 2, 4
VIDEOS = 12


def make_world(out: Path, versions: int = 2) -> None:
    """Write `mlflow.db`, `videos/`, `features/`; version 1 is champion. Versions differ in their random weights."""
    write_toy_world(out, VIDEOS, 0)
    build_toy_clip(out / "clip", 0)
    build_toy_clap(out / "clap", 0)
    settings = FeatureSettings(fps=4, window_seconds=1)
    encoders = Encoders(load_clip(out / "clip"), load_clap(out / "clap"), settings)
    extract_features(sorted((out / "videos").glob("*.mp4")), out / "features", encoders)
    folder = ROOT / "tests" / "golden" / "tokenizers"
    tokenizers = load_tokenizers(folder, folder / QFORMER_FOLDER)
    for seed in range(versions):
        checkpoint = Checkpoint(small_model(tokenizers, seed), tokenizers, {}, {}, Provenance(features=encoders.origin))
        save_checkpoint(out / f"model{seed}", checkpoint)
        with open_run(RunSpec("ce", f"model{seed}", "serving")) as tracker:
            register(tracker.log_checkpoint(out / f"model{seed}", f"model{seed}", {}))
    set_champion("videoblip2", 1)


def small_model(tokenizers: Tokenizers, seed: int) -> VideoBlip2:
    """The toy experiments' size with random weights; logits of unit variance, so that captions differ."""
    torch.manual_seed(seed)
    qformer = InstructBlipQFormerConfig(
        vocab_size=len(tokenizers.bert),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        cross_attention_frequency=1,
        encoder_hidden_size=768,
    ).to_dict()
    text = T5Config(
        vocab_size=len(tokenizers.text),
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=2 * WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    config = VideoBlip2Config(
        text_config=text,
        video_qformer_config=qformer,
        audio_qformer_config=dict(qformer),
        num_queries=8,
        max_positions=64,
        separate_lm_head=True,
    )
    model = VideoBlip2(config)
    torch.nn.init.normal_(model.language_model.lm_head.weight, std=WIDTH**-0.5)
    return model.eval()


def random_item(rng: np.random.Generator) -> tuple[Any, Any]:
    """([F,768], [A,512]) with lengths as of videos of 5 to 30 seconds."""
    frames = int(rng.integers(5, 31))
    return rng.normal(size=(frames, 768)).astype("float32"), rng.normal(size=(frames, 512)).astype("float32")
