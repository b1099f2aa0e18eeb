"""Decoding against transformers' own generate, and in distribution."""

import pytest
import torch
from transformers.activations import NewGELUActivation
from transformers.modeling_outputs import BaseModelOutput

from videoblip2.model import decode
from videoblip2.model.decode import cpu_kernels, sampling, static_decoder


@pytest.fixture(params=[0.0, 1.5], ids=["rarely ends", "ends at many lengths"])
def encoded(request, tiny_model, make_batch):
    """Encoder states of 12 videos; the end token is made likely in one case, so that rows drop out one by one."""
    batch = make_batch(frames=(3, 5, 2, 4) * 3, windows=(2, 0, 3, 1) * 3, seed=4)
    with torch.no_grad():
        lm_head = tiny_model.language_model.lm_head.weight
        lm_head[1] += (
            request.param * lm_head[2:].std(dim=0) * torch.randn(32, generator=torch.Generator().manual_seed(1))
        )
        return tiny_model.encode(**batch.inputs)


def generate(model, states, mask, **options):
    sequences = model.language_model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask, max_new_tokens=12, **options
    )
    return sequences[:, 1:]


def drawn(seed, samples=3):
    return decode.Sampling(samples, generator=torch.Generator().manual_seed(seed))


def same_tokens(ours, theirs):
    width = max(ours.shape[1], theirs.shape[1])
    pad = torch.nn.functional.pad
    return torch.equal(pad(ours, (0, width - ours.shape[1])), pad(theirs, (0, width - theirs.shape[1])))


def test_greedy_equals_generate(tiny_model, encoded):
    ours = decode.greedy(tiny_model.text, *encoded, 12)
    assert same_tokens(ours.ids, generate(tiny_model, *encoded, do_sample=False))


def test_greedy_by_keys_and_values_equals_generate(tiny_model, encoded, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "VIDEOS", 99)
    test_greedy_equals_generate(tiny_model, encoded)


def test_attention_on_states_is_that_on_keys_and_values():
    torch.manual_seed(0)
    query, weights, states = torch.randn(9, 24), torch.randn(2, 3, 8, 16), torch.randn(9, 5, 16)
    assert (
        cpu_kernels.attention_pays(states, 9, 12)
        and not cpu_kernels.attention_pays(states, 18, 12)
        and not cpu_kernels.attention_pays(states[:2], 2, 12)
    )
    assert not cpu_kernels.attention_pays(states.bfloat16(), 9, 12)  # there softmax and sums would round
    bias = torch.zeros(9, 1, 5).masked_fill(torch.rand(9, 1, 5) < 0.4, -1e9)
    keys, values = torch.einsum("khde,bse->kbhsd", weights, states)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.view(9, 3, 1, 8), keys, values, bias[:, None], scale=1.0
    )
    assert torch.allclose(cpu_kernels.attend(query, weights, states, bias), expected.flatten(1), atol=1e-5)


def test_beam_equals_generate(tiny_model, encoded):
    ours, scores = decode.beam(tiny_model.text, *encoded, 12, 3, 0.8)
    theirs = generate(tiny_model, *encoded, do_sample=False, num_beams=3, length_penalty=0.8, early_stopping=True)
    after_end = (theirs == 1).long().cumsum(dim=1) - (theirs == 1).long() > 0
    assert same_tokens(ours.ids, theirs.masked_fill(after_end, 0))  # theirs fills up with the end token
    assert scores.shape == (12,)


def test_weights_laid_out_for_few_rows_change_no_token(tiny_model, encoded, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "NUMBERS", 0)
    test_greedy_equals_generate(tiny_model, encoded)
    test_beam_equals_generate(tiny_model, encoded)


@pytest.fixture
def static(tiny_model, monkeypatch):
    """The decoders kept for the model, by their sizes."""
    monkeypatch.setattr(tiny_model, "compiled_decoding", True)
    return lambda: static_decoder._kept[tiny_model.language_model]


def test_steps_of_fixed_shape_change_no_token(tiny_model, encoded, static, monkeypatch):
    """Twelve videos: copies of the last fill the bucket of 16. Greedy, beams, and samples in one batch with greedy."""
    test_greedy_equals_generate(tiny_model, encoded)
    test_beam_equals_generate(tiny_model, encoded)
    found = decode.greedy_and_sample(tiny_model.text, *encoded, 12, drawn(1))
    assert {key[0][0] for key in static()} == {16} and len(encoded[0]) == 12
    monkeypatch.setattr(tiny_model, "compiled_decoding", False)
    expected = decode.greedy_and_sample(tiny_model.text, *encoded, 12, drawn(1))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.ids, other.ids) and torch.equal(one.ended, other.ended)
        assert torch.allclose(one.log_probs, other.log_probs, atol=1e-5)


def test_a_static_decoder_stays_and_its_weights_are_refreshed_in_place(tiny_model, encoded, static):
    with torch.inference_mode():
        test_greedy_equals_generate(tiny_model, encoded)
    (decoder,) = static().values()
    places = [tensor.data_ptr() for tensor in decoder._inner.tensors]
    before = decode.greedy(tiny_model.text, *encoded, 12).ids
    with torch.no_grad():
        for weight in tiny_model.trainable().values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    assert not same_tokens(decode.greedy(tiny_model.text, *encoded, 12).ids, before)
    test_greedy_equals_generate(tiny_model, encoded)
    assert [*static().values()] == [decoder]
    assert [tensor.data_ptr() for tensor in decoder._inner.tensors] == places


def test_greedy_beside_samples_is_greedy_alone(tiny_model, encoded):
    alone = decode.greedy(tiny_model.text, *encoded, 12)
    beside, sampled = decode.greedy_and_sample(tiny_model.text, *encoded, 12, drawn(0))
    assert same_tokens(beside.ids, alone.ids)
    assert len(sampled.ids) == 36


def test_samples_follow_the_whole_distribution(tiny_model, encoded):
    """First tokens of 20,000 samples against the exact probabilities; a top-k of 50 or any penalty would show."""
    states, mask = encoded[0][:1], encoded[1][:1]
    start = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        out = tiny_model.language_model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask, decoder_input_ids=start
        )
    exact = torch.softmax(out.logits[0, 0], dim=-1)
    sampled = decode.sample(tiny_model.text, states, mask, 1, drawn(3, 20_000))
    seen = torch.bincount(sampled.ids[:, 0], minlength=len(exact)) / 20_000
    spread = (exact * (1 - exact) / 20_000).sqrt()
    assert ((seen - exact).abs() <= 5 * spread + 1e-9).all()


@pytest.mark.parametrize("encoded", [1.5], indirect=True)
def test_captions_end_at_many_lengths_and_dropping_them_changes_nothing(tiny_model, encoded, monkeypatch):
    dropping = decode.sample(tiny_model.text, *encoded, 12, drawn(1))
    monkeypatch.setattr(sampling, "WORTH_DROPPING", 0.0)
    keeping = decode.sample(tiny_model.text, *encoded, 12, drawn(1))
    assert same_tokens(dropping.ids, keeping.ids)
    assert torch.allclose(dropping.log_probs, keeping.log_probs, atol=1e-5)
    lengths = dropping.mask.sum(dim=1)
    assert len(set(lengths.tolist())) >= 4
    assert torch.equal(dropping.ended, (dropping.ids == 1).any(dim=1))


@pytest.mark.parametrize("encoded", [6.0], indirect=True)
@pytest.mark.parametrize("videos", [1, 99], ids=["on states", "on keys and values"])
def test_greedy_captions_that_end_leave_the_batch(tiny_model, encoded, monkeypatch, videos):
    monkeypatch.setattr(cpu_kernels, "VIDEOS", videos)
    lengths = decode.greedy(tiny_model.text, *encoded, 12).mask.sum(dim=1).tolist()
    assert max(lengths) < 12 and len(set(lengths)) > 1
    test_greedy_equals_generate(tiny_model, encoded)


def test_log_probs_are_those_of_a_teacher_forced_pass(tiny_model, encoded):
    sampled = decode.sample(tiny_model.text, *encoded, 12, drawn(1))
    with torch.no_grad():
        logits = tiny_model.decode(*encoded, sampled.ids)
    exact = torch.log_softmax(logits, dim=-1).gather(2, sampled.ids[..., None])[..., 0] * sampled.mask
    assert torch.allclose(exact, sampled.log_probs, atol=1e-4)


def test_mask_holds_the_first_end_token_and_nothing_after():
    ids = torch.tensor([[5, 1, 0, 0], [5, 6, 7, 8], [1, 0, 0, 0], [5, 1, 1, 0]])
    decoded = decode.Decoded(ids, (ids == 1).any(dim=1), torch.zeros(4, 4), 1)
    assert decoded.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert decoded.ended.tolist() == [True, False, True, True]


def test_gelu_by_tanh_is_torchs_own_with_the_same_numbers(tiny_model):
    found = [module for module in tiny_model.language_model.modules() if isinstance(module, torch.nn.GELU)]
    assert len(found) == 4 and tiny_model.config.text_config.dense_act_fn == "gelu_new"
    values = torch.linspace(-6, 6, 999)
    torch.testing.assert_close(found[0](values), NewGELUActivation()(values), rtol=1e-5, atol=1e-6)
