"""The training state on disk, and which training `train.resume` means."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from videoblip2.config import InputError, flatten, parse_config
from videoblip2.training import state as states
from videoblip2.training.resume import find_saved, resumed_config
from videoblip2.training.state import FOLDER, Identity, StageResult, StateFile, TrainState, read_finished, read_saved
from videoblip2.training.workspace import Validation


def made(seed=0):
    """A trainable of two tensors after one step of AdamW in two groups, in another order than by name."""
    torch.manual_seed(seed)
    trainable = {"a": nn.Parameter(torch.randn(2, 3)), "b.c": nn.Parameter(torch.randn(4))}
    optimizer = torch.optim.AdamW([{"params": [trainable["b.c"]]}, {"params": [trainable["a"]], "lr": 0.5}])
    sum((p**3).sum() for p in trainable.values()).backward()
    optimizer.step()
    return trainable, optimizer


def test_everything_comes_back(tmp_path):
    trainable, optimizer = made()
    best = Validation(6, {"CIDEr": 0.1 + 0.2, "none": float("-inf")}, {"captions": {"v1": "é a"}})
    state = TrainState(step=7, validated=6, best=best, means=({"loss": 1 / 3}, 1), bands=({"length": 0.1}, ("ended",)))
    file = StateFile(tmp_path / "state", Identity(stage="ce", run_id="r1"))
    file.save(trainable, optimizer, state)
    drawn = torch.rand(3)

    other, fresh = made(seed=1)
    again = file.restore(other, fresh)
    assert all(torch.equal(other[name], trainable[name]) for name in trainable)
    for name in trainable:
        one, two = optimizer.state[trainable[name]], fresh.state[other[name]]
        assert one.keys() == two.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert [group["lr"] for group in fresh.param_groups] == [0.001, 0.5]
    assert again == state.model_copy(update={"identity": file.identity})
    assert torch.equal(drawn, torch.rand(3))
    assert read_saved(tmp_path / "state").identity.run_id == "r1"


def test_a_state_before_the_first_step_has_no_moments(tmp_path):
    trainable = {"a": nn.Parameter(torch.ones(2))}
    optimizer = torch.optim.AdamW(trainable.values())
    StateFile(tmp_path).save(trainable, optimizer, TrainState())
    StateFile(tmp_path).restore(trainable, optimizer)
    assert not optimizer.state


def test_an_older_state_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    trainable, optimizer = made()
    file = StateFile(tmp_path)
    file.save(trainable, optimizer, TrainState(step=1))

    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(states, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        file.save(trainable, optimizer, TrainState(step=2))
    assert read_saved(tmp_path).step == 1


def saved(folder, stage="ce", config=None, step=3):
    trainable, optimizer = made()
    identity = Identity(stage=stage, name="n", run_id="r1", config=flatten(config or parse_config({})))
    file = StateFile(folder / FOLDER, identity)
    file.save(trainable, optimizer, TrainState(step=step))
    return file


def resuming(*overrides):
    return parse_config({}, ["train.resume=auto", *overrides])


def test_without_resume_nothing_is_looked_for(tmp_path):
    saved(tmp_path)
    assert find_saved("ce", tmp_path, parse_config({})) is None


def test_auto_resumes_or_begins(tmp_path):
    assert find_saved("ce", tmp_path, resuming()) is None
    saved(tmp_path)
    assert find_saved("ce", tmp_path, resuming("train.save_every=7", "run.out=elsewhere")).identity.run_id == "r1"


def test_a_named_folder_is_the_runs_own_place(tmp_path):
    config = parse_config({}, [f"train.resume={tmp_path / 'runs' / 'ce-1'}"])
    moved = resumed_config(config)
    assert (moved.run.out, moved.run.name) == (str(tmp_path / "runs"), "ce-1")
    assert resumed_config(resuming()) == resuming()
    with pytest.raises(InputError, match=r"no training state in .*ce-1.state; leave train.resume out"):
        find_saved("ce", tmp_path / "runs" / "ce-1", moved)


def test_another_configuration_is_refused_by_the_key_that_differs(tmp_path):
    saved(tmp_path)
    with pytest.raises(InputError, match=r"optim.lr=0.5: .* started with 0.0001, .*set train.start_from="):
        find_saved("ce", tmp_path, resuming("optim.lr=0.5"))


def test_another_stage_is_refused(tmp_path):
    saved(tmp_path, stage="scst")
    with pytest.raises(InputError, match="a run of `vb2 scst`, not of `vb2 ce`"):
        find_saved("ce", tmp_path, resuming())


def test_a_finished_run_is_not_resumed_and_its_state_is_gone(tmp_path):
    file = saved(tmp_path)
    result = StageResult("ce", "n", "r1", "models:/m-1", tmp_path / "best", 2, {"CIDEr": 0.5})
    file.finish(replace(result, checkpoint=Path("where it was")))
    assert not file.path.exists()
    assert read_finished(tmp_path / FOLDER) == result
    with pytest.raises(InputError, match="is finished; to start a new run from its weights"):
        find_saved("ce", tmp_path, resuming())
    file.clear()
    assert find_saved("ce", tmp_path, resuming()) is None


def test_a_spoiled_file_and_a_newer_format_are_refused(tmp_path, monkeypatch):
    file = saved(tmp_path)
    monkeypatch.setattr(states, "FORMAT", 1)
    with pytest.raises(InputError, match="update videoblip2"):
        find_saved("ce", tmp_path, resuming())
    file.path.write_bytes(file.path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"not a training state .*leave train.resume out"):
        find_saved("ce", tmp_path, resuming())
