"""Memory that a training takes on this machine: `python measured_memory.py KIND CONFIG.yaml` prints bytes.

The peak of the process's resident memory, from before the network is built; all that a training imports is there by
then. glibc gives larger blocks back at once (MALLOC_MMAP_THRESHOLD_), so that what is free is not resident.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent


def measure(kind, config, processes=1):
    """In processes of their own; the largest."""
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    words = [sys.executable, *launcher, __file__, kind, str(config)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return max(map(int, done.stdout.split()[-processes:]))


def resident(field):
    """VmRSS, or VmHWM for the peak, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def open_training(kind, config):
    """All steps of a stage, and its validations."""
    from tiny_training import Remember

    from videoblip2.training.ce import ce_step
    from videoblip2.training.loop import Training
    from videoblip2.training.rollout import build_reward
    from videoblip2.training.scst import scst_step
    from videoblip2.training.workspace import open_workspace, start_copy

    work = open_workspace(config)
    step = partial(ce_step, work)
    if kind == "scst":
        step = partial(scst_step, work, build_reward(work), start=start_copy(work))
    return Training(work, step, lambda best: None, Remember())


def train_steps(kind, config):
    """Train; building does not count for the peak."""
    from videoblip2.training.loop import train

    training = open_training(kind, config)
    Path("/proc/self/clear_refs").write_text("5")
    train(training)


if __name__ == "__main__":
    from videoblip2.config import load_config, parse_config

    kind, path = sys.argv[1:]
    config = load_config(path)
    small = ["data.captions_per_video=1", "train.batch_size=2", "train.steps=2", "decode.batch_size=2"]
    world = Path(config.data.annotations)
    small += [
        f"model.language_model={world / 't5'}",
        "model.qformer.num_hidden_layers=1",
        "model.qformer.hidden_size=16",
    ]
    train_steps(kind, parse_config(config.model_dump(mode="json"), small))
    before = resident("VmRSS")
    train_steps(kind, config)
    print(resident("VmHWM") - before)
