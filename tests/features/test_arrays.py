"""One array of features → a feature store."""

import json

import numpy as np
import pytest

from videoblip2.config import InputError
from videoblip2.features.arrays import import_arrays
from videoblip2.features.check import check_features
from videoblip2.features.store import FeatureStore


@pytest.fixture
def given(tmp_path):
    """Three videos of five frames, 384 wide, in half precision; their ids."""
    features = np.random.default_rng(0).normal(size=(3, 5, 384)).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    (tmp_path / "ids.json").write_text(json.dumps(["video0", "video10", "video2"]))
    return tmp_path, features


def test_rows_reach_their_videos_filled_up_with_zeros(given):
    folder, features = given
    assert import_arrays(folder / "features.npy", folder / "ids.json", folder / "store") == 3
    store = FeatureStore(folder / "store")
    assert store.ids == ["video0", "video2", "video10"]
    np.testing.assert_array_equal(store.array("video", "video10")[:, :384], features[1])
    assert not store.array("video", "video10")[:, 384:].any()
    assert store.array("audio", "video0").shape == (0, 512)
    report = check_features(folder / "store")
    assert report.ok and report.absent == ["video0", "video2", "video10"]


def test_audio_of_the_same_videos(given):
    folder, _ = given
    np.save(folder / "audio.npy", np.ones((3, 2, 512), np.float32))
    import_arrays(folder / "features.npy", folder / "ids.json", folder / "store", folder / "audio.npy")
    assert FeatureStore(folder / "store").array("audio", "video2").tolist() == np.ones((2, 512)).tolist()


@pytest.mark.parametrize(
    ("ids", "reason"),
    [(["a", "b"], "not 3 different"), (["a", "b", "a"], "not 3 different"), (["a", "b", "../c"], "file name")],
)
def test_ids_that_do_not_fit(given, ids, reason):
    folder, _ = given
    (folder / "ids.json").write_text(json.dumps(ids))
    with pytest.raises(InputError, match=reason):
        import_arrays(folder / "features.npy", folder / "ids.json", folder / "store")
    assert not (folder / "store").exists()


@pytest.mark.parametrize("shape", [(3, 384), (3, 5, 0)])
def test_another_shape_is_refused(given, shape):
    folder, _ = given
    np.save(folder / "features.npy", np.zeros(shape, np.float32))
    with pytest.raises(InputError, match=r"videos, rows, width"):
        import_arrays(folder / "features.npy", folder / "ids.json", folder / "store")


def test_audio_of_other_videos_is_refused(given):
    folder, _ = given
    np.save(folder / "audio.npy", np.ones((2, 2, 512), np.float32))
    with pytest.raises(InputError, match="same videos"):
        import_arrays(folder / "features.npy", folder / "ids.json", folder / "store", folder / "audio.npy")
