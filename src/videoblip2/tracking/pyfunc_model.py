"""The code that MLflow stores with a checkpoint and runs to load it: feature files in, captions out."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

AUDIO_DIM = 512


class CaptionModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Captions rows with `video`, the path of a [F,768] .npy file, and `audio`, of an [A,512] one or nothing."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint folder stored beside this code."""
        from videoblip2.predict import load_captioner

        self.captioner = load_captioner(context.artifacts["checkpoint"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row with `caption` and `score` for each row of the input."""
        rows = model_input.to_dict("records")
        captions = self.captioner.caption([(_features(row["video"]), _audio(row.get("audio"))) for row in rows])
        return pd.DataFrame({"caption": [c.text for c in captions], "score": [c.score for c in captions]})


def _features(path: str) -> np.ndarray:
    features: np.ndarray = np.load(Path(path), allow_pickle=False)
    return features


def _audio(path: Any) -> np.ndarray:
    """Return [A,512]; a row without a path has no sound, A = 0."""
    return _features(path) if isinstance(path, str) and path else np.zeros((0, AUDIO_DIM), np.float32)


mlflow.models.set_model(CaptionModel())
