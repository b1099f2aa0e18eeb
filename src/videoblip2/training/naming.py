"""Names of runs that say what differs: `scst-greedy-samples8-temperature0.4-lr0.001-seed0`."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePath

from videoblip2.config import Config, flatten
from videoblip2.modality import BOTH, modality_label

SAID_ALWAYS = ("seed", "optim.lr", "model.modalities", "scst.baseline", "data.task")
PLACES = ("device", "data.annotations", "data.features", "model.language_model", "model.qformer.bert")
HABITS = ("train.resume", "train.save_every", "train.probe_videos", "train.log_every", "decode.batch_size")
LONGEST = 100


def run_name(stage: str, config: Config, said: Sequence[str] = ()) -> str:
    """Make a run's name: stage, modality if there is only one, baseline, what is `said` of it, learning rate, seed.

    Args:
        said: what `what_differs` gives.

    A long name is cut and gets a digest, so that different runs keep different names.
    """
    parts = [stage]
    if config.model.modalities != BOTH:
        parts.append(modality_label(config.model.modalities))
    if config.data.task != "caption":
        parts.append(config.data.task)
    if stage == "scst":
        parts.append(config.scst.baseline)
    name = "-".join([*parts, *said, f"lr{config.optim.lr:g}"])
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{name}-seed{config.seed}"


def what_differs(stage: str, config: Config, usual: Config) -> list[str]:
    """Say how a configuration differs from the usual one: `samples8`, `temperature0.4`, in the configuration's order.

    Args:
        usual: the experiment file without what the user changed on the command line.

    Paths and settings that do not affect results are left out, as are keys of the other stage's section.
    """
    before, left_out = flatten(usual), (*SAID_ALWAYS, *PLACES, *HABITS)
    sections = ("run.",) if stage == "scst" else ("run.", "scst.")
    said = {
        key: value
        for key, value in flatten(config).items()
        if value != before.get(key) and key not in left_out and not key.startswith(sections)
    }
    return [_part(key, value, list(said)) for key, value in said.items()]


def group_name(name: str, seeds: int) -> str:
    """The name of the parent of a run's seeds: `ce-lr0.0001-seed0` → `ce-lr0.0001-3seeds`."""
    return f"{re.sub(r'-seed[0-9]+', '', name)}-{seeds}seeds"


def _part(key: str, value: object, changed: Sequence[str]) -> str:
    """`samples8`, `train_steps_400`: the key's last part, with the one before it where two changed keys end alike."""
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
    """What a MODEL is called: a run id's beginning, an alias, or the name of the run whose folder it is."""
    if re.fullmatch(r"[0-9a-f]{32}", model):
        return model[:6]
    path = PurePath(model)
    return _plain(path.parent.name if path.name == "best" else re.split("[/@]", model)[-1])


def _plain(text: str) -> str:
    """What fits into a folder's name."""
    return re.sub(r"[^\w.]+", "_", text)
