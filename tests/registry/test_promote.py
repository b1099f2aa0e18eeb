"""Promotion: the first champion, the next one, what holds one back, and what two promoters do to each other."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from gate_world import FAIR, GOOD, HALF, NOUNS, POOR, REFERENCES, RIGHT, Gatehouse, made_with

from videoblip2.config import InputError
from videoblip2.errors import no_progress
from videoblip2.features.manifest import FeatureManifest
from videoblip2.provenance import Provenance
from videoblip2.registry import contenders
from videoblip2.registry import versions as registry
from videoblip2.registry.promote import TRIVIAL, rollback
from videoblip2.registry.verdict_files import facts_of
from videoblip2.registry.versions import LOCK, moves, promotion_lock
from videoblip2.tracking import find_model
from videoblip2.tracking.mlflow.store import connect
from videoblip2.tracking.source import ProcessRecord

NAME = "videoblip2"


@pytest.fixture
def house(tmp_path, monkeypatch):
    return Gatehouse(tmp_path, monkeypatch)


def version(number):
    return connect().get_model_version(NAME, str(number))


def facts(number):
    return facts_of(version(number).tags)


def test_a_version_becomes_champion_only_through_the_gate(house):
    held = house.promote(house.log("poor", POOR))
    assert (held.promoted, held.opponent, held.version) == (False, TRIVIAL["captions"], 1)
    assert registry.champion() is None
    assert facts(1)["verdict"] == "failed" and facts(1)["outcome"] == "held back"
    first = house.promote(house.log("good", GOOD))
    assert (first.promoted, first.version, registry.champion()) == (True, 2, 2)
    assert "at the cost" not in first.verdict.sentence
    second = house.promote(house.log("again", GOOD))
    assert (second.promoted, second.previous, second.opponent, registry.champion()) == (False, 2, f"{NAME}/2", 2)
    assert "CIDEr gain" in second.verdict.failed[0]


def test_the_verdict_its_table_and_plot_are_on_the_version_and_its_run(tmp_path, monkeypatch):
    house = Gatehouse(tmp_path, monkeypatch, plots=True)
    (house.root / "good").mkdir()
    (house.root / "good" / "README.md").write_text("# A card\n\n## Gate\n\nan earlier verdict\n")
    run = house.log("good", GOOD)
    result = house.promote(run)
    found = facts(1)
    card = (find_model(f"models:/{NAME}/1").folder / "README.md").read_text()
    assert card.startswith("# A card\n\n## Gate\n\n**Gate: passed.**") and result.verdict.sentence in card
    assert "earlier" not in card
    assert found["verdict"] == "passed" and found["outcome"] == "promoted" and found["who"]
    assert float(found["gain"]) == pytest.approx(result.verdict.gain.difference, abs=1e-6)
    assert json.loads(found["manifest"])["size"] == len(REFERENCES)
    description = version(1).description
    assert description.count("| CIDEr gain |") == 1 and "Gate: passed" in description
    assert result.verdict.sentence + "." in description.splitlines()
    place = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1")) / found["files"]
    assert {file.name for file in place.iterdir()} == {"verdict.json", "verdict.png", "videos.csv"}
    assert (place / "verdict.png").read_bytes().startswith(b"\x89PNG")
    assert len((place / "videos.csv").read_text().splitlines()) == 1 + len(REFERENCES)
    logged = connect().get_run(result.run_id)
    assert logged.data.metrics["gate/difference"] == pytest.approx(result.verdict.gain.difference)
    assert logged.data.tags["gate"] == "promoted" and logged.info.status == "FINISHED"


def test_a_second_verdict_leaves_nothing_of_the_first(house):
    run = house.log("poor", POOR)
    house.promote(run)
    assert facts(1)["failed"]
    (house.root / "gate.yaml").write_text(json.dumps({"minimum_gain": 0.02, "resamples": 500}))
    first_files = facts(1)["files"]
    forced = house.promote(run, reason="for the exhibition")
    assert (forced.version, forced.forced, registry.champion()) == (1, True, 1)
    assert facts(1)["reason"] == "for the exhibition" and facts(1)["outcome"] == "forced"
    assert any(folder.is_dir() for folder in house.root.rglob(first_files))  # the files of both stay
    (move,) = moves()
    assert (move.action, move.version, move.previous, move.why) == ("force", 1, None, "for the exhibition")


def test_the_champion_itself_a_folder_and_an_unknown_run_are_refused(house):
    run = house.log("good", GOOD)
    house.promote(run)
    Provenance(run_id=run).write(house.root / "good")
    for model, message in (
        (run, "is already the champion"),
        (str(house.root / "good"), f"a folder; promote what a run logged: {run}"),
        ("f" * 32, "no run with that id or name in sqlite"),
    ):
        with pytest.raises(InputError, match=message):
            house.promote(model)
    assert LOCK not in connect().get_registered_model(NAME).tags


def shown_to_a_person(tags):
    """MLflow's page hides tags of its own prefix."""
    return {key: value for key, value in tags.items() if not key.startswith("mlflow.")}


def test_a_persons_page_has_descriptions_and_one_tag(house):
    house.promote(house.log("fair", FAIR), reason="for the | exhibition")
    result = house.promote(house.log("good", GOOD))
    model, run = connect().get_registered_model(NAME), connect().get_run(result.run_id)
    assert shown_to_a_person(model.tags) == {}
    assert shown_to_a_person(version(1).tags) == {"gate": "forced"}
    assert shown_to_a_person(version(2).tags) == {"gate": "promoted"}
    assert {key for key in shown_to_a_person(run.data.tags) if key.startswith("gate")} == {"gate"}
    head, _, *rows = [line for line in model.description.splitlines() if line.startswith("|")]
    assert head == "| when | champion | by | why | who |"
    assert [row.split(" | ")[1:4] for row in rows] == [
        ["2", "promote", rows[0].split(" | ")[3]],
        ["1", "force", r"for the \| exhibition"],
    ]
    connect().update_registered_model(NAME, "our own words")
    rollback()
    assert connect().get_registered_model(NAME).description == "our own words"


def other(references):
    return {video: [*texts[:-1], "something else"] for video, texts in references.items()}


def test_other_validation_data_than_the_champions_are_refused_or_forced(house):
    house.promote(house.log("fair", FAIR), reason="a first one")
    for data, message in (
        ({"feature": 2.0}, "have other features for validation"),
        ({"references": other(REFERENCES)}, "have other references for validation"),
        ({"references": dict(list(REFERENCES.items())[1:])}, r"have other videos \(11 and 12\) for validation"),
    ):
        house.write_data("other", **data)
        captions = {video: GOOD[video] for video in data.get("references", REFERENCES)}
        run = house.log("good", captions, "other")
        with pytest.raises(InputError, match=message):
            house.promote(run)
        assert registry.champion() == 1
    forced = house.promote(run, reason="new data from now on")
    assert (forced.forced, forced.opponent, registry.champion()) == (True, TRIVIAL["captions"], 2)
    assert "comparable with the champion" in facts(2)["failed"]


def test_a_challenger_on_features_of_other_encoders_than_its_own_is_refused(house):
    FeatureManifest.model_validate(made_with("c1")).write(house.root / "data" / "features")
    run = house.log("good", GOOD, clip="c9")
    with pytest.raises(InputError, match=r"data/features: holds features of CLIP c1, .* was trained on those of c9"):
        house.promote(run)
    assert registry.champion() is None
    assert house.promote(house.log("fair", FAIR, clip="c1"), reason="a first one").promoted
    FeatureManifest.model_validate(made_with("c9")).write(house.root / "data" / "features")
    with pytest.raises(InputError, match=r"holds features of CLIP c9, .* was trained on those of c1"):
        house.promote(run, new_manifest=True)
    assert registry.champion() == 1


def test_features_of_other_encoders_are_compared_where_the_gate_allows_it(house):
    house.promote(house.log("fair", FAIR), reason="a first one")
    house.write_data("other", feature=2.0)
    house.gate.write_text(json.dumps({"guards": {}, "resamples": 500, "same_features": False}))
    result = house.promote(house.log("good", GOOD, "other"))
    assert (result.promoted, result.opponent) == (True, f"{NAME}/1")


def test_the_manifest_is_frozen_when_a_champion_is_made(house):
    house.promote(house.log("fair", FAIR), reason="a first one")
    house.write_data("data", other(REFERENCES))
    run = house.log("good", GOOD)
    with pytest.raises(InputError, match=f"{NAME}/1 was promoted on other references than .* --new-manifest"):
        house.promote(run)
    assert house.promote(run, new_manifest=True).promoted


def test_the_same_data_can_be_named_for_both(house):
    house.promote(house.log("fair", FAIR), reason="a first one")
    house.write_data("moved")
    run = house.log("good", GOOD, "moved")
    (house.root / "data").rename(house.root / "gone")
    with pytest.raises(InputError, match="data"):
        house.promote(run)
    root = house.root / "gone"
    assert house.promote(run, overrides=(f"data.annotations={root}", f"data.features={root}/features")).promoted


def meanwhile(act):
    """A progress bar during which something happens, once."""
    todo = [act]

    def progress(items, total, description):
        for item in items:
            if todo:
                todo.pop()()
            yield item

    return progress


def test_an_alias_that_was_moved_meanwhile_stays_where_it_was_moved_to(house):
    house.promote(house.log("fair", FAIR), reason="a first one")
    house.promote(house.log("poor", POOR))
    run = house.log("good", GOOD)
    with pytest.raises(InputError, match="is version 2 now and was version 1 when the gate looked"):
        house.promote(run, progress=meanwhile(lambda: registry.set_champion(NAME, 2)))
    assert registry.champion() == 2
    assert facts(3)["verdict"] == "passed" and facts(3)["outcome"].startswith("not moved")
    assert len(moves()) == 1


def test_a_writer_right_after_ours_is_noticed(house, monkeypatch):
    from videoblip2.registry import versions

    real = versions.set_champion
    monkeypatch.setattr(versions, "set_champion", lambda name, version: (real(name, version), real(name, 1)))
    house.promote(house.log("poor", POOR))
    with pytest.raises(InputError, match="was set to version 2, and is 1: another process is changing it"):
        house.promote(house.log("good", GOOD))


def test_of_two_promoters_at_once_the_second_is_refused(house):
    good, fair = house.log("good", GOOD), house.log("fair", FAIR)
    refusals = []

    def second():
        with pytest.raises(InputError, match=r"another promotion is under way \(.*, process \d+ on ") as caught:
            house.promote(fair)
        refusals.append(caught.value)

    assert house.promote(good, progress=meanwhile(second)).promoted
    assert len(refusals) == 1
    assert LOCK not in connect().get_registered_model(NAME).tags


def holder(**changes):
    tag = {"id": "theirs", "who": "ann", "host": "elsewhere", "pid": 1, "expires": time.time() + 60, **changes}
    connect().set_registered_model_tag(NAME, LOCK, json.dumps(tag))


def test_a_promoter_holds_the_lock_until_its_tag_expires_or_its_process_has_died(house):
    run = house.log("good", GOOD)
    connect().create_registered_model(NAME)
    holder()
    with pytest.raises(InputError, match=r"under way \(ann, process 1 on elsewhere\); wait .* delete the tag"):
        house.promote(run)
    assert json.loads(connect().get_registered_model(NAME).tags[LOCK])["id"] == "theirs"
    for free in ({"expires": time.time() - 1}, {**ProcessRecord.current().fields(), "pid": 2**22 + 1}):
        holder(**free)
        with promotion_lock(NAME) as taken:
            assert json.loads(connect().get_registered_model(NAME).tags[LOCK])["id"] == taken.id
    connect().set_registered_model_tag(NAME, LOCK, "written by hand")
    assert house.promote(run).promoted


def test_a_lock_that_was_lost_changes_nothing(house):
    run = house.log("good", GOOD)
    with pytest.raises(InputError, match="another promotion is under way"):
        house.promote(run, progress=meanwhile(holder))
    assert registry.champion() is None
    assert json.loads(connect().get_registered_model(NAME).tags[LOCK])["id"] == "theirs"


def test_latency_is_taken_in_turn_after_a_warm_up():
    seen = []

    def contender(label):
        say = lambda task, entries: seen.append((label, *entries))  # noqa: E731
        entries = {"captions": list(REFERENCES)}
        return SimpleNamespace(label=label, tasks=[SimpleNamespace(kind="captions")], entries=entries, say=say)

    pairs = contenders.time_in_turn(contender("one"), contender("two"), 3, no_progress)
    assert len(pairs) == 3
    assert [label for label, _ in seen] == ["one", "two", "two", "one", "one", "two", "two", "one"]
    assert {video for _, video in seen} == {f"video{n}" for n in range(3)} and len(NOUNS) > 3


def test_answers_are_promoted_by_their_accuracy_over_questions(house):
    first = house.promote(house.log("half", HALF, task="qa"))
    assert (first.promoted, first.opponent) == (True, "the most frequent training answers")
    second = house.promote(house.log("right", RIGHT, task="qa"))
    assert (second.promoted, second.opponent, second.verdict.metric) == (True, f"{NAME}/1", "accuracy")
    assert second.verdict.gain.difference == pytest.approx(0.5) and set(second.verdict.differences) == set(RIGHT)
    assert second.verdict.conditions[0].name == "accuracy gain"
    place = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/2")) / facts(2)["files"]
    assert (place / "questions.csv").read_text().startswith("question_id,difference,")
    assert facts(2)["metric"] == "accuracy" and "6 questions won, 0 lost" in version(2).description
    held = house.promote(house.log("again", RIGHT, task="qa"))
    assert not held.promoted and "accuracy gain 100.0 (+0.0)" in held.verdict.failed[0]


def test_a_mixture_must_gain_in_captions_and_keep_its_answers(house):
    house.promote(house.log("fair", FAIR | RIGHT, task="mixed"), reason="a first one")
    forgetful = house.promote(house.log("forgetful", GOOD | HALF, task="mixed"))
    assert [c.name for c in forgetful.verdict.conditions if not c.passed] == ["accuracy"]
    assert "CIDEr, at the cost of −50.0 accuracy [" in forgetful.verdict.sentence
    assert house.promote(house.log("both", GOOD | RIGHT, task="mixed")).promoted
    logged = connect().get_run(house.promote(house.log("worse", FAIR | RIGHT, task="mixed")).run_id)
    assert logged.data.metrics["val/accuracy"] == 1.0 and "val/CIDEr" in logged.data.metrics


def test_other_questions_than_the_champions_are_refused(house):
    house.promote(house.log("fair", FAIR | RIGHT, task="mixed"), reason="a first one")
    run = house.log("good", GOOD | RIGHT, task="caption")
    with pytest.raises(InputError, match="have other questions for validation"):
        house.promote(run)
