"""build_model end to end: a T5 folder, word pieces, another project's Q-Former."""

import pytest
import torch
from reference_qformer import CROSS, HEADS, QUERIES, WIDTH, bert_state, lavis_state, saved
from torch import nn

from videoblip2.config import InputError, ModelConfig
from videoblip2.data.batches import collate
from videoblip2.model.build import build_model, describe_first_weights
from videoblip2.toy.networks import LanguageModelConfig, build_t5

FEATURES = 24


@pytest.fixture
def folders(tmp_path, tokenizers):
    tokenizers.text.save_pretrained(tmp_path / "t5")
    build_t5(len(tokenizers.text), LanguageModelConfig(d_model=16, d_ff=16, num_heads=2, num_layers=1)).save_pretrained(
        tmp_path / "t5"
    )
    tokenizers.bert.save_pretrained(tmp_path / "bert")
    words = len(tokenizers.bert)
    saved(tmp_path / "bert" / "model.safetensors", bert_state(vocab=words))
    saved(tmp_path / "blip2.pth", lavis_state(text=False), wrap=True)
    saved(tmp_path / "stage1.pth", lavis_state(vocab=words))
    return tmp_path


def settings(folder, qformer, **model):
    first = {"bert": str(folder / "bert"), "num_attention_heads": HEADS, "num_queries": QUERIES, **qformer}
    sizes = {"video_dim": FEATURES, "audio_dim": 12, "max_positions": 10}
    return ModelConfig(language_model=str(folder / "t5"), qformer=first, **{**sizes, **model})


def inputs(tokenizers):
    draw = torch.Generator().manual_seed(0)
    items = [
        {"video": torch.randn(f, FEATURES, generator=draw).numpy(), "audio": torch.randn(a, 12, generator=draw).numpy()}
        for f, a in ((3, 2), (5, 0))
    ]
    return collate(["a", "b"], items, ["a video of"] * 2, tokenizers, 10).inputs


@pytest.mark.parametrize("cross", ["adapt", "reinit"])
@pytest.mark.parametrize("file", ["blip2.pth", "stage1.pth"])
def test_a_lavis_file_becomes_both_qformers(folders, tokenizers, cross, file):
    config = settings(folders, {"weights": str(folders / file), "cross_attention": cross})
    model, tokens, reports = build_model(config, "a video of")
    states, _ = model.eval().encode(**inputs(tokens))
    assert states.shape[1] == 2 * QUERIES + inputs(tokens)["prompt_ids"].shape[1]
    assert torch.isfinite(states).all()
    state = lavis_state(text=file == "stage1.pth", vocab=len(tokenizers.bert) if file == "stage1.pth" else 61)
    key = "encoder.layer.0.crossattention.attention.key.weight"
    for branch in (model.video_branch, model.audio_branch):
        assert torch.equal(branch.query_tokens, state["query_tokens"])
        assert branch.qformer.config.encoder_hidden_size == (CROSS if cross == "adapt" else FEATURES)
        assert isinstance(branch.adapter, nn.Identity) == (cross == "reinit")
        kept = state["Qformer.bert.encoder.layer.0.crossattention.self.key.weight"]
        assert (cross == "adapt") == torch.equal(branch.qformer.get_parameter(key), kept) if cross == "adapt" else True
    assert reports.keys() == {"video", "audio"}
    before = {name: parameter.clone() for name, parameter in model.video_branch.adapter.named_parameters()}
    model(torch.tensor([[3, 1], [4, 1]]), **inputs(tokens)).sum().backward()
    torch.optim.SGD(model.trainable().values(), lr=0.1).step()
    moved = dict(model.video_branch.adapter.named_parameters())
    assert all(not torch.equal(moved[name], value) for name, value in before.items())
    assert model.video_branch.qformer is not model.audio_branch.qformer


def test_word_pieces_and_weights_must_belong_together(folders):
    saved(folders / "few.pth", lavis_state(vocab=10))
    with pytest.raises(InputError, match=r"few\.pth: has 10 word pieces, but .*bert has \d+"):
        build_model(settings(folders, {"weights": str(folders / "few.pth")}), "a video of")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_loaded_qformer_has_the_configurations_dropout(folders, dropout):
    config = settings(folders, {"weights": str(folders / "blip2.pth"), "dropout": dropout})
    qformer = build_model(config, "a video of")[0].video_branch.qformer
    rates = {module.p for module in qformer.modules() if isinstance(module, nn.Dropout)}
    assert rates == {dropout}
    assert qformer.config.hidden_dropout_prob == qformer.config.attention_probs_dropout_prob == dropout


def test_no_t5_is_named(folders, tmp_path):
    config = settings(folders, {}).model_copy(update={"language_model": str(tmp_path / "bert")})
    with pytest.raises(InputError, match=r"model\.language_model="):
        build_model(config, "a video of")


def test_the_account_of_first_weights(folders):
    loaded, _, reports = build_model(settings(folders, {"weights": str(folders / "blip2.pth")}), "a video of")
    lines = describe_first_weights(loaded, reports, "my-t5")
    assert lines["video Q-Former"] == reports["video"].summary() + (f"; from {folders / 'blip2.pth'}")
    assert "reinitialized (width)" in lines["audio Q-Former"]
    assert lines["language model"] == "my-t5, frozen, lm_head separate from shared"
    fresh, _, reports = build_model(settings(folders, {"hidden_size": WIDTH, "num_hidden_layers": 2}), "a video of")
    lines = describe_first_weights(fresh, reports, "my-t5")
    assert lines["video Q-Former"].startswith("freshly initialized")
    moved = sum(parameter.numel() for parameter in fresh.parameters() if parameter.requires_grad)
    assert lines["training"].startswith(f"{moved:,} of ")
    small = settings(folders, {"hidden_size": WIDTH, "num_hidden_layers": 2})
    full, _, _ = build_model(small.model_copy(update={"finetune": "full"}), "a video of")
    assert describe_first_weights(full, {}, "my-t5")["language model"].startswith("my-t5, trained in full")
    assert describe_first_weights(fresh, {}, "my-t5", "models:/m-1")["network"].endswith("checkpoint models:/m-1")


def test_a_t5_with_tensors_missing_is_refused(folders):
    from safetensors.torch import load_file, save_file

    file = folders / "t5" / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.block.0.layer.0.SelfAttention.q.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 tensors are not in its files, first encoder\.block"):
        build_model(settings(folders, {}), "a video of")


def test_a_t5_cut_short_and_another_architecture_are_refused(folders):
    file = folders / "t5" / "model.safetensors"
    whole, config = file.read_bytes(), folders / "t5" / "config.json"
    file.write_bytes(whole[:500])
    with pytest.raises(InputError, match=r"model\.language_model="):
        build_model(settings(folders, {}), "a video of")
    file.write_bytes(whole)
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"config\.json is for a bert"):
        build_model(settings(folders, {}), "a video of")
