"""CLIP and CLAP through transformers' own classes: parity, windows, refusals; toy encoders keep information."""

import copy
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ClapFeatureExtractor

from videoblip2.errors import InputError, validated
from videoblip2.features.encoders import load_clap, load_clip
from videoblip2.features.media_features import FeatureSettings
from videoblip2.features.towers import clap_inputs
from videoblip2.imports import quiet_transformers

RATE = 48_000


def encoded(clip, frames):
    return clip.encode_pixels([clip.pixels(frame) for frame in frames])


@pytest.fixture
def clip(encoders):
    return encoders.clip


@pytest.fixture
def clap(encoders):
    return encoders.clap


@pytest.fixture
def folders(encoders):
    return Path(encoders.clip.identity.name), Path(encoders.clap.identity.name)


def pictures(count: int, height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def test_frames_are_encoded_as_transformers_would(clip, folders):
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    frames = pictures(3)
    model = CLIPVisionModelWithProjection.from_pretrained(folders[0]).eval()
    inputs = CLIPImageProcessorPil.from_pretrained(folders[0])(images=list(frames), return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).image_embeds.numpy()
    features = encoded(clip, frames)
    assert features.shape == (3, 768) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-4)


@pytest.mark.parametrize("height, width", [(90, 120), (120, 90), (64, 64), (3, 40), (65, 64), (360, 641), (9, 2100)])
@pytest.mark.parametrize("settings", [{}, {"do_rescale": False}, {"do_normalize": False}, {"do_center_crop": False}])
def test_pixels_are_the_processors_to_the_last_bit(clip, height, width, settings):
    clip = replace(clip, processor=copy.deepcopy(clip.processor))
    for name, value in settings.items():
        setattr(clip.processor, name, value)
    frame = pictures(1, height, width)[0]
    expected = clip.processor(images=frame, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    pixels = clip.pixels(frame)["pixel_values"]
    assert pixels.shape == expected.shape and (pixels == expected).all() and pixels.std() > 0
    assert clip._levels is not None, "otherwise it would be the processor's own work"


def test_a_frame_is_resized_by_its_short_side_and_cropped_in_the_center(clip):
    frame = np.zeros((64, 128, 3), np.uint8)
    frame[:, 32:96] = 255  # just the part that a center crop keeps
    pixels = clip.pixels(frame)["pixel_values"]
    assert pixels.shape == (3, 64, 64) and pixels.min() > 1.5
    assert clip.pixels(np.zeros((640, 480, 3), np.uint8))["pixel_values"].shape == (3, 64, 64)


def test_offline_the_hub_does_not_announce_each_attempt():
    hub = logging.getLogger("huggingface_hub")
    before = hub.level
    with quiet_transformers():
        assert not hub.isEnabledFor(logging.WARNING)
    assert hub.level == before


def test_features_do_not_depend_on_the_batch(clip, clap):
    pixels = [clip.pixels(frame) for frame in pictures(5)]
    np.testing.assert_allclose(clip.encode_pixels(pixels, batch=2), clip.encode_pixels(pixels, batch=64), atol=1e-4)
    windows = [sound(1.0, seed) for seed in range(20)]
    single = np.concatenate([clap.encode_windows([window]) for window in windows])
    np.testing.assert_allclose(clap.encode_windows(windows), single, atol=1e-4)


def test_audio_is_encoded_as_transformers_would(clap, folders):
    from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

    audio = sound(2.0)
    extractor = ClapFeatureExtractor.from_pretrained(folders[1])
    mels = extractor([audio[:RATE], audio[RATE:]], sampling_rate=RATE, return_tensors="pt")["input_features"].float()
    with torch.no_grad():
        expected = ClapAudioModelWithProjection.from_pretrained(folders[1]).eval()(mels).audio_embeds.numpy()
    features = clap.encode_windows(list(clap.windows([audio], 1.0)))
    assert features.shape == (2, 512) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("seconds", "window", "lengths"),
    [
        (0, None, []),
        (0.02, None, [0.02]),
        (1.0, None, [1.0]),
        (1.05, None, [1.0]),
        (2.5, None, [1.0, 1.0, 0.5]),
        (1.0, 0.4, [0.4, 0.4, 0.2]),
    ],
)
def test_windows(clap, seconds, window, lengths):
    assert [len(w) / RATE for w in clap.windows([np.zeros(round(seconds * RATE), np.float32)], window)] == lengths


def test_no_audio_gives_no_rows_and_silence_gives_finite_ones(clap):
    assert clap.encode_windows(list(clap.windows([np.zeros(0, np.float32)]))).shape == (0, 512)
    silent = clap.encode_windows(list(clap.windows([np.zeros(2 * RATE, np.float32)])))
    assert silent.shape == (2, 512) and np.isfinite(silent).all()


def test_a_window_longer_than_the_models_is_refused(clap):
    with pytest.raises(InputError, match=r"window_seconds=10: .* takes at most 1 s; lower it"):
        list(clap.windows([sound(1.0)], 10.0))


def test_a_fused_clap_is_deterministic_and_ignores_its_neighbors(fused):
    clap = load_clap(fused)
    windows = [sound(1.0, seed) for seed in range(4)]
    together = clap.encode_windows(windows)
    for _ in range(3):
        np.testing.assert_array_equal(clap.encode_windows(windows), together)
    np.testing.assert_allclose(clap.encode_windows(windows[2:3])[0], together[2], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    """A CLAP with fusion, and its processor."""
    from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

    folder = tmp_path_factory.mktemp("fused")
    torch.manual_seed(0)
    sizes = {"patch_embeds_hidden_size": 16, "hidden_size": 32, "depths": (1, 1), "num_attention_heads": (2, 2)}
    config = ClapAudioConfig(
        spec_size=64, patch_size=8, patch_stride=(8, 8), window_size=4, enable_fusion=True,
        fusion_type="aff_2d", initializer_factor=20.0, **sizes,
    )  # fmt: skip
    ClapAudioModelWithProjection(config).save_pretrained(folder)
    ClapFeatureExtractor(hop_length=960, max_length_s=1, truncation="fusion").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("weights", "processor"),
    [("clap", "fused"), ("fused", "clap"), ("clip", "large"), ("clap", "long"), ("clap", "mels")],
)
def test_a_processor_of_another_model_is_refused_before_the_first_video(folders, fused, tmp_path, weights, processor):
    from transformers import CLIPImageProcessorPil

    have = {"clip": folders[0], "clap": folders[1], "fused": fused}
    made = {
        "large": lambda: CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}),
        "long": lambda: ClapFeatureExtractor(feature_size=64, hop_length=480, max_length_s=10, truncation="rand_trunc"),
        "mels": lambda: ClapFeatureExtractor(feature_size=80, hop_length=960, max_length_s=1, truncation="rand_trunc"),
    }
    pair = shutil.copytree(have[weights], tmp_path / "pair")
    if processor in made:
        made[processor]().save_pretrained(pair)
    else:
        shutil.copy(have[processor] / "preprocessor_config.json", pair)
    with pytest.raises(InputError, match=r"pair: its preprocessor_config.json does not match its weights") as caught:
        (load_clip if weights == "clip" else load_clap)(pair)
    assert "\n" not in str(caught.value)


def test_a_whole_clip_model_gives_its_vision_tower(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 16, "projection_dim": 768}
    text = {**small, "vocab_size": 50, "projection_dim": 768}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=768)).eval()
    model.save_pretrained(tmp_path)
    side = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side).save_pretrained(tmp_path)
    clip = load_clip(tmp_path)
    pixels = torch.from_numpy(np.stack([clip.pixels(frame)["pixel_values"] for frame in pictures(2)]))
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixels).pooler_output).numpy()
    np.testing.assert_allclose(encoded(clip, pictures(2)), expected, atol=1e-5)


def test_a_model_without_its_weights_is_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folders[0] / name).read_bytes())
    tensors = load_file(folders[0] / "model.safetensors")
    del tensors["visual_projection.weight"]  # as in a folder of the tower alone; it would stay random
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has no weights for visual_projection\.weight"):
        load_clip(tmp_path)


def test_what_is_no_such_model_is_named(folders, tmp_path):
    with pytest.raises(InputError, match="clap: no ImageProcessor could be loaded"):
        load_clip(folders[1])
    with pytest.raises(InputError, match="nowhere"):
        load_clip(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"some/hub-model: no Config could be loaded.*if you are online") as caught:
        load_clap("some/hub-model")  # tests are offline
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["clip", "/no/such/folder", "models/clip/large", "../clip"])
def test_a_folder_that_is_not_there_is_not_asked_for_at_the_hub(name):
    for load in (load_clip, load_clap):
        with pytest.raises(InputError, match=f"{name}: no such folder, and not a hub name"):
            load(name)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", ""])
def test_a_device_that_cannot_be_used_is_named(folders, device):
    with pytest.raises(InputError, match=f"device={device}: cannot be used .* give cpu") as caught:
        load_clip(folders[0], device)
    assert "\n" not in str(caught.value)


def test_a_model_without_its_preprocessor_is_refused(folders, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders[0] / name).read_bytes())
    with pytest.raises(InputError, match="no ImageProcessor could be loaded"):
        load_clip(tmp_path)


@pytest.mark.parametrize("old", [{}, {"feature_extractor_type": "CLIPFeatureExtractor", "size": 64, "crop_size": 64}])
def test_a_processor_of_the_first_form_is_clip_s(clip, folders, tmp_path, old):
    folder = shutil.copytree(folders[0], tmp_path / "clip")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    del settings["image_processor_type"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | old))
    for name, array in load_clip(folder).pixels(pictures(1)[0]).items():
        np.testing.assert_array_equal(array, clip.pixels(pictures(1)[0])[name])


def test_the_fingerprint_follows_weights_and_preprocessing(clip, folders, tmp_path):
    from safetensors.torch import load_file, save_file

    same, weights, crop = (shutil.copytree(folders[0], tmp_path / name) for name in ("same", "weights", "crop"))
    tensors = load_file(weights / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] += 1
    save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})
    config = crop / "preprocessor_config.json"
    config.write_text(config.read_text().replace('"do_normalize": true', '"do_normalize": false'))
    prints = [load_clip(folder).identity.fingerprint for folder in (same, weights, crop)]
    assert prints[0] == clip.identity.fingerprint and len(set(prints)) == 3


def test_settings_name_the_wrong_value():
    for wrong, message in (
        ({"fps": 0}, "^fps=0: "),
        ({"speed": 1}, "unknown key 'speed'"),
        ({"frames": 3, "max_frames": 3}, "^frames=3: is a fixed count"),
    ):
        with pytest.raises(InputError, match=message):
            validated(FeatureSettings, wrong)


def accuracy(features: np.ndarray, labels: list[str], train: int, ridge: float = 0.1) -> float:
    """Held-out accuracy of ridge regression on one-hot labels."""
    names = sorted(set(labels))
    targets = np.array([[name == label for name in names] for label in labels], float)
    features = (features - features[:train].mean(0)) / features[:train].std()
    kernel = features @ features.T / features.shape[1]
    dual = np.linalg.solve(kernel[:train, :train] + ridge * np.eye(train), targets[:train] - targets[:train].mean(0))
    predicted = (kernel[train:, :train] @ dual + targets[:train].mean(0)).argmax(1)
    return float((predicted == targets[train:].argmax(1)).mean())


def test_toy_encoders_keep_what_the_toy_world_is_about(clip, clap):
    """A linear map reads color, shape, direction, sound and loudness off the features."""
    from videoblip2.toy.scene import MOTIONS, SOUNDS, make_scene, render_audio, render_frames

    scenes = [make_scene(5, index, 160) for index in range(160)]
    scenes = [
        replace(s, duration=2.0, motion=MOTIONS[i % 4], sound=SOUNDS[i % 6], loud=i % 4 > 1)
        for i, s in enumerate(scenes)
    ]
    frames = np.stack([render_frames(scene)[::5] for scene in scenes])  # [160, 4, 64, 64, 3]
    visual = encoded(clip, frames.reshape(-1, 64, 64, 3)).reshape(160, -1, 768)
    audio = [np.repeat(render_audio(scene)[:16_000], 3) for scene in scenes]  # to 48 kHz, crudely
    heard = clap.encode_windows(audio)
    assert accuracy(visual.mean(1), [scene.color for scene in scenes], 120) > 0.85
    assert accuracy(visual.mean(1), [scene.shape for scene in scenes], 120) > 0.6
    assert accuracy(visual.reshape(160, -1), [scene.motion for scene in scenes], 120) > 0.7
    assert accuracy(heard, [scene.sound for scene in scenes], 120) > 0.95
    assert accuracy(heard, [f"{scene.loud} {scene.sound}" for scene in scenes], 120) > 0.85


def both(extractor: ClapFeatureExtractor, windows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    expected = extractor(windows, sampling_rate=RATE, return_tensors="np")["input_features"]
    return clap_inputs(extractor, windows).numpy(), expected


def noise(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(length).astype(np.float32) * 0.1 for length in lengths]


@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_inputs_are_those_of_transformers(truncation, padding):
    extractor = ClapFeatureExtractor(max_length_s=2, truncation=truncation, padding=padding)
    got, expected = both(extractor, [*noise(96_000, 48_000, 30_001), np.zeros(RATE, np.float32)])
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 2e-3  # decibels, of a range of some 100


def test_power_of_any_sound_agrees_to_float32():
    extractor = ClapFeatureExtractor(max_length_s=2, truncation="rand_trunc", padding="repeatpad")
    tone = np.sin(2 * np.pi * 440 * np.arange(96_000) / RATE).astype(np.float32)
    got, expected = (10 ** (mels.astype(np.float64) / 10) for mels in both(extractor, [tone, *noise(1, 7, 500)]))
    loudest = expected.max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(got - expected) / loudest).max() < 1e-6
