"""FSDP2: a language model that two processes share trains as one process trains it, and is saved whole."""

import json
from functools import partial

import pytest
import torch
from forked import processes
from safetensors.torch import load_file
from test_distributed import COMMON, command, in_step, same, terminated
from tiny_training import Remember, workspace
from tiny_world import make_world

from videoblip2.config import InputError, parse_config
from videoblip2.model.checkpoint import Checkpoint, full_state, load_checkpoint, save_checkpoint
from videoblip2.model.network import VideoBlip2
from videoblip2.training.ce import ce_step
from videoblip2.training.distributed import World
from videoblip2.training.loop import Training, train
from videoblip2.training.rollout import build_reward
from videoblip2.training.scst import scst_step
from videoblip2.training.sharding import is_sharded, shard

FULL = ("model.finetune=full", "train.shard=true", "train.dropout=false")
CASES = {
    "ce": ("train.accumulate=2", "data.captions_per_video=2"),
    "scst": ("train.checkpointing=true", "scst.cross_entropy_weight=0.5", "scst.entropy_weight=0.1", "scst.reuse=2"),
}


@pytest.fixture
def network(tiny_config, tokenizers):
    """All of it trains."""
    tiny_config.finetune = "full"
    torch.manual_seed(0)
    return VideoBlip2(tiny_config)


def trained(network, tokenizers, kind, world, folder):
    """Four steps; the losses, and the checkpoint of the leader."""
    keys = (*COMMON, *FULL, *CASES[kind], "train.batch_size=4", "train.steps=4", "train.validate_every=4")
    work = workspace(network, tokenizers, *keys)
    work.world, work.model.checkpointing = world, work.config.train.checkpointing
    if world.size > 1:
        shard(work.model, work.config, world, work.device)
        layers = [name for name, weight in work.model.named_parameters() if is_sharded(weight)]
        assert layers and all(".block." in name for name in layers)
    step = partial(ce_step, work) if kind == "ce" else partial(scst_step, work, build_reward(work))
    tracker = Remember()

    def keep(_):
        if world.leads:
            save_checkpoint(folder / "best", Checkpoint(work.model, tokenizers))
        else:
            full_state(work.model)

    train(Training(work, step, keep, tracker, validate_first=kind == "scst"))
    if world.leads:
        points = [point for point in tracker.points if point[0] in ("train/loss", "train/grad_norm", "val/CIDEr")]
        (folder / "points.json").write_text(json.dumps(points))


def test_two_processes_that_share_the_weights_train_as_one(network, tokenizers, tmp_path):
    def all_cases(world):
        for kind in CASES:
            (tmp_path / f"{kind}{world.size}").mkdir(exist_ok=True)
            trained(network, tokenizers, kind, world, tmp_path / f"{kind}{world.size}")

    assert processes(2, all_cases) == [0, 0]
    all_cases(World())
    for kind in CASES:
        alone, shared = (tmp_path / f"{kind}{count}" for count in (1, 2))
        expected, found = (json.loads((folder / "points.json").read_text()) for folder in (alone, shared))
        assert len(expected) > 4 and [point[:2] for point in found] == [point[:2] for point in expected]
        for (what, step, value), (*_, one) in zip(expected, found, strict=True):
            assert one == pytest.approx(value, rel=1e-5, abs=1e-6), (kind, what, step)
        same(
            load_checkpoint(shared / "best").model.state_dict(),
            load_checkpoint(alone / "best").model.state_dict(),
            kind,
        )


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2])
def test_a_stopped_training_resumes_with_and_without_shards(after, tokenizers, tmp_path):
    world = make_world(tmp_path, tokenizers)
    options = (*FULL, "train.batch_size=4", "optim.lr=0.0005", "train.validate_every=8")
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert processes(1, command(tmp_path / "whole", world, *options)) == [0]
    assert processes(2, command(tmp_path / "parts", world, *options, spoil=in_step(5, terminated))) == [143] * 2
    assert processes(after, command(tmp_path / "parts", world, *options, "train.resume=auto")) == [0] * after
    files = [tmp_path / name / "runs" / "x" / "best" / "model.safetensors" for name in ("parts", "whole")]
    same(*map(load_file, files), "resumed")


@pytest.mark.parametrize("keys", [("train.batch_size=4",), ("train.batch_size=5", "model.finetune=full")])
def test_what_cannot_be_sharded_is_refused(keys):
    with pytest.raises(InputError, match=r"train\.shard=true"):
        shard(None, parse_config({}, ["train.shard=true", *keys]), World(0, 2), torch.device("cpu"))
