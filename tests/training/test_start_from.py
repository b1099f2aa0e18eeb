"""What a training may start from."""

import shutil

import pytest
from small_stage import MANIFEST, config, stages

from videoblip2.config import InputError
from videoblip2.features.manifest import FeatureManifest
from videoblip2.training.workspace import open_workspace


def test_a_checkpoint_is_not_trained_on_with_features_of_another_encoder(tmp_path, monkeypatch):
    made, features = stages(monkeypatch), tmp_path / "features"
    start = "train.start_from=models:/videoblip2@champion", f"data.features={features}"
    shutil.copytree(made.root / "features", features)
    assert open_workspace(config(made.root, "scst", *start)).parent
    FeatureManifest.model_validate(MANIFEST | {"clip": {"name": "another", "fingerprint": "c9"}}).write(features)
    with pytest.raises(
        InputError, match=r"features of CLIP c9, models:/videoblip2@champion was trained on those of c1"
    ):
        open_workspace(config(made.root, "scst", *start))
