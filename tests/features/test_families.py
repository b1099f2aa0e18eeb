"""Towers of other families, by hub name: widths and vectors are transformers' own; wrong pairs fail early."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf

from videoblip2.config import InputError
from videoblip2.features.encoders import load_clap, load_clip
from videoblip2.features.extract import extract_features
from videoblip2.features.media import write_video
from videoblip2.features.media_features import Encoders, FeatureSettings, load_encoders
from videoblip2.features.store import FeatureStore

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDE = {"height": 32, "width": 32}
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3)).astype(np.uint8)
SOUNDS = [np.random.default_rng(0).normal(0, 0.1, count).astype(np.float32) for count in (16_000, 16_000, 5_000)]


def clip():
    config = hf.CLIPVisionConfig(**SMALL, image_size=32, patch_size=16, projection_dim=24)
    return hf.CLIPVisionModelWithProjection(config), hf.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SIDE
    )


def siglip():
    vision, text = {**SMALL, "image_size": 32, "patch_size": 16}, {**SMALL, "vocab_size": 50}
    return hf.SiglipModel(hf.SiglipConfig(vision_config=vision, text_config=text)), hf.SiglipImageProcessorPil(
        size=SIDE
    )


def siglip2():
    vision, text = {**SMALL, "num_patches": 16, "patch_size": 8}, {**SMALL, "vocab_size": 50}
    processor = hf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    return hf.Siglip2Model(hf.Siglip2Config(text_config=text, vision_config=vision)), processor


def dinov2():
    config = hf.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=48, patch_size=8)
    return hf.Dinov2Model(config), hf.BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=SIDE)


def clap():
    config = hf.ClapAudioConfig(
        spec_size=64, patch_size=8, patch_stride=(8, 8), window_size=4, patch_embeds_hidden_size=16, hidden_size=32,
        depths=(1, 1), num_attention_heads=(2, 2), projection_dim=20, initializer_factor=20.0,
    )  # fmt: skip
    extractor = hf.ClapFeatureExtractor(hop_length=960, max_length_s=1, truncation="rand_trunc")
    return hf.ClapAudioModelWithProjection(config), extractor


def ast():
    config = hf.ASTConfig(**SMALL, max_length=100, num_mel_bins=32, patch_size=16, frequency_stride=8, time_stride=8)
    return hf.ASTForAudioClassification(config), hf.ASTFeatureExtractor(num_mel_bins=32, max_length=100)


def whisper():
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = hf.WhisperConfig(
        d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=50, max_source_positions=50, num_mel_bins=16,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0, **layers,
    )  # fmt: skip
    return hf.WhisperForConditionalGeneration(config), hf.WhisperFeatureExtractor(feature_size=16, chunk_length=1)


def wavlm():
    config = hf.WavLMConfig(
        **SMALL, conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=4
    )
    return hf.WavLMModel(config), hf.Wav2Vec2FeatureExtractor()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub cache: `models--tiny--NAME/snapshots/COMMIT`; the model of each name."""
    root, models = tmp_path_factory.mktemp("hub"), {}
    for make in (clip, siglip, siglip2, dinov2, clap, ast, whisper, wavlm):
        torch.manual_seed(0)
        model, processor = make()
        place = root / f"models--tiny--{make.__name__}"
        for one in (model, processor):
            one.save_pretrained(place / "snapshots" / COMMIT)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(COMMIT)
        models[make.__name__] = model.eval()
    return SimpleNamespace(root=root, models=models)


@pytest.fixture(autouse=True)
def _cached(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub.root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def folder(hub, name):
    return hub.root / f"models--tiny--{name}" / "snapshots" / COMMIT


VISION = {
    "clip": (24, lambda model, given: model(**given).image_embeds),
    "siglip": (16, lambda model, given: model.get_image_features(**given).pooler_output),
    "siglip2": (16, lambda model, given: model.get_image_features(**given).pooler_output),
    "dinov2": (16, lambda model, given: model(**given).last_hidden_state[:, 0]),
}


@pytest.mark.parametrize("name", VISION)
def test_frames_become_the_vectors_of_their_tower(hub, name):
    width, expected = VISION[name]
    encoder = load_clip(f"tiny/{name}")
    vectors = encoder.encode_pixels([encoder.pixels(frame) for frame in FRAMES])
    given = hf.AutoImageProcessor.from_pretrained(folder(hub, name), backend="pil")(list(FRAMES), return_tensors="pt")
    with torch.inference_mode():
        np.testing.assert_allclose(vectors, expected(hub.models[name], given), atol=1e-5)
    assert vectors.shape == (3, width) and encoder.width == width and encoder.identity.revision == COMMIT
    assert load_clip(folder(hub, name)).identity.fingerprint == encoder.identity.fingerprint


AUDIO = {
    "clap": (20, lambda model, given: model(**given).audio_embeds),
    "ast": (16, lambda model, given: model.audio_spectrogram_transformer(**given).pooler_output),
    "whisper": (16, lambda model, given: model.model.encoder(**given).last_hidden_state.mean(1)),
    "wavlm": (16, lambda model, given: model(**given).last_hidden_state.mean(1)),
}


@pytest.mark.parametrize("name", AUDIO)
def test_windows_become_the_vectors_of_their_tower(hub, name):
    width, expected = AUDIO[name]
    encoder = load_clap(f"tiny/{name}")
    assert (encoder.rate, encoder.width) == (48_000 if name == "clap" else 16_000, width)
    assert encoder.max_window_seconds == (10.0 if name == "wavlm" else 1.0)
    window = np.resize(SOUNDS[0], encoder.rate)
    vectors = encoder.encode_windows([window, window[: encoder.rate // 4]])
    extractor = hf.AutoFeatureExtractor.from_pretrained(folder(hub, name))
    with torch.inference_mode():
        whole = expected(hub.models[name], extractor(window, sampling_rate=encoder.rate, return_tensors="pt"))
    np.testing.assert_allclose(vectors[:1], whole, atol=1e-4)
    assert vectors.shape == (2, width) and (vectors[1] != vectors[0]).any()


def test_whisper_s_mean_is_over_the_sound_and_not_the_padding(hub):
    encoder, quiet = load_clap("tiny/whisper"), np.zeros(16_000, np.float32)
    quiet[: len(SOUNDS[2])] = SOUNDS[2]
    given = encoder.processor(quiet, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        states = hub.models["whisper"].model.encoder(**given).last_hidden_state[0]
    [vector] = encoder.encode_windows([SOUNDS[2]])
    np.testing.assert_allclose(vector, states[:16].mean(0), atol=1e-5)  # 5,000 of 16,000 samples: 16 of 50 states


def test_a_store_of_other_families(hub, tmp_path):
    write_video(tmp_path / "v.mp4", np.repeat(FRAMES[:2, :32, :32], 4, axis=0), 4, np.resize(SOUNDS[0], 32_000), 16_000)
    encoders = Encoders(load_clip("tiny/dinov2"), load_clap("tiny/whisper"), FeatureSettings(fps=2))
    assert extract_features([tmp_path / "v.mp4"], tmp_path / "store", encoders).done == ["v"]
    store = FeatureStore(tmp_path / "store")
    assert store.widths == {"video": 16, "audio": 16} and store.manifest.sampling_rate == 16_000
    assert (len(store.array("video", "v")), len(store.array("audio", "v"))) == (4, 2)
    again = load_encoders(store.origin, "cpu", "model").encode_file(tmp_path / "v.mp4")
    np.testing.assert_allclose(again["audio"], store.array("audio", "v"), atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "processor"),
    [
        ("clip", "siglip"), ("siglip", "clip"), ("dinov2", "siglip"), ("siglip", "siglip2"), ("clap", "whisper"),
        ("ast", "whisper"), ("whisper", "ast"), ("wavlm", "ast"),
    ],
)  # fmt: skip
def test_a_processor_of_another_family_is_refused(hub, tmp_path, weights, processor):
    pair = shutil.copytree(folder(hub, weights), tmp_path / "pair")
    shutil.copy(folder(hub, processor) / "preprocessor_config.json", pair)
    with pytest.raises(InputError, match=r"pair: its preprocessor_config\.json does not match its weights") as caught:
        (load_clip if weights in VISION else load_clap)(pair)
    assert "\n" not in str(caught.value) and "copy config, weights" in str(caught.value)


def test_a_tower_of_the_other_kind_is_named():
    for load, name in ((load_clip, "whisper"), (load_clap, "dinov2"), (load_clip, "clap"), (load_clap, "siglip")):
        with pytest.raises(InputError, match=rf"tiny/{name}: no (ImageProcessor|FeatureExtractor) could be loaded"):
            load(f"tiny/{name}")


def test_a_tower_without_a_vector_names_its_outputs(hub, tmp_path):
    hf.IJepaModel(hf.IJepaConfig(**SMALL, image_size=32, patch_size=16)).save_pretrained(tmp_path)
    hf.ViTImageProcessorPil(size=SIDE).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"returns last_hidden_state, none of image_embeds.*--tokens patch.*POOLED"):
        load_clip(tmp_path)
    assert load_clip(tmp_path, tokens="patch").width == 16


@pytest.mark.parametrize("name", ["siglip", "dinov2"])
def test_patches_of_a_tower_without_projection(hub, name):
    encoder = load_clip(f"tiny/{name}", tokens="patch", output="hidden")
    patches = encoder.encode_pixels([encoder.pixels(frame) for frame in FRAMES])
    assert patches.shape == (3 * encoder.rows, 16) and encoder.rows == (4 if name == "siglip" else 16)
    assert load_clip(f"tiny/{name}", output="hidden").width == 16
