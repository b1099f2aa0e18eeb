"""The feature store and its check: what is read, and what is refused by name."""

import json

import numpy as np
import pytest

from videoblip2.config import InputError
from videoblip2.features.manifest import FeatureManifest
from videoblip2.features.pack import import_arrays
from videoblip2.features.store import (
    FeatureStore,
    check_features,
    digest,
    refuse_other_encoders,
    write_features,
)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for number, windows in ((2, 3), (10, 0)):
        video, audio = rng.normal(size=(4, 768)), rng.normal(size=(windows, 512))
        write_features(
            tmp_path, f"video{number}", {"video": video.astype(np.float32), "audio": audio.astype(np.float32)}
        )
    return tmp_path


def test_features_come_back(root):
    store = FeatureStore(root)
    assert store.ids == ["video2", "video10"]
    assert store.array("video", "video2").shape == (4, 768) and store.array("video", "video2").dtype == np.float32
    assert store.array("audio", "video2").shape == (3, 512) and store.array("audio", "video10").shape == (0, 512)
    expected = np.random.default_rng(0).normal(size=(4, 768)).astype(np.float32)
    np.testing.assert_array_equal(store.array("video", "video2"), expected)
    assert not list(root.rglob("*.part"))


def test_the_manifest_is_optional(root):
    assert FeatureStore(root).manifest is None
    FeatureManifest.model_validate({"videos": {"video2": {"audio": "present"}}}).write(root)
    assert FeatureStore(root).manifest.videos["video2"].audio == "present"
    for content in ("{", "[]", "{}"):
        (root / "manifest.json").write_text(content)
        with pytest.raises(InputError, match=r"manifest\.json"):
            _ = FeatureStore(root).manifest


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_floats_are_taken(root, kind):
    np.save(root / "video" / "video2.npy", np.ones((2, 768), kind))
    assert FeatureStore(root).array("video", "video2").dtype == np.float32


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 512), np.float32), r"shape \[4, 512\], expected \[rows, 768\]"),
        (np.ones(768, np.float32), r"shape \[768\]"),
        (np.full((4, 768), np.nan, np.float32), "NaN"),
        (np.full((4, 768), np.inf, np.float32), "NaN or infinity"),
        (np.ones((4, 768), np.int64), "int64, not floating-point"),
        (np.array([[{"a": 1}]], object), r"not a plain \.npy"),
        (np.zeros((0, 768), np.float32), "has no rows"),
    ],
)
def test_an_unusable_array_is_named(root, array, message):
    np.save(root / "video" / "video2.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message) as caught:
        FeatureStore(root).array("video", "video2")
    assert str(root / "video" / "video2.npy") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_named(root, content):
    (root / "audio" / "video2.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"audio/video2\.npy: not a plain \.npy"):
        FeatureStore(root).array("audio", "video2")


def test_a_missing_video_is_named(root):
    (root / "audio" / "video2.npy").unlink()
    with pytest.raises(InputError, match=r"video2 has no audio features .*\[0, 512\]"):
        FeatureStore(root).array("audio", "video2")
    for name in ("video3", "../video/video2"):
        with pytest.raises(InputError, match="no video features"):
            FeatureStore(root).array("video", name)
    with pytest.raises(InputError, match="vb2 features extract"):
        FeatureStore(root / "nowhere")


def test_the_digest_follows_content_and_choice_but_not_order(root):
    store = FeatureStore(root)
    both = digest(store, ["video2", "video10"])
    assert len(both) == 12 and both == digest(store, ["video10", "video2"]) != digest(store, ["video2"])
    write_features(root, "video10", {"video": np.ones((1, 768), np.float32), "audio": np.zeros((0, 512), np.float32)})
    assert digest(store, ["video2", "video10"]) != both


def test_check_sorts_videos_by_what_is_wrong(root):
    write_features(
        root, "video11", {"video": np.full((4, 768), np.nan, np.float32), "audio": np.zeros((0, 512), np.float32)}
    )
    write_features(root, "video12", {"video": np.ones((7, 768), np.float32), "audio": np.ones((5, 512), np.float32)})
    FeatureManifest.model_validate({"videos": {"video2": {"audio": "silent"}, "video12": {"audio": "silent"}}}).write(
        root
    )
    report = check_features(root, ["video2", "video3", "video10", "video11"])
    assert not report.ok and report.videos == 2 and report.frames == (4, 4) and report.audio_windows == (0, 3)
    assert report.missing == ["video3"] and list(report.unusable) == ["video11"] and "NaN" in report.unusable["video11"]
    assert report.silent == ["video2"] and report.absent == ["video10"] and report.unannotated == ["video12"]


def test_check_of_a_sound_store(root):
    report = check_features(root)
    assert report.ok and report.videos == 2 and report.absent == ["video10"] and not report.unannotated
    json.dumps(vars(report))


def made_with(clip="a", **settings):
    return {"clip": {"fingerprint": clip}, "clap": {"fingerprint": "b"}, "settings": settings, "videos": {}}


def store_of(root, manifest):
    if manifest:
        (root / "manifest.json").write_text(json.dumps(manifest))
    return FeatureStore(root)


IMPORTED = {"imported_from": "x.npy", "videos": {}}


@pytest.mark.parametrize("same", [made_with(fps=2), made_with(output="projected"), None, IMPORTED])
def test_a_store_of_the_encoders_that_a_checkpoint_was_trained_on(root, same):
    refuse_other_encoders(store_of(root, same), FeatureManifest.model_validate(made_with()).origin, "runs/ce/best")


@pytest.mark.parametrize("other", [made_with("c"), made_with(output="hidden"), made_with(tokens="patch")])
def test_a_store_of_other_encoders_than_the_checkpoint_was_trained_on(root, other):
    store = store_of(root, other)
    refuse_other_encoders(store, None, "runs/ce/best")
    with pytest.raises(InputError, match="runs/ce/best was trained on those of"):
        refuse_other_encoders(store, FeatureManifest.model_validate(made_with()).origin, "runs/ce/best")


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
