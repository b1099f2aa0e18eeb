"""A small world for the gate: annotations, features, and logged checkpoints whose captions are written beside them."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tracking_store import place_store, write_checkpoint

from videoblip2.captioner import Caption, Captioner
from videoblip2.features.store import write_features
from videoblip2.predict import OpenModel
from videoblip2.provenance import Provenance
from videoblip2.registry import verdict_files, versions
from videoblip2.registry.promote import Promotion, Request, promote
from videoblip2.tracking import RunSpec, open_run

NOUNS = ("dog", "cat", "car", "star", "ball", "bird", "man", "girl", "boat", "horse", "train", "drum")
REFERENCES = {
    f"video{n}": [f"a {noun} moves to the left side", f"the {noun} moves left slowly", f"a small {noun} moves left"]
    for n, noun in enumerate(NOUNS)
}
GOOD = {video: texts[0] for video, texts in REFERENCES.items()}
FAIR = {video: f"a {NOUNS[n]} is over there right now" for n, video in enumerate(REFERENCES)}
POOR = dict.fromkeys(REFERENCES, "nothing can be seen here")
QUESTIONS = {str(n): (f"video{n}", f"what moves in scene {n}?", noun) for n, noun in enumerate(NOUNS)}
RIGHT = {question: answer for question, (_, _, answer) in QUESTIONS.items()}
HALF = {question: answer if int(question) % 2 else "nothing" for question, answer in RIGHT.items()}
GATE = {"guards": {}, "max_latency_ratio": None, "resamples": 500}


def made_with(clip: str) -> dict[str, object]:
    """The manifest of a store whose features the encoder with this fingerprint made."""
    videos = {video: {} for video in REFERENCES}
    return {"clip": {"fingerprint": clip}, "clap": {"fingerprint": "clap"}, "videos": videos}


class SaidCaptions(Captioner):
    """A captioner without a network: what it says of a video or question is in its checkpoint's captions.json."""

    def __init__(self, opened: OpenModel) -> None:
        config = SimpleNamespace(modality_names=("video", "audio"))
        super().__init__(SimpleNamespace(config=config), None, Provenance.read(opened.folder), opened.name)
        self.captions = json.loads((opened.folder / "captions.json").read_text())

    def in_batches(self, entries, source, decode):
        for key, *_ in entries:
            yield key, Caption(self.captions[key], 0.0)


class Gatehouse:
    """The store, the data, and the way to log and promote models in it."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, plots: bool = False) -> None:
        self.root = place_store(root, patch)
        patch.setattr(OpenModel, "captioner", property(SaidCaptions))
        patch.setattr(versions, "SETTLE_SECONDS", 0.0)
        if not plots:  # drawing takes longer than all the rest
            patch.setattr(verdict_files, "plot", lambda path, verdict, gate: None)
        self.write_data("data")
        self.gate = root / "gate.yaml"
        self.gate.write_text(json.dumps(GATE))

    def write_data(self, name: str, references: Mapping[str, list[str]] = REFERENCES, feature: float = 1.0) -> None:
        """Annotations in NAME, features in NAME/features."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        rows = [{"video_id": video, "category": 0, "captions": texts} for video, texts in references.items()]
        asked = [
            {"question_id": key, "video_id": video, "question": question, "answer": answer}
            for key, (video, question, answer) in QUESTIONS.items()
            if video in references
        ]
        for split in ("train", "val"):
            (folder / f"{split}.json").write_text(json.dumps(rows))
            (folder / f"{split}_qa.json").write_text(json.dumps(asked))
        for video in references:
            audio = np.zeros((0, 512), np.float32)
            frames = np.full((1, 768), feature, np.float32)
            write_features(folder / "features", video, {"video": frames, "audio": audio})

    def log(self, name: str, said: Mapping[str, str], data: str = "data", clip: str = "", task: str = "caption") -> str:
        """A run that logged a checkpoint saying this, trained on features of CLIP `clip`; its run id."""
        folder = write_checkpoint(self.root / name)
        features = made_with(clip) if clip else None
        Provenance.model_validate({"name": name, "features": features}).write(folder)
        (folder / "captions.json").write_text(json.dumps(said))
        paths = {"annotations": str(self.root / data), "features": str(self.root / data / "features")}
        (folder / "config.yaml").write_text(json.dumps({"data": {**paths, "task": task}}))
        with open_run(RunSpec("ce", name, "toy")) as tracker:
            tracker.log_checkpoint(folder, name, {})
        return str(tracker.run_id)

    def promote(self, run: str, progress=None, **request) -> Promotion:
        """The gate of this world."""
        asked = Request(run, gate_file=self.gate, **request)
        return promote(asked, progress) if progress else promote(asked)
