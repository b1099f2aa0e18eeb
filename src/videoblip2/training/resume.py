"""The identity of a training run: its name, such as `scst-greedy-samples8-lr0.001-seed0`, and the state it resumes.

`train.resume` is a run's id, name or folder OUT/NAME, or `auto`. A run's state is looked up in the run's
folder, then in OUT/NAME here, then in the store: a server has a copy if the run was stopped.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from videoblip2.config import Config, InputError, flatten
from videoblip2.errors import dotted_keys
from videoblip2.modality import BOTH, modality_label
from videoblip2.tracking.mlflow.run_records import RunRecord, fetch_state, find_stopped_run
from videoblip2.training.state import FOLDER, TrainState, read_finished, read_saved

LONGEST = 100
#: Keys that may change on resuming, since they do not affect the weights.
FREE = (
    *("train.resume", "train.checkpointing", "train.shard", "train.save_every", "train.probe_videos"),
    *("device", "run.", "decode.batch_size"),
)
#: Other keys left out of a name's differences: always in the name, a path, or about logging.
NOT_SAID = (
    *("seed", "optim.lr", "model.modalities", "scst.baseline", "data.task", "train.log_every"),
    *("data.annotations", "data.features", "model.language_model", "model.qformer.bert"),
)
REMEDY = "to start a new run from its weights, set train.start_from={0}/best and leave train.resume out"
DEFAULTS = flatten(Config())


def run_name(stage: str, config: Config, differences: Sequence[str] = ()) -> str:
    """Build a run's name: stage, modality if only one, baseline, the `differences`, learning rate, seed.

    Args:
        differences: the result of `what_differs`.

    A long name is cut and ends with a digest, so that names stay distinct.
    """
    parts = [stage]
    if config.model.modalities != BOTH:
        parts.append(modality_label(config.model.modalities))
    if config.data.task != "caption":
        parts.append(config.data.task)
    if stage == "scst":
        parts.append(config.scst.baseline)
    name = "-".join([*parts, *differences, f"lr{config.optim.lr:g}"])
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{name}-seed{config.seed}"


def what_differs(stage: str, config: Config, usual: Config) -> list[str]:
    """List how a configuration differs from the usual one: `samples8`, `temperature0.4`, in the configuration's order.

    Args:
        usual: the experiment file without command-line overrides.

    Paths and settings that do not affect results are left out, as are keys of the other stage's section.
    """
    before, left_out = flatten(usual), FREE if stage == "scst" else (*FREE, "scst.")
    differences = {
        key: value
        for key, value in flatten(config).items()
        if value != before.get(key) and key not in NOT_SAID and not key.startswith(left_out)
    }
    return [_part(key, value, list(differences)) for key, value in differences.items()]


def group_name(name: str, seeds: int) -> str:
    """The name of the parent run of several seeds: `ce-lr0.0001-seed0` → `ce-lr0.0001-3seeds`."""
    return f"{re.sub(r'-seed[0-9]+', '', name)}-{seeds}seeds"


def _part(key: str, value: object, changed: Sequence[str]) -> str:
    """`samples8`, `train_steps_400`: the key's last part, or two parts if another changed key ends alike."""
    if key == "train.start_from":
        return f"from_{_model(str(value))}"
    section, last = key.split(".")[-2:] if "." in key else ("", key)
    alike = sum(other.rpartition(".")[2] == last for other in changed)
    word = _plain(last if alike == 1 else f"{section}_{last}")
    if isinstance(value, float):
        text = f"{value:g}"
    else:  # for a path, the file name
        text = _plain(PurePath(value).stem if isinstance(value, str) else str(value).lower()).strip("_")
    joint = "" if type(value) in (int, float) and not word[-1].isdigit() else "_"
    return f"{word}{joint}{text}"


def _model(model: str) -> str:
    """A short name for MODEL: a run id's first characters, an alias, or the run of the folder."""
    if re.fullmatch(r"[0-9a-f]{32}", model):
        return model[:6]
    path = PurePath(model)
    return _plain(path.parent.name if path.name == "best" else re.split("[/@]", model)[-1])


def _plain(text: str) -> str:
    """Replace characters unsuitable for a folder name."""
    return re.sub(r"[^\w.]+", "_", text)


def resumed_config(config: Config) -> Config:
    """With `train.resume` set, take OUT and NAME from that run. Raises InputError for an unknown run."""
    wanted = config.train.resume
    if wanted is None or wanted == "auto":
        return config
    folder = Path(wanted)
    if folder.name == wanted and not folder.exists():
        folder = _folder_of(find_stopped_run(wanted), Path(config.run.out))
    run = config.run.model_copy(update={"out": str(folder.parent), "name": folder.name})
    return config.model_copy(update={"run": run})


def find_saved(stage: str, folder: Path, config: Config) -> TrainState | None:
    """The state that training resumes from; None = from the start.

    Args:
        folder: OUT/NAME of this run.

    Raises InputError if there is no state, or it belongs to another stage or configuration, or has finished.
    """
    wanted = config.train.resume
    if wanted is None:
        return None
    if read_finished(folder / FOLDER) is not None:
        raise InputError(f"train.resume={wanted}: {folder} is finished; {REMEDY.format(folder)}")
    saved = read_saved(folder / FOLDER)
    if saved is None:
        if wanted == "auto":
            return None
        raise InputError(f"train.resume={wanted}: no training state in {folder / FOLDER}; leave train.resume out")
    if saved.identity.stage != stage:
        raise InputError(f"train.resume: {folder} is a run of `vb2 {saved.identity.stage}`, not of `vb2 {stage}`")
    keys, settings = [key for key in dotted_keys(Config) if not key.startswith(FREE)], flatten(config)
    pairs = {key: (_value(key, settings), _value(key, saved.identity.config)) for key in keys}
    if other := {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}:
        words = " ".join(shlex.quote(f"{key}={json.dumps(then)}") for key, (_, then) in other.items())
        key, (now, then) = next(iter(other.items()))
        fault = f"{key}={now!r}: {folder} started with {then!r}, so this would be a different run"
        raise InputError(f"{fault}; to resume it, add {words}; {REMEDY.format(folder)}")
    return saved


def _value(key: str, record: Mapping[str, object]) -> object:
    """The value of a key in a flat configuration, or the default if that is older than the key."""
    entries = {name.removeprefix(f"{key}."): value for name, value in record.items() if name.startswith(f"{key}.")}
    return entries or record.get(key, DEFAULTS.get(key, {}))


def _folder_of(run: RunRecord, out: Path) -> Path:
    """The folder on this machine with the state of a run, downloaded if necessary."""
    here = out / run.name
    for folder in filter(None, (run.folder, here)):
        if run.run_id == _run_in(folder):
            return folder
    if not run.logged:
        fault = f"no training state in {run.folder or here} (the run was on {run.host}), and none logged with the run"
        raise InputError(f"resume={run.run_id}: {fault}; copy that folder to {here}, or start again without resume")
    if _run_in(here) is not None:
        raise InputError(f"resume={run.run_id}: {here} belongs to another run; set run.out to a folder without it")
    fetch_state(run.run_id, here)
    return here


def _run_in(folder: Path) -> str | None:
    """The id of the run whose training state or end marker is in a folder."""
    if finished := read_finished(folder / FOLDER):
        return finished.run_id
    try:
        saved = read_saved(folder / FOLDER)
    except InputError:
        return None
    return saved.identity.run_id if saved else None
