"""The training state: everything with which a killed training goes on exactly as if it had not been.

One file, OUT/NAME/state/state.safetensors, replaced in one move. Tensors: trainable weights, the optimizer's moments,
random states. Its header holds, as JSON: step, best so far, sums since the last log line, bands, configuration, run id.

Batches and samples need no state: both are functions of (seed, step).
"""

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videoblip2.files import atomic, write_json
from videoblip2.training.monitors import Watch
from videoblip2.training.validation import Best
from videoblip2.training.window import Window

FORMAT = 1
FOLDER, FILE, FINISHED = "state", "state.safetensors", "finished.json"
Record = dict[str, Any]


@dataclass
class Course:
    """Where a training is, beside its weights: steps done, the last validated step, best, sums, bands."""

    step: int = 0
    validated: int = -1
    best: Best = field(default_factory=Best)
    window: Window = field(default_factory=Window)
    watch: Watch | None = None


@dataclass(frozen=True)
class StateFile:
    """Saves and restores the state of one run in a folder.

    Args:
        identity: what the file says of itself, such as stage, name, run id, configuration.
    """

    folder: Path
    identity: Record = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / FILE

    def save(self, trainable: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, course: Course) -> None:
        """Write everything; an older file stays until the new one is complete."""
        random_tensors, random_record = capture_random()
        tensors = {**capture(trainable, optimizer), **random_tensors}
        record = {"format": FORMAT, **self.identity, **_course_record(course), "random": random_record}
        with atomic(self.path) as file:
            save_file(tensors, file.name, metadata={"state": json.dumps(record)})

    def restore(self, trainable: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, course: Course) -> None:
        """Put weights, moments, random states and the course back."""
        record, tensors = read_record(self.folder), load_file(self.path)
        assert record is not None
        put_back(trainable, optimizer, tensors)
        put_back_random(tensors, record["random"])
        course.step, course.validated = record["step"], record["validated"]
        course.best = Best(**record["best"])
        course.window.sums, course.window.steps = dict(record["window"]["sums"]), record["window"]["steps"]
        if course.watch is not None and record["watch"]:
            course.watch.restore(**record["watch"])

    def clear(self) -> None:
        """Forget an earlier run in this folder."""
        for name in (FILE, FINISHED):
            (self.folder / name).unlink(missing_ok=True)

    def finish(self, **facts: object) -> None:
        """The run is over: say so, and give the room of the state back."""
        write_json(self.folder / FINISHED, facts)
        self.path.unlink(missing_ok=True)


def read_record(folder: Path) -> Record | None:
    """The header of a state folder's file; None where there is none. Raises ValueError for a file that is not one."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            record: Record = json.loads((file.metadata() or {})["state"])
    except Exception as error:
        raise ValueError(f"not a training state ({' '.join(str(error).split())[:200]})") from error
    return record


def capture(trainable: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and what the optimizer remembers of each, by parameter name."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in trainable.items()}
    for name, parameter in trainable.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def put_back(trainable: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The reverse of `capture`."""
    names = {parameter: name for name, parameter in trainable.items()}
    for name, parameter in trainable.items():
        parameter.copy_(tensors[f"model.{name}"])
    keys = {name.split(".", 2)[1] for name in tensors if name.startswith("optimizer.")}
    state = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state["state"] = {
        place: {key: tensors[f"optimizer.{key}.{names[parameter]}"] for key in keys}
        for place, parameter in enumerate(parameters)
        if keys and all(f"optimizer.{key}.{names[parameter]}" in tensors for key in keys)
    }
    optimizer.load_state_dict(state)


def capture_random() -> tuple[dict[str, Tensor], Record]:
    """The global generators of torch (CPU and CUDA), numpy and Python."""
    tensors = {"random.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"random.cuda.{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    name, keys, *rest = np.random.get_state(legacy=True)
    tensors["random.numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return tensors, {"numpy": [str(name), *rest], "python": random.getstate()}


def put_back_random(tensors: dict[str, Tensor], record: Record) -> None:
    """The reverse of `capture_random`; a CUDA device that is not there any more is passed over."""
    torch.set_rng_state(tensors["random.torch"])
    for number in range(torch.cuda.device_count()):
        if f"random.cuda.{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda.{number}"], number)
    name, *rest = record["numpy"]
    np.random.set_state((name, tensors["random.numpy"].numpy().astype(np.uint32), *rest))
    version, numbers, gauss = record["python"]
    random.setstate((version, tuple(numbers), gauss))


def _course_record(course: Course) -> Record:
    return {
        "step": course.step,
        "validated": course.validated,
        "best": asdict(course.best),
        "window": {"sums": course.window.sums, "steps": course.window.steps},
        "watch": course.watch.state() if course.watch else None,
    }
