"""The network: wiring, masks, the absent state, what trains, saving and loading."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, T5Config, T5ForConditionalGeneration

from videoblip2.captioner import Captioner
from videoblip2.config import Decoding, InputError, ModelConfig
from videoblip2.model import decode
from videoblip2.model.configuration import VideoBlip2Config
from videoblip2.model.language_model import separate_lm_head
from videoblip2.model.network import VideoBlip2

LENGTHS = ((3, 2), (9, 4), (1, 0), (6, 1))  # frames and audio windows; the third video has no audio


def with_features(batch, **changed):
    """The inputs of `encode` with other features in some modalities."""
    return {**batch.inputs, "features": {**batch.features, **changed}}


def test_encoder_input_is_video_queries_audio_queries_prompt(tiny_model, make_batch, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        tiny_model.language_model.encoder,
        "forward",
        lambda inputs_embeds, attention_mask: (
            seen.update(inputs=inputs_embeds, mask=attention_mask)
            or type("Out", (), {"last_hidden_state": inputs_embeds})
        ),
    )
    batch = make_batch()
    tiny_model.encode(**batch.inputs)
    text = batch.qformer_ids, batch.qformer_mask
    video = tiny_model.proj_video(tiny_model.video_branch(batch.features["video"], batch.masks["video"], *text))
    audio = tiny_model.proj_audio(
        tiny_model.audio_branch(tiny_model.audio_upscaler(batch.features["audio"]), batch.masks["audio"], *text)
    )
    prompt = tiny_model.language_model.shared(batch.prompt_ids)
    assert torch.equal(seen["inputs"], torch.cat([video, audio, prompt], dim=1))
    assert seen["inputs"].shape == (2, 4 + 4 + batch.prompt_ids.shape[1], 32)
    assert torch.equal(seen["mask"][:, :8], torch.ones(2, 8, dtype=torch.long))


def test_padding_and_batch_mates_change_nothing(tiny_model, make_batch):
    captions = ["a red circle moves left", "the star is quiet"]
    both = make_batch(frames=(3, 7), windows=(2, 4), captions=captions)
    logits = tiny_model(both.labels, **both.inputs)
    for row in range(2):
        lengths = {name: int(mask[row].sum()) for name, mask in both.masks.items()}
        alone = both.map(lambda tensor, row=row: tensor[row : row + 1])
        cut = {
            group: {name: tensor[:, : lengths[name]] for name, tensor in getattr(alone, group).items()}
            for group in ("features", "masks")
        }
        single = tiny_model(alone.labels, **{**alone.inputs, **cut})
        assert torch.allclose(single[0], logits[row], atol=1e-5)


def test_what_lies_in_padding_is_never_read(tiny_model, make_batch):
    batch = make_batch(frames=(3, 7), windows=(2, 4))
    states, _ = tiny_model.encode(**batch.inputs)
    garbage = batch.features["video"].masked_fill(batch.masks["video"][..., None] == 0, 1e3)
    changed, _ = tiny_model.encode(**with_features(batch, video=garbage))
    assert torch.allclose(states, changed, atol=1e-6)


def test_absent_audio_is_the_learned_state_and_not_silence(tiny_model, make_batch):
    batch = make_batch(frames=(3,), windows=(0,))
    states, _ = tiny_model.encode(**batch.inputs)
    assert torch.isfinite(states).all()
    text = batch.qformer_ids, batch.qformer_mask
    branch = tiny_model.audio_branch
    learned = branch.qformer(
        input_ids=text[0],
        attention_mask=torch.cat([torch.ones(1, 4, dtype=torch.long), text[1]], dim=1),
        query_embeds=branch.query_tokens,
        encoder_hidden_states=branch.absent[None, None],
        encoder_attention_mask=torch.ones(1, 1, dtype=torch.long),
    ).last_hidden_state[:, :4]
    got = branch(tiny_model.audio_upscaler(batch.features["audio"]), batch.masks["audio"], *text)
    assert torch.allclose(got, learned, atol=1e-6)
    silent = {**batch.inputs, "masks": {**batch.masks, "audio": torch.ones_like(batch.masks["audio"])}}
    assert not torch.allclose(tiny_model.encode(**silent)[0], states, atol=1e-3)


def test_order_of_frames_shows_only_with_temporal_embedding(tiny_config, make_batch):
    batch = make_batch(frames=(5,), windows=(2,))
    backwards = with_features(batch, video=batch.features["video"].flip(1))
    tiny_config.temporal_embedding = False
    blind = VideoBlip2(tiny_config).eval()
    assert torch.allclose(blind.encode(**batch.inputs)[0], blind.encode(**backwards)[0], atol=1e-5)
    tiny_config.temporal_embedding = True
    sees = VideoBlip2(tiny_config).eval()
    torch.nn.init.normal_(sees.video_branch.positions.weight)
    assert not torch.allclose(sees.encode(**batch.inputs)[0], sees.encode(**backwards)[0], atol=1e-4)


def test_only_the_bridge_and_lora_move_in_a_step(tiny_model, make_batch):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    batch = make_batch(captions=["a red circle moves left", "the star is quiet"])
    optimizer = torch.optim.AdamW(tiny_model.trainable().values(), lr=1e-2)
    torch.nn.functional.cross_entropy(
        tiny_model(batch.labels, **batch.inputs).flatten(0, 1), batch.labels.flatten(), ignore_index=-100
    ).backward()
    optimizer.step()
    moved = {name for name, tensor in tiny_model.state_dict().items() if not torch.equal(tensor, before[name])}
    frozen = {name for name in before if name.startswith("language_model.") and "lora_" not in name}
    assert not moved & frozen
    bridge = ("video_branch.qformer", "audio_branch.qformer", "query_tokens", "audio_upscaler", "proj_video")
    for kind in (*bridge, "proj_audio", "positions", ".norm.", "absent", "lora_A", "lora_B"):
        assert any(kind in name for name in moved), kind


def test_full_fine_tuning_moves_all_of_t5_and_has_no_lora(tiny_config, make_batch, tmp_path):
    tiny_config.finetune = "full"
    VideoBlip2(tiny_config).save_pretrained(tmp_path)
    model = VideoBlip2.from_pretrained(tmp_path).train()
    assert not any("lora_" in name for name in model.state_dict())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = make_batch(captions=["a red circle moves left", "the star is quiet"])
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-2)
    torch.nn.functional.cross_entropy(
        model(batch.labels, **batch.inputs).flatten(0, 1), batch.labels.flatten(), ignore_index=-100
    ).backward()
    optimizer.step()
    of_t5 = [name for name in before if name.startswith("language_model.")]
    assert of_t5 and not [name for name in of_t5 if torch.equal(model.state_dict()[name], before[name])]


def test_saved_and_loaded_is_the_same_with_separate_lm_head(tiny_model, make_batch, tmp_path):
    batch = make_batch(captions=["a red circle moves left", "the star is quiet"])
    tiny_model.save_pretrained(tmp_path)
    loaded = VideoBlip2.from_pretrained(tmp_path).eval()
    assert loaded.state_dict().keys() == tiny_model.state_dict().keys()
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.trainable().keys() == tiny_model.trainable().keys()
    lm = loaded.language_model
    assert not torch.equal(lm.lm_head.weight, lm.shared.weight)
    assert lm.config.scale_decoder_outputs is False
    loaded.tie_weights()
    assert lm.lm_head.weight is not lm.shared.weight
    assert torch.allclose(loaded(batch.labels, **batch.inputs), tiny_model(batch.labels, **batch.inputs), atol=1e-5)


def test_load_state_dict_keeps_lm_head_apart(tiny_model, tiny_config):
    other = VideoBlip2(tiny_config)
    other.load_state_dict(tiny_model.state_dict())
    lm = tiny_model.language_model
    assert torch.equal(other.language_model.shared.weight, lm.shared.weight)
    assert torch.equal(other.language_model.lm_head.weight, lm.lm_head.weight)


def test_given_modules_keep_their_weights(tiny_config):
    """transformers draws weights of a composite again unless it is told not to."""
    text = T5ForConditionalGeneration(tiny_config.text_config)
    separate_lm_head(text)
    with torch.no_grad():
        text.shared.weight.fill_(0.5)
        text.encoder.block[0].layer[0].SelfAttention.q.weight.fill_(0.25)
    model = VideoBlip2(tiny_config, text)
    assert (model.language_model.shared.weight == 0.5).all()
    assert (model.language_model.encoder.block[0].layer[0].SelfAttention.q.base_layer.weight == 0.25).all()


def test_default_configuration_is_the_designs_model():
    """32 + 32 queries, 1,769,472 LoRA parameters in a T5 of flan-t5-base's size; built without memory."""
    default = ModelConfig()
    flan_t5_base = T5Config(
        vocab_size=32128,
        d_model=768,
        d_kv=64,
        d_ff=2048,
        num_layers=12,
        num_heads=12,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    qformer = {
        "hidden_size": default.qformer.hidden_size,
        "num_hidden_layers": default.qformer.num_hidden_layers,
        "num_attention_heads": default.qformer.num_attention_heads,
        "intermediate_size": default.qformer.intermediate_size,
        "cross_attention_frequency": default.qformer.cross_attention_frequency,
        "encoder_hidden_size": default.video_dim,
    }
    config = VideoBlip2Config(
        text_config=flan_t5_base,
        video_qformer_config=dict(qformer),
        audio_qformer_config=dict(qformer),
        num_queries=default.qformer.num_queries,
        lora_r=default.lora.r,
        lora_alpha=default.lora.alpha,
        lora_target_modules=list(default.lora.target_modules),
        separate_lm_head=True,
    )
    with torch.device("meta"):
        model = VideoBlip2(config)
    trainable = model.trainable()
    assert sum(p.numel() for name, p in trainable.items() if "lora_" in name) == 1_769_472
    assert model.video_branch.query_tokens.shape == model.audio_branch.query_tokens.shape == (1, 32, 768)
    assert model.audio_upscaler.weight.shape == (768, 512)
    assert {name.rsplit(".", 4)[1] for name in trainable if "lora_A" in name} == {"q", "v"}
    assert (config.lora_r, config.lora_alpha, default.lora.dropout) == (16, 32, 0.05)
    assert model.language_model.config.d_model == 768


@pytest.mark.parametrize("modalities", ["video", "audio"])
def test_one_modality_alone(tiny_config, make_batch, modalities):
    tiny_config.modalities = modalities
    model = VideoBlip2(tiny_config).eval()
    batch = make_batch()
    states, mask = model.encode(**batch.inputs)
    assert states.shape[1] == mask.shape[1] == 4 + batch.prompt_ids.shape[1]
    other = "audio" if modalities == "video" else "video"
    changed, _ = model.encode(**with_features(batch, **{other: batch.features[other] + 1}))
    assert torch.equal(changed, states)


@pytest.fixture
def items():
    rng = np.random.default_rng(4)
    return [
        {"video": rng.normal(size=(f, 24)).astype("float32"), "audio": rng.normal(size=(a, 12)).astype("float32")}
        for f, a in LENGTHS
    ]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_padding_and_batch_mates_never_change_a_caption(tiny_model, tokenizers, items, num_beams):
    """Also where there is no audio: in a batch its row is all padding, alone it has no row at all."""
    captioner = Captioner(tiny_model, tokenizers)
    together = captioner.caption(items, decoding=Decoding(num_beams, max_new_tokens=12))
    alone = [captioner.caption([item], decoding=Decoding(num_beams, max_new_tokens=12))[0] for item in items]
    assert [caption.text for caption in together] == [caption.text for caption in alone]
    assert [caption.score for caption in together] == pytest.approx([caption.score for caption in alone], abs=1e-4)
    assert len({caption.text for caption in together}) > 1, "captions that do not depend on the video prove nothing"


def test_generate_is_decodes_with_the_start_token_in_front(tiny_model, make_batch):
    batch = make_batch(frames=(3, 5, 7), windows=(2, 0, 1))
    states, mask = tiny_model.encode(**batch.inputs)
    draw = torch.Generator().manual_seed(1)
    drawn = decode.sample(tiny_model.text, states, mask, 6, decode.Sampling(1, 2.0, torch.Generator().manual_seed(1)))
    expected = {
        "greedy": decode.greedy(tiny_model.text, states, mask, 6).ids,
        "beam": decode.beam(tiny_model.text, states, mask, 6, 3, 2.0)[0].ids,
        "sample": drawn.ids,
    }
    sampling = {"do_sample": True, "temperature": 2.0, "generator": draw}
    options = {"greedy": {}, "beam": {"num_beams": 3, "length_penalty": 2.0}, "sample": sampling}
    for kind, ids in expected.items():
        got = tiny_model.generate(**batch.inputs, max_new_tokens=6, **options[kind])
        assert (got[:, 0] == 0).all()
        assert torch.equal(got[:, 1:], ids), kind


def test_generate_refuses_what_it_would_ignore(tiny_model, make_batch):
    with pytest.raises(InputError, match="num_beams=2: beam search takes no samples"):
        tiny_model.generate(**make_batch().inputs, do_sample=True, num_beams=2)


def test_auto_classes_know_it(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), VideoBlip2Config)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, VideoBlip2) and not info["missing_keys"]
    assert loaded.trainable().keys() == tiny_model.trainable().keys()


def test_saving_where_it_was_loaded_from_is_safe(tiny_model, tmp_path):
    """Loaded weights may be mapped from the very file that saving replaces."""
    tiny_model.save_pretrained(tmp_path)
    loaded = VideoBlip2.from_pretrained(tmp_path)
    with torch.no_grad():
        loaded.proj_video.weight.add_(1)
    loaded.save_pretrained(tmp_path)
    again = VideoBlip2.from_pretrained(tmp_path).state_dict()
    assert torch.equal(again["proj_video.weight"], tiny_model.proj_video.weight + 1)
    assert torch.equal(again["proj_audio.weight"], tiny_model.proj_audio.weight)
