"""A training on two workers of a local Ray, one of which is killed: Ray starts both again, and they resume."""

import os
import signal
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from tiny_world import make_world, tiny_config
from typer.testing import CliRunner

from videoblip2.cli import app
from videoblip2.config import to_yaml
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

    world, weights = make_world(tmp_path / "world", tokenizers), []
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    monkeypatch.setattr(distributed, "_printed", partial(dying, tmp_path / "mark"))
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        for name, options in (("ray", ("--engine", "ray", "--max-restarts", "1")), ("local", ())):
            config = tmp_path / f"{name}.yaml"
            config.write_text(to_yaml(tiny_config(world, tmp_path / name, "run.name=x", "run.tracking=false")))
            result = CliRunner().invoke(app, ["ce", str(config), "--nproc", "2", *options])
            assert result.exit_code == 0, result.output
            assert name == "local" or "\nx: best at step " in result.stdout, result.output
            weights.append(load_file(tmp_path / name / "x" / "best" / "model.safetensors"))
    finally:
        ray.shutdown()
    assert (tmp_path / "mark").exists()
    assert all(torch.equal(weights[1][key], weight) for key, weight in weights[0].items())
