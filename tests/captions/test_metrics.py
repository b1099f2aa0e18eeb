"""The metrics through pycocoevalcap: equal to COCOEvalCap, and honest about what cannot run."""

import shutil

import pytest

from videoblip2.captions import caption_metrics, diversity, metrics
from videoblip2.config import InputError

PYTHON_METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")
REFERENCES = {
    "video9": ["A man is cooking.", "a chef's cooking in the kitchen", "someone cooks (a lot)"],
    "video1": ["two dogs run", "Dogs are running on the grass"],
    "video5": ["a woman talks about make-up", "the woman is talking"],
}
CAPTIONS = {"video1": "a dog is running on grass", "video9": "a man cooks", "video5": "The woman is talking, again."}

# COCOEvalCap of pycocoevalcap 1.2 on the above (its PTBTokenizer, its METEOR 1.5).
CORPUS = {
    "Bleu_1": 0.6650448425507244,
    "Bleu_2": 0.5305222553949606,
    "Bleu_3": 0.40312716363191375,
    "Bleu_4": 0.3323408968048698,
    "METEOR": 0.4104285612051293,
    "ROUGE_L": 0.654713607532266,
    "CIDEr": 2.136898192037014,
}
PER_VIDEO = {
    "video9": {
        "Bleu_1": 0.7165313100961022,
        "Bleu_2": 0.5066641482592128,
        "Bleu_3": 5.687112775493775e-06,
        "Bleu_4": 3.388267370133672e-06,
        "METEOR": 0.330071906757145,
        "ROUGE_L": 0.5570776255707762,
        "CIDEr": 1.039032188599927,
    },
    "video1": {
        "Bleu_1": 0.4999999998333335,
        "Bleu_2": 0.3162277659061584,
        "Bleu_3": 2.924017737124485e-06,
        "Bleu_4": 9.55442791818209e-09,
        "METEOR": 0.400374460447101,
        "ROUGE_L": 0.5,
        "CIDEr": 1.0613514310005834,
    },
    "video5": {
        "Bleu_1": 0.7999999996800004,
        "Bleu_2": 0.7745966689122801,
        "Bleu_3": 0.7368062993883281,
        "Bleu_4": 0.6687403046281203,
        "METEOR": 0.5162461822929048,
        "ROUGE_L": 0.9070631970260222,
        "CIDEr": 4.310310956510531,
    },
}


def test_metrics_equal_cocoevalcap():
    result = caption_metrics(REFERENCES, CAPTIONS, PYTHON_METRICS)
    assert list(result.corpus) == list(PYTHON_METRICS)
    assert result.corpus == pytest.approx({name: CORPUS[name] for name in PYTHON_METRICS}, abs=1e-9)
    for video, values in PER_VIDEO.items():
        expected = {name: values[name] for name in PYTHON_METRICS}
        assert result.per_video[video] == pytest.approx(expected, abs=1e-9)
    assert result.unavailable == {}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # COCOEvalCap leaves its pipes open
@pytest.mark.java
@pytest.mark.slow  # METEOR loads its paraphrases for ten seconds
@pytest.mark.skipif(shutil.which("java") is None, reason="java not found")
def test_meteor_equals_cocoevalcap():
    result = caption_metrics(REFERENCES, CAPTIONS, ["METEOR"])
    assert result.corpus == pytest.approx({"METEOR": CORPUS["METEOR"]}, abs=1e-6)
    for video, values in PER_VIDEO.items():
        assert result.per_video[video] == pytest.approx({"METEOR": values["METEOR"]}, abs=1e-6)


def test_without_java_the_rest_comes_out(monkeypatch):
    monkeypatch.setattr(metrics.shutil, "which", lambda _: None)
    result = caption_metrics(REFERENCES, CAPTIONS)
    assert result.unavailable == {"METEOR": "java not found", "SPICE": "java not found"}
    unrewarded = {"content_precision", "content_recall", "repetition"}
    assert set(result.corpus) == {*PYTHON_METRICS, *metrics.DIVERSITY, *unrewarded}
    assert set(result.per_video["video1"]) == {*PYTHON_METRICS, *unrewarded, "mean_length", "bad_endings"}


def test_content_words_are_what_a_caption_says_beyond_grammar():
    references = {"a": ["a man is singing on a stage", "the man sings"], "b": ["there is something in it"]}
    captions = {"a": "a man is singing in a car", "b": "it is on the"}
    found = caption_metrics(references, captions, ["content_precision", "content_recall"]).per_video
    assert found["a"] == pytest.approx({"content_precision": 2 / 3, "content_recall": (2 / 3 + 1 / 2) / 2})
    assert found["b"] == {"content_precision": 0.0, "content_recall": 0.0}


def test_a_person_is_scored_by_one_reference_of_each_video_against_its_others():
    references = {"a": ["a dog runs", "a dog runs"], "b": ["a cat sits", "a man sings"], "c": ["alone"]}
    found = metrics.human_metrics(references)
    assert found["content_precision"] == found["content_recall"] == 0.5
    assert found["mean_length"] == 3.0 and {"CIDEr", "ROUGE_L", "repetition", "distinct_1"} <= set(found)
    assert metrics.human_metrics({"c": ["alone"]}) == {}


def test_a_gain_is_said_with_what_is_worse_beyond_chance():
    gained = {"CIDEr": (0.044, -0.01, 0.09, 0.1), "ROUGE_L": (-0.016, -0.023, -0.009, 0.001)}
    assert metrics.gain_and_cost("CIDEr", gained) == "+4.4 CIDEr, at the cost of −1.6 ROUGE-L [−2.3, −0.9]"
    harmless = {"Bleu_1": (-0.1, -0.2, -0.05), "METEOR": (-0.1, -0.2, 0.1), "mean_length": (-2.0, -3.0, -1.0)}
    free = metrics.gain_and_cost("CIDEr", {"CIDEr": (-0.01, -0.02, 0.0), **harmless})
    assert free == "−1.0 CIDEr, and no other metric is significantly worse"
    stutters = {"CIDEr": (0.1, 0.0, 0.2), "repetition": (0.02, 0.01, 0.03)}
    lost = {**gained, "CIDEr": (-0.01, -0.1, 0.1), "repetition": (0.02, 0.01, 0.03), "METEOR": (-0.1, -0.2, 0.1)}
    said = "−1.0 CIDEr, along with −1.6 ROUGE-L [−2.3, −0.9], +2.0 repeated bigrams [+1.0, +3.0] and −10.0 METEOR"
    assert metrics.gain_and_cost("CIDEr", lost, also=["METEOR"]) == f"{said} [−20.0, +10.0]"
    assert metrics.gain_and_cost("CIDEr", stutters).endswith("the cost of +2.0 repeated bigrams [+1.0, +3.0]")


def test_without_its_models_spice_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(metrics.shutil, "which", lambda _: "/usr/bin/java")
    monkeypatch.setattr(metrics, "spice_models_present", lambda: False)
    result = caption_metrics(REFERENCES, CAPTIONS, ["SPICE", "ROUGE_L"])
    assert "model files are missing" in result.unavailable["SPICE"]
    assert list(result.corpus) == ["ROUGE_L"]


@pytest.mark.parametrize("name", ["METEOR", "SPICE"])
def test_a_java_process_that_dies_is_named_not_counted_as_zero(monkeypatch, name):
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.spice.spice import Spice

    def die(*_):
        raise ValueError("could not convert string to float: ''")

    monkeypatch.setattr(metrics.shutil, "which", lambda _: "/usr/bin/java")
    monkeypatch.setattr(metrics, "spice_models_present", lambda: True)
    for scorer in (Meteor, Spice):
        monkeypatch.setattr(scorer, "__init__", lambda self: None)
        monkeypatch.setattr(scorer, "compute_score", die)
    monkeypatch.delattr(Meteor, "__del__")
    result = caption_metrics(REFERENCES, CAPTIONS, [name, "Bleu_1"])
    assert result.unavailable[name].startswith("its Java process failed")
    assert list(result.corpus) == ["Bleu_1"]


def test_spice_scores_are_matched_to_videos_by_id(monkeypatch):
    """SPICE returns its scores in the order of its sorted ids."""
    from pycocoevalcap.spice.spice import Spice

    def by_sorted_id(_, references, __):
        return 0.5, [{"All": {"f": len(references[video]) / 10}} for video in sorted(references)]

    monkeypatch.setattr(metrics.shutil, "which", lambda _: "/usr/bin/java")
    monkeypatch.setattr(metrics, "spice_models_present", lambda: True)
    monkeypatch.setattr(Spice, "__init__", lambda self: None)
    monkeypatch.setattr(Spice, "compute_score", by_sorted_id)
    result = caption_metrics(REFERENCES, CAPTIONS, ["SPICE"])
    assert {video: values["SPICE"] for video, values in result.per_video.items()} == {
        "video9": 0.3,
        "video1": 0.2,
        "video5": 0.2,
    }


def test_odd_captions_are_scored():
    odd = {"video9": "", "video1": "...\n\U0001f600", "video5": "talks " * 2_000}
    result = caption_metrics(REFERENCES, odd, PYTHON_METRICS)
    assert result.per_video["video9"]["CIDEr"] == result.per_video["video1"]["Bleu_4"] == 0.0


@pytest.mark.parametrize(
    ("references", "captions", "wanted", "named"),
    [
        (REFERENCES, CAPTIONS, ["BLEU"], "BLEU"),
        (REFERENCES, {**CAPTIONS, "video7": "x"}, None, "video7"),
        ({**REFERENCES, "video8": ["x"]}, CAPTIONS, None, "video8"),
        ({**REFERENCES, "video8": []}, {**CAPTIONS, "video8": "x"}, None, "video8"),
        ({"video2": ["..."]}, {"video2": "x"}, ["CIDEr"], "video2"),
        ({}, {}, None, "no references"),
    ],
)
def test_mistakes_are_named(references, captions, wanted, named):
    with pytest.raises(InputError, match=named):
        caption_metrics(references, captions, wanted)


def test_diversity_of_a_set_of_captions():
    result = diversity(["a man runs", "a man runs to a", "the man."])
    assert result["distinct_1"] == pytest.approx(5 / 10)  # a man runs to the
    assert result["distinct_2"] == pytest.approx(5 / 7)  # a-man man-runs runs-to to-a the-man
    assert result["vocabulary"] == 5
    assert result["mean_length"] == pytest.approx(10 / 3)
    assert result["bad_endings"] == pytest.approx(1 / 3)


def test_diversity_of_nothing_is_zero():
    assert set(diversity([]).values()) == {0.0} == set(diversity(["", "..."]).values())


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("CIDEr", "61.3 [60.0, 62.5]", "CIDEr ×100"),
        ("bad_endings", "61.3 [60.0, 62.5]", "bad endings (%)"),
        ("mean_length", "0.6 [0.6, 0.6]", "words per caption"),
        ("accuracy_what", "61.3 [60.0, 62.5]", "accuracy_what ×100"),
    ],
)
def test_values_are_shown_by_the_table_and_other_names_as_shares(name, text, label):
    assert metrics.shown_interval(name, (0.613, 0.6, 0.625, 0.01)) == text
    assert metrics.label_of(name, scale=True) == label
    assert metrics.shown(name, 0.613, "+") == f"+{text.partition(' ')[0]}"


def test_a_function_that_misses_a_video_is_named(monkeypatch):
    monkeypatch.setitem(metrics.METRICS, "Short", metrics.Metric("Short", lambda captions, references: [1.0]))
    with pytest.raises(InputError, match=r"metric 'Short' returned scores of shape \(1,\) for 3 captions"):
        caption_metrics(REFERENCES, CAPTIONS, ["Short"])


def test_summaries_show_few_metrics_in_the_order_of_the_table():
    names = ["mean_length", "accuracy", "Bleu_4", "Bleu_1", "CIDEr", "unknown"]
    assert metrics.summary_metrics(names) == ["CIDEr", "Bleu_4", "accuracy"]
    assert set(metrics.default_metrics()) - set(metrics.default_metrics(fast=True)) == {"METEOR"}
