"""What a training may start from."""

import shutil

import pytest
from forked import processes
from small_stage import MANIFEST, config, stages

from videoblip2.config import InputError
from videoblip2.features.manifest import FeatureManifest
from videoblip2.tracking.mlflow import models
from videoblip2.training.stage import open_stage
from videoblip2.training.workspace import open_workspace

CHAMPION = "models:/videoblip2@champion"


def test_a_checkpoint_is_not_trained_on_with_features_of_another_encoder(tmp_path, monkeypatch):
    made, features = stages(monkeypatch), tmp_path / "features"
    start = f"train.start_from={CHAMPION}", f"data.features={features}"
    shutil.copytree(made.root / "features", features)
    assert open_workspace(config(made.root, "scst", *start)).parent
    FeatureManifest.model_validate(MANIFEST | {"clip": {"name": "another", "fingerprint": "c9"}}).write(features)
    with pytest.raises(
        InputError, match=r"features of CLIP c9, models:/videoblip2@champion was trained on those of c1"
    ):
        open_workspace(config(made.root, "scst", *start))


def test_a_stage_finds_the_model_once_for_all_processes_since_an_alias_may_move(monkeypatch):
    made, found = stages(monkeypatch), iter([models.find_checkpoint(CHAMPION)])
    monkeypatch.setattr(models, "find_checkpoint", lambda model: next(found))

    def opens(world):
        if not world.leads:
            next(found)
        ready = open_stage("scst", config(made.root, "scst", f"train.start_from={CHAMPION}"))
        assert (ready.work.parent.version, ready.work.config.train.start_from) == ("videoblip2/1", CHAMPION)

    assert processes(2, opens) == [0, 0]
