"""Names of runs say what differs, and are names of folders."""

import pytest

from videoblip2.config import parse_config
from videoblip2.training.resume import LONGEST, group_name, run_name, what_differs


def name(stage, *overrides, usual=()):
    before = parse_config({}, usual)
    config = parse_config({}, [*usual, *overrides])
    return run_name(stage, config, what_differs(stage, config, before))


@pytest.mark.parametrize(
    ("stage", "overrides", "wanted"),
    [
        ("ce", [], "ce-lr0.0001-seed0"),
        ("ce", ["optim.lr=1e-5", "seed=3"], "ce-lr1e-05-seed3"),
        ("ce", ["model.modalities=video"], "ce-video-lr0.0001-seed0"),
        ("ce", ["scst.samples=8"], "ce-lr0.0001-seed0"),
        ("scst", ["scst.samples=8", "scst.temperature=0.4"], "scst-greedy-samples8-temperature0.4-lr0.0001-seed0"),
        ("scst", ["scst.baseline=leave_one_out"], "scst-leave_one_out-lr0.0001-seed0"),
        ("ce", ["train.batch_size=4", "decode.num_beams=3"], "ce-batch_size4-num_beams3-lr0.0001-seed0"),
        (
            "ce",
            ["model.qformer.dropout=0.2", "model.lora.dropout=0.3"],
            "ce-qformer_dropout0.2-lora_dropout0.3-lr0.0001-seed0",
        ),
        ("scst", ["scst.end_token=false"], "scst-greedy-end_token_false-lr0.0001-seed0"),
        ("ce", ["data.train=top5/train top.json"], "ce-train_train_top-lr0.0001-seed0"),
        ("scst", ["train.start_from=" + "1d748ebb" * 4], "scst-greedy-from_1d748e-lr0.0001-seed0"),
        ("scst", ["train.start_from=runs/ce-a/best"], "scst-greedy-from_ce_a-lr0.0001-seed0"),
        ("scst", ["train.start_from=models:/videoblip2@champion"], "scst-greedy-from_champion-lr0.0001-seed0"),
        ("scst", ['scst.reward.terms={"my.rewards:own": 0.5}'], "scst-greedy-rewards_own0.5-lr0.0001-seed0"),
        ("ce", ["run.out=elsewhere", "device=cpu", "train.resume=auto", "data.features=f"], "ce-lr0.0001-seed0"),
    ],
)
def test_a_name_says_what_the_user_changed(stage, overrides, wanted):
    assert name(stage, *overrides) == wanted


def test_only_what_differs_from_the_experiment_file_is_said():
    usual = ["train.steps=400", "scst.samples=8"]
    assert name("scst", "train.steps=200", usual=usual) == "scst-greedy-steps200-lr0.0001-seed0"
    assert name("scst", "train.steps=400", usual=usual) == "scst-greedy-lr0.0001-seed0"


def test_a_long_name_is_cut_and_stays_different():
    many = ["optim.betas=[0.9,0.99]", "optim.weight_decay=0.1", "train.label_smoothing=0.1", "train.accumulate=2"]
    many += ["model.temporal_embedding=false", "model.lora.r=4", "data.prompt=what happens"]
    first, second = name("ce", *many), name("ce", *many, "optim.max_grad_norm=2")
    assert len(first) <= LONGEST + len("-seed0")
    assert first.endswith("-seed0")
    assert first != second


def test_the_parent_of_seeds():
    assert group_name("ce-lr0.0001-seed0", 3) == "ce-lr0.0001-3seeds"
    assert group_name("mine-seed7", 2) == "mine-2seeds"
