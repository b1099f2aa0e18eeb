"""The pyfunc that MLflow stores with a checkpoint: media or feature files in, captions out."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from videoblip2.modality import MODALITIES, Features
from videoblip2.predict import load_captioner

BATCH = 32  # rows decoded together


class CaptionModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Captions the files named in each row, as `vb2 caption` does.

    `video` is a media file, or `.npy` features; the other modalities are then `.npy` features too, or empty if
    missing. Parameters: `prompt` (empty = the model's own) and `num_beams` (0 = the model's own).
    """

    def load_context(self, context: Any) -> None:
        """Load the checkpoint folder stored beside this code."""
        self.captioner = load_captioner(context.artifacts["checkpoint"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row with `caption` and `score` for each row of the input."""
        given = params or {}
        decoding = self.captioner.model.decoding.but(num_beams=given.get("num_beams") or None)
        options = given.get("prompt") or None, decoding
        rows = model_input.to_dict("records")
        batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        captions = [c for batch in batches for c in self.captioner.caption(list(map(self._features, batch)), *options)]
        return pd.DataFrame({"caption": [c.text for c in captions], "score": [c.score for c in captions]})

    def _features(self, row: dict[str, Any]) -> Features:
        """The features of a row's media file, or from its .npy files; without `audio` the video has no sound."""
        if not str(row["video"]).endswith(".npy"):
            return self.captioner.media_encoders.encode_file(Path(row["video"]))
        paths = {name: row[name] for name in MODALITIES if isinstance(row.get(name), str) and row[name]}
        return {name: np.load(Path(path), allow_pickle=False) for name, path in paths.items()}


mlflow.models.set_model(CaptionModel())
