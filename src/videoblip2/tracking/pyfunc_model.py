"""The code that MLflow stores with a checkpoint and runs to load it: media or feature files in, captions out."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

FEATURES = ".npy"


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
        options = {"prompt": given.get("prompt") or None, "num_beams": int(given.get("num_beams") or 1)}
        captions = [self._caption(row, options) for row in model_input.to_dict("records")]
        return pd.DataFrame({"caption": [c.text for c in captions], "score": [c.score for c in captions]})

    def _caption(self, row: dict[str, Any], options: dict[str, Any]) -> Any:
        """One row alone, as `vb2 caption` does: in a batch, padding moves the last digits of a score."""
        video, audio = row["video"], row.get("audio")
        if not str(video).endswith(FEATURES):
            return self.captioner.caption_media([Path(video)], **options)[0]
        silent = np.zeros((0, self.captioner.model.config.audio_dim), np.float32)
        sound = _features(audio) if isinstance(audio, str) and audio else silent
        return self.captioner.caption([(_features(video), sound)], **options)[0]


def _features(path: str) -> np.ndarray:
    features: np.ndarray = np.load(Path(path), allow_pickle=False)
    return features


mlflow.models.set_model(CaptionModel())
