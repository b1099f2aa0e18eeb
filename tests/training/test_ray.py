"""A training on two workers of a local Ray, one of which is killed: Ray starts both again, and they resume."""

import os
import signal
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import command
from tiny_world import make_world
from typer.testing import CliRunner

from videoblip2.cli import app
from videoblip2.training import distributed

pytest.importorskip("ray")
printed = distributed._printed


def dying(mark, words):
    """In a worker: `vb2` with these words, where process 1 dies in step 5 unless the mark is there."""
    from videoblip2.training import stage

    step = stage.ce_step

    def spoiled(work, batch, at):
        for part in step(work, batch, at):
            if at == 5 and work.world.rank == 1 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield part

    stage.ce_step = spoiled
    return printed(words)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Ray itself
def test_a_killed_worker_is_started_again_and_resumes(tmp_path, tokenizers, monkeypatch):
    import ray

    world = make_world(tmp_path / "world", tokenizers)
    for name in ("ray", "local"):
        (tmp_path / name).mkdir()
        command(tmp_path / name, world)  # writes its YAML
    local = CliRunner().invoke(app, ["ce", str(tmp_path / "local" / "ce.yaml"), "--nproc", "2"])
    assert local.exit_code == 0, local.output
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    monkeypatch.setattr(distributed, "_printed", partial(dying, tmp_path / "mark"))
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        words = ["ce", str(tmp_path / "ray" / "ce.yaml"), "--nproc", "2", "--engine", "ray", "--max-restarts", "1"]
        result = CliRunner().invoke(app, words)
    finally:
        ray.shutdown()
    assert result.exit_code == 0 and "\nx: best at step " in result.stdout, result.output
    assert (tmp_path / "mark").exists()
    found, whole = (load_file(tmp_path / name / "runs/x/best/model.safetensors") for name in ("ray", "local"))
    assert all(torch.equal(found[name], weight) for name, weight in whole.items())
