"""The training state: everything that training needs to resume exactly as if it had never stopped.

One file, OUT/NAME/state/state.safetensors, replaced atomically. Its tensors are the trainable weights, the optimizer's
moments and torch's random states; its header is a `TrainState`. Batches and samples depend only on (seed, step).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videoblip2.errors import InputError
from videoblip2.files import atomic, write_text
from videoblip2.training.sharding import part, whole
from videoblip2.training.workspace import Validation

FORMAT = 3
FOLDER, FILE, FINISHED = "state", "state.safetensors", "finished.json"
Parameters = Mapping[str, nn.Parameter]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Identity:
    """The run that a state belongs to. config: dotted keys and plain values."""

    stage: str = ""
    name: str = ""
    run_id: str | None = None
    config: Mapping[str, object] = field(default_factory=dict)


class TrainState(BaseModel):
    """The header of a state file: the progress of a run. NaN and infinity are preserved.

    validated: the last validated step. means: sums since the last log line, and steps. bands: of the `BandMonitor`.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    format: int = FORMAT
    identity: Identity = Identity()
    step: int = 0
    validated: int = -1
    best: Validation = Validation()
    means: tuple[dict[str, float], int] = ({}, 0)
    bands: tuple[dict[str, float], tuple[str, ...]] = ({}, ())


@dataclass(frozen=True)
class StageResult:
    """A finished stage. `model` is a MODEL: the MLflow model, or the folder without tracking."""

    stage: str
    name: str
    run_id: str | None
    model: str
    checkpoint: Path
    best_step: int
    metrics: dict[str, float]


_RESULT = TypeAdapter(StageResult)


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
        header = state.model_copy(update={"identity": self.identity}).model_dump_json()
        with atomic(self.path) as file:
            save_file(capture(trainable, optimizer), file.name, metadata={"state": header})

    def restore(self, trainable: Parameters, optimizer: torch.optim.Optimizer) -> TrainState:
        """Restore weights, moments and random states; return the header."""
        saved = read_saved(self.folder)
        assert saved is not None
        put_back(trainable, optimizer, load_file(self.path))
        return saved

    def clear(self) -> None:
        """Remove an earlier run's state from this folder."""
        for name in (FILE, FINISHED):
            (self.folder / name).unlink(missing_ok=True)

    def finish(self, result: StageResult) -> None:
        """Mark the run as finished, and delete its state to free disk space."""
        write_text(self.folder / FINISHED, _RESULT.dump_json(result, indent=2).decode() + "\n")
        self.path.unlink(missing_ok=True)


def read_saved(folder: Path) -> TrainState | None:
    """The header in a state folder; None if there is no file. Raises InputError for a malformed file."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["state"])
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, this program reads {FORMAT}; update videoblip2")
        return TrainState.model_validate(header)
    except Exception as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a training state ({problem}); leave train.resume out") from error


def read_finished(folder: Path) -> StageResult | None:
    """The result of a finished run from its state folder, wherever that is now; None if unfinished."""
    path = folder / FINISHED
    result = _RESULT.validate_json(path.read_bytes()) if path.is_file() else None
    return result and replace(result, checkpoint=folder.parent / "best")


def capture(trainable: Parameters, optimizer: torch.optim.Optimizer) -> Tensors:
    """Weights and optimizer state by parameter name; the states of torch's generators."""
    tensors: Tensors = {f"model.{name}": parameter for name, parameter in trainable.items()}
    for name, parameter in trainable.items():
        tensors |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    tensors["random.torch"] = torch.get_rng_state()
    for number in range(torch.cuda.device_count()):
        tensors[f"random.cuda.{number}"] = torch.cuda.get_rng_state(number)
    return {name: whole(tensor) for name, tensor in tensors.items()}


@torch.no_grad()
def put_back(trainable: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """The reverse of `capture`; a missing CUDA device is skipped."""
    keys = {name.split(".", 2)[1] for name in tensors if name.startswith("optimizer.")}
    for name, parameter in trainable.items():
        parameter.copy_(part(tensors[f"model.{name}"], parameter))
        moments = {key: tensors[place] for key in keys if (place := f"optimizer.{key}.{name}") in tensors}
        if moments:
            there = {key: tensor.to(parameter.device) for key, tensor in moments.items()}
            optimizer.state[parameter] = {key: part(tensor, parameter) for key, tensor in there.items()}
    torch.set_rng_state(tensors["random.torch"])
    for number in range(torch.cuda.device_count()):
        if f"random.cuda.{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda.{number}"], number)
