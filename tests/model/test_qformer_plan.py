"""The plan of a load: every tensor of model and files accounted for, and one line for every file that does not fit."""

import json

import pytest
import torch
from reference_qformer import CROSS, FFN, HEADS, LAYERS, ROOT, WIDTH, State, bert_state, lavis_state, saved

from videoblip2.config import InputError
from videoblip2.model.load_weights import QFormerOptions, load_qformer, plan_qformer
from videoblip2.model.weight_source import find_qformer, find_text

EXTRAS = {"t5_proj.weight": torch.ones(16, WIDTH), "ln_vision.weight": torch.ones(CROSS)}


def load(path, feature_dim=CROSS, **options):
    return load_qformer(path, feature_dim=feature_dim, num_attention_heads=HEADS, **options)


def test_the_report_lists_every_tensor_once(tmp_path):
    path, bert = saved(tmp_path / "stage2.pth", lavis_state(text=False) | EXTRAS), bert_state()
    qformer, _, report = load(path, feature_dim=40, bert=saved(tmp_path / "bert.bin", bert))
    of_model = [record.name for record in report.records if record.status != "unused"]
    assert sorted(of_model) == sorted([*qformer.state_dict(), "query_tokens"])
    of_files = [record.source for record in report.records if record.source]
    assert sorted(of_files) == sorted([*(lavis_state(text=False) | EXTRAS), *bert])
    rows = report.table()
    assert sum(int(row[1]) for row in rows) == len(report.records)
    renamed = next(row for row in rows if row[0] == "encoder.layer.*.attention.attention.query")
    assert renamed == (
        "encoder.layer.*.attention.attention.query",
        str(2 * LAYERS),
        f"{LAYERS * (WIDTH * WIDTH + WIDTH):,}",
        "loaded",
        "renamed from Qformer.bert.encoder.layer.*.attention.self.query",
    )
    unused = {row[0]: row[4] for row in rows if row[3] == "unused"}
    assert unused["t5_proj"] == "a projection to another language model"
    assert unused["Qformer.bert.encoder.layer.*.crossattention.self.key"] == "its width is not that of the features"
    data = json.loads(json.dumps(report.to_json()))
    assert data["counts"] == {
        "loaded": len(of_model) - 4 - 26,
        "text": 26,
        "fresh": 4,
        "unused": len(report.records) - len(of_model),
    }


def test_full_size_key_counts():
    """The counts of blip2_pretrained.pth and blip2_pretrained_flant5xl.pth, from their names and shapes alone."""
    from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

    with torch.device("meta"):
        full = InstructBlipQFormerModel(InstructBlipQFormerConfig()).state_dict()
        ids, queries = torch.empty(1, 512, dtype=torch.long), torch.empty(1, 32, 768)
    lavis = {ROOT + lavis_name(name): tensor for name, tensor in full.items()}
    lavis[ROOT + "embeddings.position_ids"] = ids
    absent = [n for n in lavis if ".intermediate." in n or "_embeddings" in n]
    absent += [n for n in lavis if ".output." in n and "attention" not in n]
    stage_2 = {name: tensor for name, tensor in lavis.items() if name not in absent}
    assert (len(lavis), len(stage_2), len(absent)) == (329, 255, 74)
    assert sum(tensor.numel() for name, tensor in lavis.items() if "position_ids" not in name) == 185_659_392
    assert sum(lavis[name].numel() for name in absent) == 80_521_728
    bert = {name.removeprefix("Qformer."): lavis[name] for name in absent}
    whole, text = find_qformer({"query_tokens": queries} | stage_2, "f"), find_text(bert, "bert")
    _, report = plan_qformer(whole, QFormerOptions(), text)
    assert report.summary() == ("243 loaded, 12 reinitialized (width), 74 from BERT")
    _, adapted = plan_qformer(whole, QFormerOptions(cross_attention="adapt"), text)
    assert adapted.summary() == "255 loaded, 4 freshly initialized (feature adapter), 74 from BERT"


def lavis_name(name: str) -> str:
    return name.replace("attention.attention.", "attention.self.").replace(
        "embeddings.layernorm", "embeddings.LayerNorm"
    )


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


LAYER_1 = ROOT + "encoder.layer.1."
T5 = {"shared.weight": torch.ones(2, 2), "encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2)}
QUANTISED = {ROOT + "encoder.layer.0.output_query.dense.weight": torch.ones(WIDTH, FFN, dtype=torch.int8)}
NOT_A_NUMBER = {LAYER_1 + "output_query.dense.bias": torch.full((WIDTH,), torch.nan)}
BAD_FILES = {
    "T5": (T5, "looks like a T5 language model"),
    "BERT": (bert_state(), r"looks like a BERT-like text encoder \(it belongs in bert="),
    "unknown": ({"a.weight": torch.ones(2)}, r"no Q-Former in it \(it looks like tensors named 'a.weight'\)"),
    "no cross-attention": ({n: t for n, t in lavis_state().items() if "cross" not in n}, "no cross-attention"),
    "lost layer": ({n: t for n, t in lavis_state().items() if not n.startswith(LAYER_1)}, "not consecutive"),
    "lost tensor": (without(lavis_state(), LAYER_1 + "attention.output.dense.bias"), "lacks encoder.layer.1.attention"),
    "wrong shape": (lavis_state() | {LAYER_1 + "attention.self.key.weight": torch.ones(3, 3)}, r"has shape \[3, 3\]"),
    "queries": (lavis_state() | {"query_tokens": torch.ones(1, 4, 9)}, r"query_tokens has shape \[1, 4, 9\]"),
    "quantised": (lavis_state() | QUANTISED, "output_query.dense.weight is int8"),
    "not finite": (lavis_state() | NOT_A_NUMBER, "output_query.dense.bias contains NaN"),
    "irregular": (
        {n.replace("layer.0.cross", "layer.1.cross"): t for n, t in lavis_state().items()},
        "not a regular period",
    ),
    "twice": (lavis_state() | {ROOT + "layernorm.weight": torch.ones(WIDTH)}, "are the same tensor"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, case):
    tensors, message = BAD_FILES[case]
    with pytest.raises(InputError, match=message) as error:
        load(saved(tmp_path / "bad.pth", tensors))
    assert "\n" not in str(error.value) and str(tmp_path / "bad.pth") in str(error.value)


BAD_BERTS = {
    "T5": (T5, "no BERT in it"),
    "too few layers": (bert_state(layers=LAYERS - 1), f"lacks encoder.layer.{LAYERS - 1}.intermediate"),
    "width": ({n: t[..., :16] for n, t in bert_state().items()}, r"word_embeddings.weight has shape \[61, 16\]"),
}


@pytest.mark.parametrize("case", BAD_BERTS)
def test_a_bert_that_does_not_fit_is_one_line(tmp_path, case):
    tensors, message = BAD_BERTS[case]
    path, bert = saved(tmp_path / "q.pth", lavis_state(text=False)), saved(tmp_path / "bert.bin", tensors)
    with pytest.raises(InputError, match=message) as error:
        load(path, bert=bert)
    assert "\n" not in str(error.value) and str(bert) in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_attention": "keep"}, "cross_attention='keep'"),
        ({"feature_dim": 0}, "feature_dim=0"),
        ({"num_queries": 0}, "num_queries=0"),
        ({"prefix": "other"}, "no Q-Former under prefix 'other.'"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        load(saved(tmp_path / "q.pth", lavis_state()), **options)


def test_heads_must_divide_the_width(tmp_path):
    with pytest.raises(InputError, match="num_attention_heads=5"):
        load_qformer(saved(tmp_path / "q.pth", lavis_state()), num_attention_heads=5)
