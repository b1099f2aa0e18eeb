"""The services that benchmarks/serving.py compares with: same model, no queue of our own.

`Plain` is what people write: one request, one `generate`. `Batched` leaves batching to BentoML (`batchable=True`).
PLAIN_MODEL names the checkpoint folder.
"""

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import torch
from common import generate as generated

from videoblip2.captioner import Captioner
from videoblip2.config import Decoding
from videoblip2.data.batches import collate
from videoblip2.modality import Features
from videoblip2.predict import load_captioner

NEW_TOKENS = 16


@bentoml.service(name="plain", workers=1, traffic={"timeout": 300})
class Plain:
    """One request, one `generate` of transformers, on one item."""

    def __init__(self) -> None:
        self.captioner = load_captioner(os.environ["PLAIN_MODEL"])
        self.captioner.warm()

    @bentoml.api
    def caption(self, video_features: Path, audio_features: Path) -> dict[str, Any]:
        files = {"video": video_features, "audio": audio_features}
        item = {name: np.load(file, allow_pickle=False) for name, file in files.items()}
        return {"caption": generate(self.captioner, item)}

    @bentoml.api
    def caption_media(self, video: Path) -> dict[str, Any]:
        return {"caption": generate(self.captioner, self.captioner.media_encoders.encode_file(video))}


@bentoml.service(name="batched", workers=1, traffic={"timeout": 300})
class Batched:
    """BentoML's adaptive batching in front of this project's decoder; safetensors, since it takes one argument."""

    def __init__(self) -> None:
        self.captioner = load_captioner(os.environ["PLAIN_MODEL"])
        self.captioner.warm()

    @bentoml.api(batchable=True, max_batch_size=32)
    def caption(self, features: list[Path]) -> list[dict[str, Any]]:
        from safetensors.numpy import load_file

        items = [load_file(path) for path in features]
        captions = self.captioner.caption(items, decoding=Decoding(max_new_tokens=NEW_TOKENS))
        return [{"caption": caption.text} for caption in captions]


def generate(captioner: Captioner, item: Features) -> str:
    """Greedy, by transformers."""
    model = captioner.model
    batch = collate(["0"], [item], [model.config.prompt], captioner.tokenizers, model.config.max_positions)
    with torch.inference_mode():
        encoded = model.encode(**batch.to(model.device).inputs)
        ids = generated(model, *encoded, max_new_tokens=NEW_TOKENS, num_beams=1, do_sample=False)
    return captioner.tokenizers.texts(ids)[0]
