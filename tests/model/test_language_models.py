"""Language models other than T5, through the ordinary configuration: built, trained, saved, loaded and decoded."""

import pytest
import torch
import transformers as hf
from small_stage import config, write_world
from tokenizers import Tokenizer, processors
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from videoblip2.config import InputError
from videoblip2.model import decode, language_model
from videoblip2.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from videoblip2.model.decode import stepper
from videoblip2.training.ce import ce_step
from videoblip2.training.rollout import build_reward
from videoblip2.training.scst import scst_step
from videoblip2.training.stage import run_stage
from videoblip2.training.workspace import open_workspace

SIZES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizers):
    """Videos with features and captions, and in `bart/` a BART with word pieces `<s> … </s>`."""
    root = tmp_path_factory.mktemp("bart")
    write_world(root)
    pieces = Tokenizer.from_str(tokenizers.text.backend_tokenizer.to_str())
    pieces.add_special_tokens(["<s>"])
    start = pieces.token_to_id("<s>")
    pieces.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", start), ("</s>", 1)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=pieces, **special).save_pretrained(root / "bart")
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": start, "decoder_start_token_id": 1}
    sizes = BartConfig(vocab_size=start + 1, forced_eos_token_id=1, init_std=0.5, **ids, **SIZES)
    bart = BartForConditionalGeneration(sizes)
    bart.final_logits_bias[0, 1] = -3.0  # it would end at once
    bart.save_pretrained(root / "bart")
    return root


@pytest.fixture(scope="module")
def trained(world):
    """The checkpoint of two cross-entropy steps."""
    steps = ("train.steps=2", "train.batch_size=3", "train.validate_every=2", "optim.lr=0.01", "run.tracking=false")
    return run_stage("ce", config(world, "ce", f"model.language_model={world / 'bart'}", *steps)).checkpoint


@pytest.fixture(scope="module")
def encoded(trained, world):
    """The network and encoder states of twelve videos, no two alike."""
    work = open_workspace(config(world, "scst", f"train.start_from={trained}", "train.batch_size=12"))
    model = work.model.eval()
    model.language_model.final_logits_bias[0, 1] = 4.5  # captions of many lengths
    with torch.no_grad():
        states, mask = model.encode(**work.batches(0).inputs)
    return model, states + torch.randn(states.shape, generator=torch.Generator().manual_seed(0)), mask


def generate(model, states, mask, **options):
    return model.language_model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask, max_new_tokens=8, **options
    )[:, 1:]


def test_bart_trains_only_its_lora(trained, world):
    model = load_checkpoint(trained).model
    assert isinstance(model.language_model, BartForConditionalGeneration)
    moved = {name for name in model.trainable() if name.startswith("language_model.")}
    assert {name.split(".")[-4] for name in moved} == {"q_proj", "v_proj"} and all("lora_" in name for name in moved)
    first = BartForConditionalGeneration.from_pretrained(world / "bart").model.shared.weight
    assert torch.equal(model.language_model.model.shared.weight, first)
    assert model.language_model.lm_head.weight is model.language_model.model.shared.weight
    assert all(model.trainable()[name].any() for name in moved if "lora_B" in name)  # zero before the first step
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert "a frozen BART of width 16 with LoRA" in card and "T5" not in card


def test_bart_decodes_as_its_own_generate(encoded):
    model, states, mask = encoded
    greedy = decode.greedy(model.text, states, mask, 8)
    assert torch.equal(greedy.ids, generate(model, states, mask, do_sample=False, num_beams=1))
    beams, scores = decode.beam(model.text, states, mask, 8, 3, 0.8)
    options = {"num_beams": 3, "early_stopping": True, "length_penalty": 0.8, "do_sample": False}
    assert torch.equal(beams.ids, generate(model, states, mask, **options) * beams.mask)  # theirs pads with the end
    assert scores.isfinite().all() and len(set(greedy.mask.sum(dim=1).tolist())) > 1
    assert greedy.ended.all()  # BART imposes its end token on the last place


def test_bart_samples_as_a_teacher_forced_pass_says(encoded):
    model, states, mask = encoded
    drawn = decode.Sampling(5, generator=torch.Generator().manual_seed(0))
    greedy, sampled = decode.greedy_and_sample(model.text, states, mask, 8, drawn)
    with torch.no_grad():
        logits = model.decode(states, mask, sampled.ids)
    exact = torch.log_softmax(logits, dim=-1).gather(2, sampled.ids[..., None])[..., 0] * sampled.mask
    assert torch.allclose(exact, sampled.log_probs, atol=1e-4)
    assert len(greedy.ids) == 12 and len(set(sampled.mask.sum(dim=1).tolist())) > 3
    assert not sampled.ended.all()  # nothing is imposed beside samples


def test_t5_by_the_common_stepper_says_the_same(tiny_model, make_batch, monkeypatch):
    """In training mode, whose dropout neither applies; rows that end are dropped alike."""
    with torch.no_grad():
        encoded = tiny_model.encode(**make_batch(frames=(3, 5, 2, 4) * 3, windows=(2, 0, 3, 1) * 3).inputs)
        tiny_model.language_model.lm_head.weight[1].normal_(std=0.6)
    encoded[1][::2, -1] = 0
    tiny_model.train()

    def captions():
        drawn = decode.Sampling(2, generator=torch.Generator().manual_seed(0))
        greedy, sampled = decode.greedy_and_sample(tiny_model.text, *encoded, 12, drawn)
        return (
            greedy,
            sampled,
            decode.greedy(tiny_model.text, *encoded, 12),
            decode.beam(tiny_model.text, *encoded, 12, 3)[0],
        )

    ours = captions()
    assert len(set(ours[1].mask.sum(dim=1).tolist())) > 3
    monkeypatch.setattr(stepper, "STEPPERS", {})
    for quick, common in zip(ours, captions(), strict=True):
        assert torch.equal(quick.ids, common.ids)
        assert torch.allclose(quick.log_probs, common.log_probs, atol=1e-4)
    assert tiny_model.language_model.training
    drawn_alone = decode.greedy(tiny_model.text, *encoded, 12)
    assert torch.equal(drawn_alone.ids, ours[2].ids)


T5 = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 2, "num_heads": 2}
PLACES = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
#: A head of its own; eager attention only; another shift of labels; positions that it does not store; positions that
#: depend on padding; a mask that must have the query's length.
FAMILIES = {
    "umt5": lambda ids: hf.UMT5Config(**T5, **ids, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "longt5": lambda ids: hf.LongT5Config(**T5, **ids, local_radius=7),
    "mbart": lambda ids: hf.MBartConfig(**SIZES, **ids, init_std=0.5),
    "marian": lambda ids: hf.MarianConfig(**SIZES, **ids, init_std=0.5, decoder_vocab_size=ids["vocab_size"]),
    "m2m_100": lambda ids: hf.M2M100Config(**SIZES, **{**ids, "decoder_start_token_id": 1}, init_std=0.5),
    "led": lambda ids: hf.LEDConfig(**SIZES, **PLACES, **ids, init_std=0.5, attention_window=[8]),
}


def save_model(world, name, model_config):
    """A folder with a language model with fresh weights and BART's tokenizer."""
    torch.manual_seed(0)
    model = hf.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(model_config)](model_config)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    model.save_pretrained(world / name)
    for file in (world / "bart").glob("tokenizer*"):
        (world / name / file.name).write_bytes(file.read_bytes())
    return f"model.language_model={world / name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_loads_and_decodes(name, world):
    """A step of each stage, the same logits from its checkpoint, the same captions as by its own `generate`."""
    ids = {"vocab_size": 82, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    options = ("train.batch_size=3", "data.captions_per_video=2", "train.checkpointing=true")
    work = open_workspace(config(world, name, save_model(world, name, FAMILIES[name](ids)), *options))
    batch, model = work.batches(0), work.model
    for step in (ce_step(work, batch, 0), scst_step(work, build_reward(work), batch, 0)):
        (part,) = step
        part.loss.backward()
    assert part.metrics["log_prob_gap"] < 1e-3  # of decoding and the pass with gradient
    with torch.no_grad():
        for weight in model.trainable().values():
            weight += 0.01 * weight.grad.sign()
        states, mask = model.encode(**batch.inputs)
        save_checkpoint(world / "saved", Checkpoint(model, work.tokenizers))
        logits = load_checkpoint(world / "saved").model(batch.labels, **batch.inputs)
        assert torch.equal(model.decode(states, mask, batch.labels), logits)
    mask[1:, -1] = 0
    greedy = decode.greedy(model.text, states, mask, 8)
    assert torch.equal(greedy.ids, generate(model, states, mask, num_beams=1, do_sample=False))
    beams, _ = decode.beam(model.text, states, mask, 8, 3, 0.8)
    options = {"num_beams": 3, "early_stopping": True, "length_penalty": 0.8, "do_sample": False}
    assert torch.equal(beams.ids * beams.mask, generate(model, states, mask, **options) * beams.mask)


def test_another_language_model_is_one_entry(world, monkeypatch):
    """Registered from outside the package: refused before, usable after, unless it does not work."""
    ids = {"vocab_size": 82, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    known, names = language_model.LANGUAGE_MODELS, language_model.LANGUAGE_MODELS["bart"].projections
    settings = config(world, "x", save_model(world, "plbart", hf.PLBartConfig(**SIZES, **ids)))
    with pytest.raises(
        InputError, match=r"language_model=.*is for a plbart; give a folder or hub name with one of t5,"
    ):
        open_workspace(settings)
    monkeypatch.setitem(known, "plbart", language_model.Family("PLBART", names))
    assert open_workspace(settings).model.language_model.config.model_type == "plbart"
    monkeypatch.setitem(known, "switch_transformers", language_model.Family("Switch"))
    switch = save_model(world, "switch", hf.SwitchTransformersConfig(**T5, **ids, num_experts=2))
    with pytest.raises(InputError, match=r"language_model=.*a switch_transformers cannot be trained \(.*; give"):
        open_workspace(config(world, "x", switch))


def test_lora_targets_that_the_model_does_not_have(world):
    settings = config(world, "x", f"model.language_model={world / 'bart'}", "model.lora.target_modules=[query]")
    with pytest.raises(InputError, match=r"model\.lora\.target_modules=query: "):
        open_workspace(settings)
