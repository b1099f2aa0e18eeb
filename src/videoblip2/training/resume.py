"""Which training `train.resume` means, and whether this configuration may resume it.

It is a run's id, name or folder OUT/NAME, or `auto`. A run's state is looked for where the run's folder was, then
in this OUT/NAME, and last in the store, which has a copy where the run was stopped and the store is a server.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from videoblip2.config import Config, InputError, flatten, known_keys
from videoblip2.tracking.mlflow.run_records import RunRecord, fetch_state, find_stopped_run
from videoblip2.training.state import FOLDER, SavedState, read_finished, read_saved

#: What may change when a training resumes: it moves no weight.
FREE = (
    "train.resume",
    "train.checkpointing",
    "train.shard",
    "train.save_every",
    "train.probe_videos",
    "device",
    "run.",
    "decode.batch_size",
)
REMEDY = "to start another training from its weights, set train.start_from={0}/best and leave train.resume out"
DEFAULTS = flatten(Config())


def resumed_config(config: Config, stage: str = "") -> Config:
    """With `train.resume=FOLDER` or a run, OUT and NAME are that run's. Raises InputError for an unknown run."""
    wanted = config.train.resume
    if wanted is None or wanted == "auto":
        return config
    folder = Path(wanted)
    if folder.name == wanted and not folder.exists():
        folder = _folder_of(find_stopped_run(wanted), Path(config.run.out), stage)
    run = config.run.model_copy(update={"out": str(folder.parent), "name": folder.name})
    return config.model_copy(update={"run": run})


def find_saved(stage: str, folder: Path, config: Config) -> SavedState | None:
    """The state that training resumes from; None = from the start.

    Args:
        folder: OUT/NAME of this run.

    Raises InputError if there is no state, or it belongs to another stage or configuration, or has finished.
    """
    wanted = config.train.resume
    if wanted is None:
        return None
    if read_finished(folder / FOLDER) is not None:
        raise InputError(f"train.resume={wanted}: {folder} has finished; {REMEDY.format(folder)}")
    try:
        saved = read_saved(folder / FOLDER)
    except ValueError as error:
        raise InputError(f"train.resume={wanted}: {folder / FOLDER}: {error}; leave train.resume out") from error
    if saved is None:
        if wanted == "auto":
            return None
        raise InputError(f"train.resume={wanted}: no training state in {folder / FOLDER}; leave train.resume out")
    if saved.identity.stage != stage:
        raise InputError(f"train.resume: {folder} is a run of `vb2 {saved.identity.stage}`, not of `vb2 {stage}`")
    keys, settings = [key for key in known_keys() if not key.startswith(FREE)], flatten(config)
    pairs = {key: (_value(key, settings), _value(key, saved.identity.config)) for key in keys}
    if other := {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}:
        words = " ".join(shlex.quote(f"{key}={json.dumps(then)}") for key, (_, then) in other.items())
        key, (now, then) = next(iter(other.items()))
        raise InputError(
            f"{key}={now!r}: {folder} started with {then!r}, and would not be the same training; "
            f"to resume it, add {words}; {REMEDY.format(folder)}"
        )
    return saved


def _value(key: str, record: Mapping[str, object]) -> object:
    """The value of a key in a flat configuration, which may be older than the key: then the default counts."""
    entries = {name.removeprefix(f"{key}."): value for name, value in record.items() if name.startswith(f"{key}.")}
    return entries or record.get(key, DEFAULTS.get(key, {}))


def _folder_of(run: RunRecord, out: Path, stage: str) -> Path:
    """The folder on this machine with the state of a run, downloaded if necessary."""
    if run.stage and stage and run.stage != stage:
        raise InputError(f"resume={run.run_id}: a run of `vb2 {run.stage}`, not of `vb2 {stage}`")
    here = out / run.name
    for folder in filter(None, (run.folder, here)):
        if run.run_id == _run_in(folder):
            return folder
    if not run.logged:
        raise InputError(
            f"resume={run.run_id}: no training state in {run.folder or here} (the run was on {run.host}), and none "
            f"logged with the run; copy that folder to {here}, or start again without resume"
        )
    if _run_in(here) is not None:
        raise InputError(f"resume={run.run_id}: {here} belongs to another run; set run.out to a folder without it")
    fetch_state(run.run_id, here)
    return here


def _run_in(folder: Path) -> str | None:
    """The id of the run whose training state, or mark of its end, is in a run's folder."""
    finished = read_finished(folder / FOLDER)
    if finished is not None:
        return finished.run_id
    try:
        saved = read_saved(folder / FOLDER)
    except ValueError:
        return None
    return saved.identity.run_id if saved else None
