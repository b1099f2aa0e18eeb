"""Cross-attention over time, against transformers' own recording of it on a second Q-Former with the same weights."""

import copy

import numpy as np
import pytest
import torch
from transformers import InstructBlipQFormerModel

from videoblip2.captioner import Captioner

INPUTS = ("features", "masks", "qformer_ids", "qformer_mask")


def inputs_of(batch):
    return {name: batch.inputs[name] for name in INPUTS}


@torch.no_grad()
def expected(branch, features, mask, ids, ids_mask):
    """One video's weights, unpadded: the mean over layers, heads and queries of what transformers records."""
    config = copy.deepcopy(branch.qformer.config)
    config._attn_implementation = "eager"
    other = InstructBlipQFormerModel(config).eval()
    other.load_state_dict(branch.qformer.state_dict())
    length = int(mask.sum())
    states = branch.norm(features[:length]) + branch.positions.weight[:length]
    out = other(
        input_ids=ids,
        attention_mask=torch.cat([ids_mask.new_ones(1, branch.query_tokens.shape[1]), ids_mask], dim=1),
        query_embeds=branch.query_tokens,
        encoder_hidden_states=states[None],
        output_attentions=True,
    )
    return torch.stack(out.cross_attentions).mean(dim=(0, 1, 2, 3))


@pytest.mark.parametrize("frequency", [1, 2])
def test_weights_are_those_that_transformers_records(tiny_config, make_batch, frequency):
    from videoblip2.model.network import VideoBlip2

    for name in ("video_qformer_config", "audio_qformer_config"):
        getattr(tiny_config, name).cross_attention_frequency = frequency
    torch.manual_seed(1)
    model = VideoBlip2(tiny_config).eval()
    for branch in (model.video_branch, model.audio_branch):  # fresh weights would look everywhere alike
        for layer in branch.qformer.encoder.layer[::frequency]:
            torch.nn.init.normal_(layer.crossattention.attention.query.weight)
            torch.nn.init.normal_(layer.crossattention.attention.key.weight)
    batch = make_batch(frames=(3, 7), windows=(4, 2))
    weights = model.cross_attention(**inputs_of(batch))
    for row in range(2):
        text = batch.qformer_ids[row : row + 1], batch.qformer_mask[row : row + 1]
        upscaled = model.audio_upscaler(batch.features["audio"][row])
        video = expected(model.video_branch, batch.features["video"][row], batch.masks["video"][row], *text)
        audio = expected(model.audio_branch, upscaled, batch.masks["audio"][row], *text)
        assert torch.allclose(weights["video"][row][: len(video)], video, atol=1e-6)
        assert torch.allclose(weights["audio"][row][: len(audio)], audio, atol=1e-6)
        assert video.std() > 0.02


def test_rows_sum_to_one_and_padding_and_absent_sound_get_nothing(tiny_model, make_batch):
    batch = make_batch(frames=(3, 7), windows=(4, 0))
    weights = tiny_model.cross_attention(**inputs_of(batch))
    assert weights["video"].shape == (2, 7)
    assert torch.allclose(weights["video"].sum(dim=1), torch.ones(2))
    assert torch.equal(weights["video"][0, 3:], torch.zeros(4))
    assert weights["audio"].sum(dim=1).tolist() == pytest.approx([1.0, 0.0])


def test_the_model_keeps_its_attention_its_weights_and_its_hooks(tiny_model, make_batch):
    batch = make_batch()
    before = tiny_model.encode(**batch.inputs)[0]
    kept = {name: parameter.data_ptr() for name, parameter in tiny_model.named_parameters()}
    tiny_model.cross_attention(**inputs_of(batch))
    assert torch.equal(tiny_model.encode(**batch.inputs)[0], before)
    assert kept == {name: parameter.data_ptr() for name, parameter in tiny_model.named_parameters()}
    assert tiny_model.video_branch.qformer.config._attn_implementation == "sdpa"
    assert not [module for module in tiny_model.modules() if module._forward_hooks]


def test_a_captioner_says_it_of_one_item(tiny_model, tokenizers):
    rng = np.random.default_rng(0)
    captioner = Captioner(tiny_model, tokenizers)
    video, audio = rng.normal(size=(13, 24)).astype("float32"), rng.normal(size=(2, 12)).astype("float32")
    long = {"video": video, "audio": audio}
    weights = captioner.attention(long)
    assert [len(weights[name]) for name in ("video", "audio")] == [10, 2]  # thinned to the model's ten places
    assert [weights[name].sum() for name in weights] == pytest.approx([1.0, 1.0])
    silent = captioner.attention({"video": video}, prompt="question: what moves? answer:")
    assert len(silent["audio"]) == 0
    assert not np.allclose(silent["video"], weights["video"], atol=1e-7)
