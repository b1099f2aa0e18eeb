"""The code that MLflow stores with a checkpoint and runs to load it: media or feature files in, captions out."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from videoblip2.config import Decoding

FEATURES = ".npy"
BATCH = 32  # rows decoded together


class CaptionModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Captions rows with `video` (and `audio`), files that the process can read, as `vb2 caption` does.

    `video` is a media file, or with `.npy` features [F, video width]; `audio` is then features [A, audio width] or
    nothing. Parameters: `prompt` (empty = the model's own) and `num_beams`.
    """

    def load_context(self, context: Any) -> None:
        """Load the checkpoint folder stored beside this code."""
        from videoblip2.predict import load_captioner

        self.captioner = load_captioner(context.artifacts["checkpoint"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row with `caption` and `score` for each row of the input."""
        given = params or {}
        options = given.get("prompt") or None, Decoding(int(given.get("num_beams") or 1))
        rows = model_input.to_dict("records")
        batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        captions = [caption for batch in batches for caption in self._caption(batch, *options)]
        return pd.DataFrame({"caption": [c.text for c in captions], "score": [c.score for c in captions]})

    def _caption(self, rows: list[dict[str, Any]], prompt: str | None, decoding: Decoding) -> list[Any]:
        """A caption a row, in order; feature files and media files are decoded as one batch each."""
        stored = [n for n, row in enumerate(rows) if str(row["video"]).endswith(FEATURES)]
        media = [n for n in range(len(rows)) if n not in stored]
        captions: dict[int, Any] = {}
        if stored:
            items = [self._read(rows[n]) for n in stored]
            captions |= zip(stored, self.captioner.caption(items, prompt, decoding), strict=True)
        if media:
            paths = [Path(rows[n]["video"]) for n in media]
            captions |= zip(media, self.captioner.caption_media(paths, prompt, decoding), strict=True)
        return [captions[n] for n in range(len(rows))]

    def _read(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """([F, video width], [A, audio width]); a row without `audio` has no sound, A = 0."""
        if isinstance(row.get("audio"), str) and row["audio"]:
            return _features(row["video"]), _features(row["audio"])
        return _features(row["video"]), np.zeros((0, self.captioner.model.config.audio_dim), np.float32)


def _features(path: str) -> np.ndarray:
    features: np.ndarray = np.load(Path(path), allow_pickle=False)
    return features


mlflow.models.set_model(CaptionModel())
