"""A workspace small enough to train in a test, and a tracker that remembers."""

import copy

import numpy as np
import torch

from videoblip2.config import parse_config
from videoblip2.data.annotations import VideoAnnotation
from videoblip2.tracking import Tracker
from videoblip2.training.ce import ce_step
from videoblip2.training.workspace import Workspace

VIDEOS = {
    "video0": ("a red circle moves left", "the red circle moves", "a circle moves left"),
    "video1": ("a blue square jumps", "the blue square jumps and beeps play", "a square jumps"),
    "video2": ("the star is quiet", "a star is quiet", "the quiet star"),
    "video3": ("a dog barks at a man", "the dog barks", "a man and a dog"),
}
SETTINGS = (
    "train.steps=6",
    "train.batch_size=2",
    "train.validate_every=3",
    "train.log_every=2",
    "train.save_every=2",
    "optim.warmup_steps=2",
    "optim.lr=0.003",
    "decode.max_new_tokens=12",
    "data.max_caption_tokens=16",
    "data.annotations=nowhere",
    "scst.samples=3",
    "device=cpu",
    "seed=5",
)


class Features:
    """Seeded features of any video id."""

    def features(self, video_id):
        return {"video": self._draw(video_id, 5, 24), "audio": self._draw(video_id, 2, 12)}

    def _draw(self, video_id, length, width):
        rng = np.random.default_rng([int(video_id[5:]), width])
        return rng.normal(size=(length, width)).astype("float32")


def workspace(model, tokenizers, *overrides):
    """A workspace around a copy of the network, as if it had just been opened."""
    config = parse_config({}, [*SETTINGS, *overrides])
    torch.manual_seed(config.seed)
    videos = [VideoAnnotation(video_id, 0, captions) for video_id, captions in VIDEOS.items()]
    entries = {"captions": videos}
    return Workspace(config, torch.device("cpu"), copy.deepcopy(model), tokenizers, Features(), entries, entries)


TAUGHT = {}


def teach(model, tokenizers):
    """Cross-entropy without dropout, so that samples are words, end, and earn rewards; once a test session."""
    if not TAUGHT:
        work = workspace(model, tokenizers, "train.batch_size=4", "data.captions_per_video=2")
        work.model.train = lambda mode=True: work.model
        optimizer = torch.optim.AdamW(work.model.trainable().values(), lr=5e-3)
        for step in range(60):
            for part in ce_step(work, work.batches(step), step):
                part.loss.backward()
            torch.nn.utils.clip_grad_norm_(work.model.trainable().values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        TAUGHT.update(work.model.eval().state_dict())
    model.load_state_dict(TAUGHT)
    return model


class Remember(Tracker):
    """Keeps points, tables and tags in lists."""

    def __init__(self):
        self.points, self.tables, self.tags = [], [], {}

    def log_metrics(self, metrics, step):
        self.points += [(name, step, value) for name, value in metrics.items()]

    def log_table(self, name, rows):
        self.tables.append((name, list(rows)))

    def set_tags(self, tags):
        self.tags.update(tags)
