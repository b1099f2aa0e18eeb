"""The training state: everything a killed training needs to resume exactly as if it had never stopped.

One file, OUT/NAME/state/state.safetensors, replaced in one move. Its tensors are the trainable weights, the optimizer's
moments and torch's random states; its header is a `SavedState`. Batches and samples need none: both are functions of
(seed, step).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videoblip2.files import atomic, write_text
from videoblip2.training.meters import RunningMeans
from videoblip2.training.rollout import BandMonitor
from videoblip2.training.sharding import part, whole
from videoblip2.training.workspace import Validation

FORMAT = 3
READABLE = (2, FORMAT)
FOLDER, FILE, FINISHED = "state", "state.safetensors", "finished.json"
Parameters = Mapping[str, nn.Parameter]
Tensors = dict[str, Tensor]


@dataclass
class TrainState:
    """Where a training is, beside its weights: steps done, the last validated step, the best, running means, bands."""

    step: int = 0
    validated: int = -1
    best: Validation = field(default_factory=Validation)
    means: RunningMeans = field(default_factory=RunningMeans)
    bands: BandMonitor | None = None


class StateRecord(BaseModel):
    """Frozen; NaN and infinity are kept."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")


class Identity(StateRecord):
    """Whose state it is. config: dotted keys and plain values."""

    stage: str = ""
    name: str = ""
    run_id: str | None = None
    config: dict[str, object] = {}


class SavedState(StateRecord):
    """The header of a state file. means: sums since the last log line, and of how many steps."""

    format: int = FORMAT
    identity: Identity
    step: int
    validated: int
    best: Validation
    means: tuple[dict[str, float], int]
    bands: tuple[dict[str, float], tuple[str, ...]] | None


class Finished(StateRecord):
    """What remains of the state of a run that has ended: its run, its MODEL, its steps."""

    run_id: str | None = None
    model: str = ""
    steps: int = 0


@dataclass(frozen=True)
class StateFile:
    """Saves and restores the state of one run in a folder."""

    folder: Path
    identity: Identity = field(default_factory=Identity)

    @property
    def path(self) -> Path:
        return self.folder / FILE

    def save(self, trainable: Parameters, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
        """Write everything; an older file stays until the new one is complete."""
        state.means.settle()
        saved = SavedState(
            identity=self.identity,
            step=state.step,
            validated=state.validated,
            best=state.best,
            means=(state.means.sums, state.means.steps),
            bands=(state.bands.start, tuple(sorted(state.bands.outside))) if state.bands else None,
        )
        with atomic(self.path) as file:
            save_file(capture(trainable, optimizer), file.name, metadata={"state": saved.model_dump_json()})

    def restore(self, trainable: Parameters, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
        """Restore weights, moments, random states and progress."""
        saved, tensors = read_saved(self.folder), load_file(self.path)
        assert saved is not None
        put_back(trainable, optimizer, tensors)
        state.step, state.validated, state.best = saved.step, saved.validated, saved.best
        state.means.sums, state.means.steps = saved.means
        if state.bands is not None and saved.bands:
            state.bands.start, state.bands.outside = saved.bands[0], set(saved.bands[1])

    def clear(self) -> None:
        """Remove what an earlier run left in this folder."""
        for name in (FILE, FINISHED):
            (self.folder / name).unlink(missing_ok=True)

    def finish(self, finished: Finished) -> None:
        """The run is over: say so, and free the disk space of the state."""
        write_text(self.folder / FINISHED, finished.model_dump_json(indent=2) + "\n")
        self.path.unlink(missing_ok=True)


def read_saved(folder: Path) -> SavedState | None:
    """What a state folder's file says; None if there is none. Raises ValueError for a file that is malformed."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["state"])
        if header["format"] not in READABLE:
            raise ValueError(f"format {header['format']}, this program reads {READABLE}; update videoblip2")
        return SavedState.model_validate(header)
    except Exception as error:
        raise ValueError(f"not a training state ({' '.join(str(error).split())[:200]})") from error


def read_finished(folder: Path) -> Finished | None:
    """What a state folder says of a run that has ended; None if it has not."""
    path = folder / FINISHED
    return Finished.model_validate_json(path.read_bytes()) if path.is_file() else None


def capture(trainable: Parameters, optimizer: torch.optim.Optimizer) -> Tensors:
    """Weights, and what the optimizer remembers of each, by parameter name; the states of torch's generators."""
    tensors: Tensors = {f"model.{name}": parameter for name, parameter in trainable.items()}
    for name, parameter in trainable.items():
        tensors |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    tensors["random.torch"] = torch.get_rng_state()
    for number in range(torch.cuda.device_count()):
        tensors[f"random.cuda.{number}"] = torch.cuda.get_rng_state(number)
    return {name: whole(tensor) for name, tensor in tensors.items()}


@torch.no_grad()
def put_back(trainable: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """The reverse of `capture`; a CUDA device that is gone is skipped."""
    names = {parameter: name for name, parameter in trainable.items()}
    for name, parameter in trainable.items():
        parameter.copy_(part(tensors[f"model.{name}"], parameter))
    keys = {name.split(".", 2)[1] for name in tensors if name.startswith("optimizer.")}
    state = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state["state"] = {
        place: {key: part(tensors[f"optimizer.{key}.{names[parameter]}"], parameter) for key in keys}
        for place, parameter in enumerate(parameters)
        if keys and all(f"optimizer.{key}.{names[parameter]}" in tensors for key in keys)
    }
    optimizer.load_state_dict(state)
    torch.set_rng_state(tensors["random.torch"])
    for number in range(torch.cuda.device_count()):
        if f"random.cuda.{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda.{number}"], number)
