"""load_qformer: every layout gives an independent reference's outputs; the report accounts for every tensor."""

import json
from pathlib import Path

import pytest
import torch
from reference_qformer import (
    CROSS,
    FFN,
    HEADS,
    LAYERS,
    POSITIONS,
    QUERIES,
    ROOT,
    VOCAB,
    WIDTH,
    State,
    bert_state,
    in_transformers,
    lavis_state,
    ragged_batch,
    reference_output,
    saved,
    with_text_of,
)
from safetensors.torch import save_file

from videoblip2.config import InputError
from videoblip2.model.branch import FeatureAdapter
from videoblip2.model.load_weights import load_qformer

EXTRAS = {
    "t5_proj.weight": torch.ones(16, WIDTH),
    "ln_vision.weight": torch.ones(CROSS),
    "Qformer.cls.predictions.bias": torch.ones(VOCAB),
}


def load(path, feature_dim=CROSS, **options):
    return load_qformer(path, feature_dim=feature_dim, num_attention_heads=HEADS, **options)


def output(qformer, query_tokens, text: bool, cross: int = CROSS) -> torch.Tensor:
    features, feature_mask, ids, text_mask = ragged_batch(cross)
    seen = torch.cat([torch.ones(3, query_tokens.shape[1], dtype=torch.long), text_mask], dim=1) if text else None
    with torch.no_grad():
        return qformer(
            input_ids=ids if text else None,
            attention_mask=seen,
            query_embeds=query_tokens.expand(3, -1, -1),
            encoder_hidden_states=features,
            encoder_attention_mask=feature_mask,
        ).last_hidden_state


def expected(state: State, text: bool) -> torch.Tensor:
    features, feature_mask, ids, text_mask = ragged_batch()
    return reference_output(state, features, feature_mask, *((ids, text_mask) if text else ()))


def as_stage_1(folder: Path, state: State) -> Path:
    return saved(folder / "blip2_pretrained.pth", state | EXTRAS, wrap=True)


def as_flat(folder: Path, state: State) -> Path:
    return saved(folder / "flat.pth", state)


def as_instructblip(folder: Path, state: State) -> Path:
    return saved(folder / "instruct.pth", state | {"llm_proj.bias": torch.ones(3)}, wrap=True)


def as_transformers_instructblip(folder: Path, state: State) -> Path:
    return saved(folder / "hf.safetensors", in_transformers(state) | {"language_projection.bias": torch.ones(3)})


def as_transformers_blip2(folder: Path, state: State) -> Path:
    vision = {"vision_model.embeddings.class_embedding": torch.ones(1, 1, 8)}
    return saved(folder / "blip2.bin", in_transformers(state, embeddings=False) | vision)


def as_prefixed(folder: Path, state: State) -> Path:
    return saved(folder / "p.safetensors", {f"model.{name}": t for name, t in in_transformers(state, False).items()})


def as_bare(folder: Path, state: State) -> Path:
    named = in_transformers(state).items()
    return saved(folder / "own.safetensors", {name.removeprefix("qformer."): tensor for name, tensor in named})


def as_folder(folder: Path, state: State) -> Path:
    saved(folder / "model.safetensors", in_transformers(state))
    return folder


def as_shards(folder: Path, state: State) -> Path:
    names = sorted(tensors := in_transformers(state))
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / shard)
    index = {"weight_map": {name: shard for shard, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


LAYOUTS = {
    as_stage_1: "LAVIS BLIP-2 stage 1",
    as_flat: "LAVIS InstructBLIP",
    as_instructblip: "LAVIS InstructBLIP",
    as_transformers_instructblip: "transformers InstructBLIP",
    as_transformers_blip2: "transformers BLIP-2",
    as_prefixed: "transformers BLIP-2",
    as_bare: "bare InstructBlipQFormerModel",
    as_folder: "transformers InstructBLIP",
    as_shards: "transformers InstructBLIP",
}


@pytest.mark.parametrize("text", [True, False], ids=["text", "no text"])
@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_every_layout_equals_the_reference(tmp_path, write, text):
    state = lavis_state()
    qformer, query_tokens, report = load(write(tmp_path, state))
    torch.testing.assert_close(output(qformer, query_tokens, text), expected(state, text), rtol=0, atol=1e-5)
    assert report.layout == LAYOUTS[write]
    assert report.count("loaded") == len(qformer.state_dict()) + 1
    assert report.count("fresh") == report.count("text") == 0


@pytest.mark.parametrize("prefix", ["bert.", ""])
@pytest.mark.parametrize("old_names", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_stage_2_with_berts_text_side_equals_the_reference(tmp_path, prefix, old_names, name):
    state = lavis_state(text=False)
    saved(tmp_path / name, bert_state(prefix=prefix, old_names=old_names))
    path = saved(tmp_path / "stage2.pth", state | EXTRAS, wrap=True)
    qformer, query_tokens, report = load(path, bert=tmp_path / name)
    whole = with_text_of(state, bert_state(old_names=False))
    torch.testing.assert_close(output(qformer, query_tokens, True), expected(whole, True), rtol=0, atol=1e-5)
    assert report.count("text") == 2 + 6 * LAYERS
    assert report.summary().endswith(f"{2 + 6 * LAYERS} from BERT")


def test_berts_attention_and_norm_never_replace_the_shared_ones(tmp_path):
    path = saved(tmp_path / "stage2.pth", lavis_state(text=False))
    bert = saved(tmp_path / "bert.bin", bert_state())
    plain, _, _ = load(path)
    filled, _, report = load(path, bert=bert)
    changed = {name for name, tensor in filled.state_dict().items() if not tensor.equal(plain.state_dict()[name])}
    assert changed and changed == {record.name for record in report.records if record.status == "text"}
    assert not any("attention" in name or "layernorm" in name for name in changed)
    reasons = {record.name: record.reason for record in report.records if record.status == "unused"}
    assert "shared" in reasons["bert.embeddings.LayerNorm.gamma"]
    assert "shared" in reasons["bert.encoder.layer.0.attention.self.query.weight"]


def test_outputs_equal_transformers_own_blip2(tmp_path):
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    state = in_transformers(lavis_state(), embeddings=False)
    config = Blip2QFormerConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        encoder_hidden_size=CROSS,
        use_qformer_text_input=True,
    )
    native = Blip2QFormerModel(config).eval()
    native.load_state_dict({n.removeprefix("qformer."): t for n, t in state.items() if n.startswith("qformer.")})
    qformer, query_tokens, _ = load(saved(tmp_path / "blip2.bin", state))
    features, feature_mask, ids, text_mask = ragged_batch()
    queries = query_tokens.detach().expand(3, -1, -1)
    words = state["embeddings.word_embeddings.weight"][ids] + state["embeddings.position_embeddings.weight"][:6]
    seen = torch.cat([torch.ones(3, QUERIES, dtype=torch.long), text_mask], dim=1)
    with torch.no_grad():
        without = native(queries, encoder_hidden_states=features, encoder_attention_mask=feature_mask)
        # Its own cross-attention mask does not fit queries with text, so text is compared with all features real.
        both = torch.cat([queries, words], dim=1)
        with_text = native(both, QUERIES, attention_mask=seen, encoder_hidden_states=features)
        ours = qformer(ids, attention_mask=seen, query_embeds=queries, encoder_hidden_states=features)
    assert torch.allclose(output(qformer, query_tokens, False), without.last_hidden_state, atol=1e-5)
    assert torch.allclose(ours.last_hidden_state, with_text.last_hidden_state, atol=1e-5)


def test_sizes_are_read_off_the_tensors(tmp_path):
    qformer, query_tokens, report = load(saved(tmp_path / "q.pth", lavis_state()))
    config = qformer.config
    sizes = (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.cross_attention_frequency)
    assert sizes == (LAYERS, WIDTH, FFN, 2)
    assert (config.encoder_hidden_size, config.vocab_size, config.max_position_embeddings) == (CROSS, VOCAB, POSITIONS)
    assert query_tokens.shape == (1, QUERIES, WIDTH) and query_tokens.requires_grad
    assert not qformer.training
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 and p.requires_grad for p in qformer.parameters())
    assert all(buffer.device.type == "cpu" for buffer in qformer.buffers())
    assert report.sizes["num_queries"] == QUERIES


def test_reinit_replaces_only_key_and_value_weights(tmp_path):
    state = lavis_state()
    path = saved(tmp_path / "q.pth", state)
    torch.manual_seed(5)
    qformer, query_tokens, report = load(path, feature_dim=600)
    tensors = qformer.state_dict()
    fresh = [record for record in report.records if record.status == "fresh"]
    assert [record.reason for record in fresh] == ["width"] * 4  # key and value of layers 0 and 2
    assert qformer.config.encoder_hidden_size == 600
    key = tensors["encoder.layer.0.crossattention.attention.key.weight"]
    assert key.shape == (WIDTH, 600) and abs(key.std().item() - 0.02) < 0.001
    assert tensors["encoder.layer.0.crossattention.attention.key.bias"].equal(
        state[ROOT + "encoder.layer.0.crossattention.self.key.bias"]
    )
    assert report.summary() == (f"{len(tensors) + 1 - 4} loaded, 4 reinitialized (width)")
    assert output(qformer, query_tokens, True, cross=600).isfinite().all()
    torch.manual_seed(5)
    assert load(path, feature_dim=600)[0].state_dict()["encoder.layer.0.crossattention.attention.key.weight"].equal(key)


def test_adapt_keeps_every_weight_and_reports_the_adapter(tmp_path):
    state = lavis_state()
    qformer, query_tokens, report = load(saved(tmp_path / "q.pth", state), feature_dim=20, cross_attention="adapt")
    assert qformer.config.encoder_hidden_size == CROSS
    torch.testing.assert_close(output(qformer, query_tokens, True), expected(state, True), rtol=0, atol=1e-5)
    fresh = {record.name: record.shape for record in report.records if record.status == "fresh"}
    adapter = FeatureAdapter(20, CROSS)
    assert fresh == {f"adapter.{name}": tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}
    assert "4 freshly initialized (feature adapter)" in report.summary()
    assert adapter(torch.randn(2, 3, 20)).shape == (2, 3, CROSS)


def test_adapt_with_equal_widths_adapts_nothing(tmp_path):
    _, _, report = load(saved(tmp_path / "q.pth", lavis_state()), cross_attention="adapt")
    assert report.count("fresh") == 0


@pytest.mark.parametrize(("feature_dim", "width"), [(24, 40), (40, 24), (32, 32)])
def test_the_adapter_starts_at_unit_variance(feature_dim, width):
    torch.manual_seed(0)
    features = torch.randn(1, 4000, feature_dim) * 7 + 3
    assert abs(FeatureAdapter(feature_dim, width)(features).var().item() - 1) < 0.05


def test_without_text_branch_or_bert_the_report_names_the_remedy(tmp_path):
    torch.manual_seed(1)
    qformer, query_tokens, report = load(saved(tmp_path / "stage2.pth", lavis_state(text=False)))
    assert f"{2 + 6 * LAYERS} freshly initialized (no text branch in the file: give bert=)" in report.summary()
    words = qformer.state_dict()["embeddings.word_embeddings.weight"]
    assert words.shape == (30522, WIDTH) and words[0].eq(0).all() and abs(words[1:].std().item() - 0.02) < 0.001
    assert qformer.state_dict()["encoder.layer.1.output.LayerNorm.weight"].eq(1).all()
    assert qformer.state_dict()["encoder.layer.1.output.dense.bias"].eq(0).all()
    assert output(qformer, query_tokens, False).allclose(expected(lavis_state(text=False), False), atol=1e-5)


@pytest.mark.parametrize("vocab", [VOCAB, VOCAB + 1])
def test_the_checkpoints_own_vocabulary_goes_before_berts(tmp_path, vocab):
    state = lavis_state(vocab=vocab)
    path = saved(tmp_path / "q.pth", state)
    qformer, _, report = load(path, bert=saved(tmp_path / "bert.bin", bert_state(vocab=VOCAB)))
    assert qformer.get_input_embeddings().weight.equal(state[ROOT + "embeddings.word_embeddings.weight"])
    assert report.count("text") == 0
    reasons = [record.reason for record in report.records if record.source == "bert.embeddings.word_embeddings.weight"]
    assert reasons == ["the checkpoint has its own text branch"]


def test_a_stage_1_checkpoint_can_give_the_text_side(tmp_path):
    state, other = lavis_state(text=False), lavis_state(seed=4)
    text = {name: tensor for name, tensor in other.items() if "_embeddings" in name or ".intermediate." in name}
    text |= {n: t for n, t in other.items() if ".output." in n and "attention" not in n}
    path, stage_1 = saved(tmp_path / "stage2.pth", state), as_stage_1(tmp_path, other)
    qformer, query_tokens, report = load(path, bert=stage_1)
    torch.testing.assert_close(output(qformer, query_tokens, True), expected(state | text, True), rtol=0, atol=1e-5)
    assert "from LAVIS BLIP-2 stage 1" in report.summary()


@pytest.mark.parametrize(("wanted", "note"), [(3, f"first 3 of {QUERIES} rows"), (8, f"{QUERIES} rows and 3 fresh")])
def test_another_number_of_queries(tmp_path, wanted, note):
    state = lavis_state()
    _, query_tokens, report = load(saved(tmp_path / "q.pth", state), num_queries=wanted)
    kept = min(wanted, QUERIES)
    assert query_tokens.shape == (1, wanted, WIDTH)
    assert query_tokens[:, :kept].equal(state["query_tokens"][:, :kept])
    assert not query_tokens[:, kept:].eq(0).any()
    assert note in report.summary()


def test_a_file_without_query_tokens_gets_fresh_ones(tmp_path):
    state = {name: tensor for name, tensor in lavis_state().items() if name != "query_tokens"}
    _, query_tokens, report = load(saved(tmp_path / "q.pth", state))
    assert query_tokens.shape == (1, 32, WIDTH) and abs(query_tokens.std().item() - 0.02) < 0.002
    assert "1 freshly initialized (no query tokens in the file)" in report.summary()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_and_reported(tmp_path, dtype):
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in lavis_state().items()}
    qformer, query_tokens, report = load(saved(tmp_path / "q.pth", state))
    assert all(tensor.dtype == torch.float32 for tensor in qformer.state_dict().values())
    back = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.testing.assert_close(output(qformer, query_tokens, True), expected(back, True), rtol=0, atol=1e-5)
    count, kind = len(qformer.state_dict()) + 1, str(dtype).removeprefix("torch.")
    assert f"{kind} converted to float32 in {count}" in report.summary()


def test_two_q_formers_in_one_file_are_told_apart(tmp_path):
    parts = {"video_": lavis_state(seed=1), "audio_": lavis_state(seed=2)}
    both = {audio + name: tensor for audio, state in parts.items() for name, tensor in state.items()}
    path = saved(tmp_path / "both.pth", both)
    with pytest.raises(InputError, match=r"2 Q-Formers.*'audio_Qformer\.bert\.', 'video_Qformer\.bert\.'"):
        load(path)
    qformer, query_tokens, _ = load(path, prefix="audio_Qformer.bert")
    torch.testing.assert_close(output(qformer, query_tokens, True), expected(parts["audio_"], True), rtol=0, atol=1e-5)


def test_the_model_outlives_its_file(tmp_path):
    state = lavis_state()
    path = saved(tmp_path / "q.pth", state)
    qformer, query_tokens, _ = load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    torch.testing.assert_close(output(qformer, query_tokens, True), expected(state, True), rtol=0, atol=1e-5)
