"""Teacher forcing shares what a video's captions share, and computes logits of live tokens only: same gradients."""

import pytest
import torch
from torch.nn import functional
from transformers import BartConfig

from videoblip2.model.network import VideoBlip2

CAPTIONS = ["a red circle moves left", "the star is quiet", "a", "a dog barks at a man", "a dog", "the star"]


def bart(config, vocab):
    """The same network around a BART."""
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 1}
    config.text_config = BartConfig(
        vocab_size=vocab, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, dropout=0.0, **sizes, **ids
    )
    config.separate_lm_head = False
    return config


def network(kind, config, vocab, dropout=0.0):
    """A T5 or a BART with LoRA that does something, or without (kind="full")."""
    config = bart(config, vocab) if kind == "bart" else config
    config.text_config.dropout = config.text_config.dropout_rate = config.lora_dropout = dropout
    config.finetune = "full" if kind == "full" else "lora"
    torch.manual_seed(0)
    model = VideoBlip2(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(params=["t5", "bart", "full"])
def model(request, tiny_config, tokenizers):
    model = network(request.param, tiny_config, len(tokenizers.text))
    return model.double().eval()  # in float32 the order of sums would show


@pytest.fixture
def batch(make_batch):
    """Two videos, three captions of each."""
    batch = make_batch(frames=(3, 5), windows=(2, 0), captions=CAPTIONS)
    batch.prompt_mask[1, -1] = 0  # its prompt is shorter
    return batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.trainable().items() if parameter.grad is not None}


#: In eval mode the captions of a video are one longer query; no dropout in either.
MODES = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


@MODES
def test_gradients_are_those_of_one_row_a_caption(training, model, batch):
    states, mask = model.encode(**batch.inputs)
    rows = states.repeat_interleave(3, dim=0), mask.repeat_interleave(3, dim=0)
    model.language_model.train()  # the mask is then as transformers takes it
    plain = functional.cross_entropy(model.decode(*rows, batch.labels).flatten(0, 1), batch.labels.flatten())
    expected = gradients(model, plain)
    model.language_model.train(training)
    live = (batch.labels.flatten() != -100).nonzero().squeeze(1)
    assert 0 < len(live) < batch.labels.numel()
    logits = model(batch.labels, live, **batch.inputs)
    assert logits.shape[0] == len(live)
    loss = functional.cross_entropy(logits, batch.labels.flatten()[live])
    assert loss.item() == pytest.approx(plain.item(), rel=1e-9)
    found = gradients(model, loss)
    assert found.keys() == expected.keys() and any(gradient.abs().max() > 1e-3 for gradient in found.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-9, msg=name)


@MODES
def test_keys_and_values_are_products_of_a_videos_states_once(training, model, batch):
    rows, names = [], ("attn.k_proj", "attn.v_proj", "EncDecAttention.k", "EncDecAttention.v")
    decoder = model.language_model.train(training).get_decoder()
    for layer in [module for name, module in decoder.named_modules() if name.endswith(names) and "self" not in name]:
        products = getattr(layer, "base_layer", layer) if training else layer
        products.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    hooks = count_hooks(model)
    model(batch.labels, **batch.inputs)
    assert rows == [2] * 4, "two videos, three captions each; keys and values of two layers"
    assert count_hooks(model) == hooks


def count_hooks(model):
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in model.language_model.modules())
