"""`vb2 runs compare` on a store: finding runs, grouping seeds, what differs, terminal, JSON and page."""

import json
import re
from html.parser import HTMLParser

import pytest
from made_runs import made_references, make_run
from tracking_store import place_store
from typer.testing import CliRunner

from videoblip2.cli.runs import app
from videoblip2.config import InputError
from videoblip2.tracking.mlflow import store as stores
from videoblip2.tracking.mlflow.run_records import curve, find_run, rows_of
from videoblip2.tracking.reports import compare_runs
from videoblip2.training.seeds import seed_group

RESAMPLES = 300


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A store with runs of two stages, seeds under a parent, an evaluation and a run with nothing."""
    with pytest.MonkeyPatch.context() as patch:
        folder = place_store(tmp_path_factory.mktemp("runs"), patch)
        made = {"folder": folder}
        made["ce"] = make_run(folder, "ce", lambda n: n % 2, curve=[(10, 0.5), (20, 1.5)])
        made["scst"] = make_run(
            folder, "scst", lambda n: n % 4, "optim.lr=1e-5", stage="scst", curve=[(0, 1.5), (10, 2)]
        )
        made["test"] = make_run(
            folder,
            "test-ce",
            lambda n: n % 3,
            stage="evaluate",
            split="test",
            tags={"trained_by": made["ce"], "split": "test"},
        )
        with seed_group("ce", "ce-wide-2seeds", "toy") as group:
            for seed in (0, 1):
                overrides = ("train.batch_size=64", f"seed={seed}")
                child = make_run(
                    folder, f"ce-wide-seed{seed}", lambda n, s=seed: n % (3 + s), *overrides, tags={"seed": str(seed)}
                )
                group.join(child)
                made[f"seed{seed}"] = child
            group.tracker.log_config({"train.batch_size": 64, "seed": "0, 1"})
            group.tracker.set_tags({"seeds": "0, 1"})
        made["parent"] = group.tracker.run_id
        yield made


def invoke(*words):
    return CliRunner().invoke(app, ["compare", *words], catch_exceptions=False)


def names(comparison):
    return [side.name for side in comparison.sides]


# --- finding


def test_a_run_is_found_by_id_by_its_beginning_and_by_name(runs):
    wanted = runs["scst"]
    assert {find_run(word).run_id for word in (wanted, wanted[:8], "scst")} == {wanted}


@pytest.mark.parametrize("word", ["nothing", "0" * 32, "0000000", "it's"])
def test_an_unknown_run_is_named_with_the_way_to_find_one(runs, word):
    with pytest.raises(InputError, match=f"^{word}: no run with that id or name in .*vb2 runs list"):
        find_run(word)


def test_a_name_of_several_runs_is_refused_with_their_ids(runs):
    client = stores.connect()
    experiment = client.get_experiment_by_name("toy").experiment_id
    twins = [client.create_run(experiment, run_name="twin").info.run_id for _ in range(2)]
    with pytest.raises(InputError, match=r"twin: 2 runs have this name, newest first") as caught:
        find_run("twin")
    assert all(twin[:12] in str(caught.value) for twin in twins)


def test_the_captions_of_an_evaluation_belong_to_the_run_that_trained_the_model_if_it_decodes_alike(runs):
    tags = {"trained_by": runs["ce"], "split": "test"}
    beams = "decode.num_beams=5"
    make_run(runs["folder"], "test-ce-beams", lambda n: n % 5, beams, stage="evaluate", split="test", tags=tags)
    found = rows_of(find_run("ce"))
    assert found["captions", "val"] == (runs["ce"], "ce.jsonl")
    assert found["captions", "test"] == (runs["test"], "test-ce.jsonl")


def test_a_curve_is_in_the_order_of_its_steps_and_empty_for_no_metric(runs):
    assert curve(runs["ce"], "val/CIDEr") == [(10, 0.5), (20, 1.5)]
    assert curve(runs["ce"], "val/none") == curve("0" * 32, "val/CIDEr") == []


# --- sides


def test_only_what_differs_is_shown(runs):
    comparison = compare_runs(["ce", "scst"], resamples=RESAMPLES)
    assert (names(comparison), comparison.split, comparison.videos) == (["ce", "scst"], "val", 24)
    assert dict(comparison.differs) == {"stage": ("ce", "scst"), "optim.lr": ("0.0001", "1e-05")}


def test_the_seeds_of_a_parent_are_one_side(runs):
    comparison = compare_runs(["ce", "ce-wide-2seeds"], resamples=RESAMPLES)
    assert names(comparison) == ["ce", "ce-wide-2seeds"]
    assert [run.run_id for run in comparison.sides[1].runs] == [runs["seed0"], runs["seed1"]]
    assert dict(comparison.differs) == {"train.batch_size": ("32", "64")}


def test_runs_that_differ_in_their_seed_only_go_together_unless_nothing_is_left_to_compare(runs):
    together = compare_runs(["ce", "ce-wide-seed0", "ce-wide-seed1"], resamples=RESAMPLES)
    assert [(side.name, len(side.runs)) for side in together.sides] == [("ce", 1), ("ce-wide", 2)]
    apart = compare_runs(["ce-wide-seed0", "ce-wide-seed1"], resamples=RESAMPLES)
    assert names(apart) == ["ce-wide-seed0", "ce-wide-seed1"]
    assert dict(apart.differs) == {"seed": ("0", "1")}


def test_one_side_a_wrong_split_and_missing_captions_are_refused(runs):
    with pytest.raises(InputError, match="ce: only one side; name two runs or more"):
        compare_runs(["ce"])
    with pytest.raises(InputError, match="split 'train': not one of val, test"):
        compare_runs(["ce", "scst"], "train")
    lacking = rf"test: not every run .*; scst \({runs['scst']}\) has captions of val\); .*vb2 evaluate RUN --split test"
    with pytest.raises(InputError, match=lacking):
        compare_runs(["ce", "scst"], "test")
    with pytest.raises(InputError, match=r"val or test: not every run .*; test-ce \(\w+\) has captions of test"):
        compare_runs(["scst", "test-ce"])


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1e", "\r"])
def test_any_separator_of_lines_may_be_inside_a_caption(runs, separator):
    references = {video: (f"{first}{separator}again", *more) for video, (first, *more) in made_references().items()}
    for name, every in (("odd", 2), ("even", 3)):
        make_run(runs["folder"], f"{name}-{ord(separator)}", lambda n, k=every: n % k, references=references)
    comparison = compare_runs([f"odd-{ord(separator)}", f"even-{ord(separator)}"], resamples=RESAMPLES)
    assert comparison.videos == len(references)


# --- the command


def test_the_terminal_shows_what_differs_scores_wins_and_losses(runs):
    shown = invoke("ce", "scst", "--top", "2").stdout
    assert f"24 videos of val\n  A  ce  {runs['ce']}\n  B  scst  {runs['scst']}" in shown
    assert re.search(r"optim\.lr +│ 0\.0001 +│ 1e-05", shown)
    assert re.search(
        r"CIDEr +│ [\d.]+ \[[\d., ]+\] │ [\d.]+ \[[\d., ]+\] │ [\d.]+ +│ \+[\d.]+ \[\+[\d.]+, \+[\d.]+\] +│ < 0\.001",
        shown,
    )
    assert "B has the higher CIDEr on 6 videos, A on 0, equal on 18." in shown
    assert re.search(r"distinct words \(%\) +(│ [\d.]+ +){3}│", shown)
    assert re.search(r"B against A: \+[\d.]+ CIDEr, and no other metric is significantly worse", shown)
    assert shown.count("a black cube") == 2
    assert "Largest losses" not in shown
    reference = made_references()["video2"][1]
    assert shown.count(reference) <= 1


def test_json_holds_everything_in_the_scale_of_pycocoevalcap(runs):
    result = json.loads(invoke("ce", runs["parent"], "--json").stdout.splitlines()[-1])
    assert [side["runs"] for side in result["sides"]] == [[runs["ce"]], [runs["seed0"], runs["seed1"]]]
    cider = result["metrics"]["CIDEr"]
    low, value, high = (cider["values"][0][key] for key in ("low", "value", "high"))
    assert 0 < low < value < high < 10
    assert set(cider["differences"][0]) == {"difference", "low", "high", "p_value"}
    (duel,) = result["duels"]
    assert duel["sentence"].endswith("and no other metric is significantly worse")
    assert 0 < result["humans"]["content_recall"] < 1 and len(result["whole"]["distinct_1"]) == 2
    win = duel["wins"][0]
    assert len(win["challenger"]["captions"]) == 2
    assert win["references"] == list(made_references()[win["video_id"]])


def test_a_report_holds_each_title_once_with_scores_seeds_minutes_commit_and_command(runs, tmp_path):
    def report(*words):
        return CliRunner().invoke(
            app, ["report", *words, "--out", str(tmp_path / "RESULTS.md")], catch_exceptions=False
        )

    stores.connect().set_tag(runs["scst"], "command", "vb2 scst x.yaml")
    stores.connect().set_tag(runs["scst"], "git.commit", "0123456789abcdef")
    stores.connect().set_tag(runs["scst"], "git.dirty", "false")
    for words in (["ce", "--title", "One"], ["ce", "--title", "Two"], ["ce", "scst", runs["parent"], "--title", "One"]):
        assert report(*words).exit_code == 0
    text = (tmp_path / "RESULTS.md").read_text()
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == ["One", "Two"]
    assert re.search(r"\| A · ce \|( [\d.]+ \[[\d.]+, [\d.]+\] \|){3} 0 \| \d+\.\d \|", text)
    assert re.search(r"\| B · scst \|.* 0 \| \d+\.\d \| 0123456789 \|", text)
    assert re.search(r"\| C · ce-wide-2seeds \|.* 0, 1 \|", text)
    assert re.search(r"\| B − A \| \+[\d.]+ \[\+", text)
    assert f"- B: `vb2 scst x.yaml` (run `{runs['scst'][:8]}`)" in text
    assert "vb2 runs report ce scst" in text and "videos and seeds resampled" in text
    assert "- B against A: +" in text and re.search(r"\| people \| [\d.]+ \|", text)


class Links(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for key, value in attrs if key in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "br", "line", "polyline", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "polyline", "rect"):
            assert self.open.pop() == tag


def test_the_page_is_whole_fetches_nothing_and_shows_no_markup_of_others(runs):
    page = runs["folder"] / "pages" / "compare.html"
    attack = "<script>alert(1)</script>"
    make_run(runs["folder"], "attack", lambda n: n % 2, f"data.prompt={attack}", "optim.lr=0.1")
    assert "page: " in invoke("ce", "scst", "attack", "--html", str(page)).stdout
    text = page.read_text()
    links = Links()
    links.feed(text)
    assert links.fetched == links.open == []
    assert "url(" not in text and "@import" not in text
    assert attack not in text and "&lt;script&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<article") == 5  # the five largest wins of scst; attack equals ce
    assert text.count("<polyline") == 2
    assert "CIDEr, and no other metric is significantly worse." in text and ">humans</th>" in text
    assert [file.name for file in page.parent.iterdir()] == ["compare.html"]
