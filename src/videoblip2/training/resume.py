"""Which training `train.resume` means, and whether this configuration may go on with it."""

import json
from pathlib import Path

from videoblip2.config import Config, InputError, flatten
from videoblip2.training.state import FINISHED, FOLDER, FORMAT, Record, read_record

#: What may change when a training goes on: it moves no weight.
FREE = ("train.resume", "train.save_every", "train.probe_videos", "device", "run.", "decode.batch_size")
REMEDY = "to start another training from its weights, set train.start_from={0}/best and leave train.resume out"


def resumed_config(config: Config) -> Config:
    """With `train.resume=FOLDER` the run's own place and name are FOLDER's."""
    if config.train.resume in (None, "auto"):
        return config
    folder = Path(str(config.train.resume))
    run = config.run.model_copy(update={"out": str(folder.parent), "name": folder.name})
    return config.model_copy(update={"run": run})


def find_saved(stage: str, folder: Path, config: Config) -> Record | None:
    """The record of the state that training goes on from; None = from the start.

    Args:
        folder: OUT/NAME of this run.

    Raises InputError where there is no state, or it belongs to another stage or configuration, or has finished.
    """
    wanted = config.train.resume
    if wanted is None:
        return None
    if (folder / FOLDER / FINISHED).is_file():
        raise InputError(f"train.resume={wanted}: {folder} has finished; {REMEDY.format(folder)}")
    try:
        record = read_record(folder / FOLDER)
    except ValueError as error:
        raise InputError(f"train.resume={wanted}: {folder / FOLDER}: {error}; leave train.resume out") from error
    if record is None:
        if wanted == "auto":
            return None
        raise InputError(f"train.resume={wanted}: no training state in {folder / FOLDER}; leave train.resume out")
    _check(stage, folder, config, record)
    return record


def _check(stage: str, folder: Path, config: Config, record: Record) -> None:
    if record["format"] > FORMAT:
        raise InputError(f"{folder}: a training state of format {record['format']}; update videoblip2")
    if record["stage"] != stage:
        raise InputError(f"train.resume: {folder} is a run of `vb2 {record['stage']}`, not of `vb2 {stage}`")
    now, then = plain(config), record["config"]
    for key in now.keys() | then.keys():
        if not key.startswith(FREE) and now.get(key) != then.get(key):
            raise InputError(
                f"{key}={now.get(key)!r}: {folder} began with {then.get(key)!r}, and going on would not be the same "
                f"training; {REMEDY.format(folder)}"
            )


def plain(config: Config) -> Record:
    """The flat configuration as JSON gives it back."""
    record: Record = json.loads(json.dumps(flatten(config)))
    return record
