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
NUMBERS = re.compile(r"-seed\d+")


def run_name(stage: str, config: Config, said: Sequence[str] = ()) -> str:
    """Make a run's name: stage, modality if it is one, baseline, what is `said` of it, learning rate, seed.

    Args:
        said: what `what_differs` gives.
    """
    parts = [stage]
    if config.model.modalities != BOTH:
        parts.append(modality_label(config.model.modalities))
    if config.data.task != "caption":
        parts.append(config.data.task)
    if stage == "scst":
        parts.append(config.scst.baseline)
    return _short("-".join([*parts, *said, f"lr{config.optim.lr:g}"])) + f"-seed{config.seed}"


def what_differs(stage: str, config: Config, usual: Config) -> list[str]:
    """Say how a configuration differs from the usual one: `samples8`, `temperature0.4`, in the configuration's order.

    Args:
        usual: the experiment file without what the user changed on the command line.

    Places and habits that change no result are left out, as are keys of the other stage's section.
    """
    before = flatten(usual)
    other = () if stage == "scst" else ("scst.",)
    left_out = (*SAID_ALWAYS, *PLACES, *HABITS)
    changed = {k: v for k, v in flatten(config).items() if v != before.get(k) and k not in left_out}
    said = {key: value for key, value in changed.items() if not key.startswith(("run.", *other))}
    return [_part(key, value, said) for key, value in said.items()]


def group_name(name: str, seeds: int) -> str:
    """The name of the parent of a run's seeds: `ce-lr0.0001-seed0` → `ce-lr0.0001-3seeds`."""
    return f"{NUMBERS.sub('', name)}-{seeds}seeds"


def _part(key: str, value: object, changed: dict[str, object]) -> str:
    """`samples8`, `train_steps_400`: the key's last part, with the one before it where two changed keys end alike."""
    if key == "train.start_from":
        return f"from_{_model(str(value))}"
    section, last = key.split(".")[-2:] if "." in key else ("", key)
    alike = sum(other.rpartition(".")[2] == last for other in changed)
    word = re.sub(r"[^\w.]+", "_", last if alike == 1 else f"{section}_{last}")
    joint = "" if type(value) in (int, float) and not word[-1].isdigit() else "_"
    return f"{word}{joint}{_value(value)}"


def _value(value: object) -> str:
    """A value that fits into a folder's name; of a path the file's name."""
    if isinstance(value, float):
        return f"{value:g}"
    text = PurePath(value).stem if isinstance(value, str) else str(value).lower()
    return re.sub(r"[^\w.]+", "_", text).strip("_")


def _model(model: str) -> str:
    """What a MODEL is called: a run id's beginning, an alias, or the name of the run whose folder it is."""
    if re.fullmatch(r"[0-9a-f]{32}", model):
        return model[:6]
    path = PurePath(model)
    return re.sub(r"[^\w.]+", "_", path.parent.name if path.name == "best" else re.split("[/@]", model)[-1])


def _short(name: str) -> str:
    """At most LONGEST letters; what is cut off leaves a digest, so that different runs keep different names."""
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
