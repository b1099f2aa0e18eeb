"""The definition of a study: a YAML document `experiments/tune_*.yaml` on top of an experiment file.

`key=value` overrides apply to both: `n_trials=20` to the study, `train.steps=50` to the experiment, typed as there.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from pydantic import Field

from videoblip2.config import Config, InputError, PathText, Section, flatten, parse_config
from videoblip2.errors import dotted_keys, validated
from videoblip2.overrides import locate, overridden, read_yaml
from videoblip2.tracking import find_model

if TYPE_CHECKING:  # imports torch; a plan is checked before that
    from videoblip2.training.tasks import Task

Number = int | float
Document = dict[str, Any]  # a YAML document as nested mappings
Scalar = bool | int | float | str | None
#: Keys that no study may vary: paths, and the data and the task that trials are compared on.
FIXED = ("run.", "device", "train.resume", "data.annotations", "data.task")


class Range(Section):
    """Either bounds (and a log scale or a step), or a list of choices."""

    low: Number | None = None
    high: Number | None = None
    log: bool = False
    step: Number | None = None
    choices: tuple[Any, ...] | None = None

    def text(self) -> str:
        """Readable form: `0.0001..0.01 log`, `4 | 8 | 16`."""
        if self.choices is not None:
            return " | ".join(str(label(choice)) for choice in self.choices)
        return f"{self.low:g}..{self.high:g}{' log' if self.log else ''}{f' step {self.step}' if self.step else ''}"

    def distribution(self, kind: type[int] | type[float] | None) -> BaseDistribution:
        """The range as Optuna's distribution; kind: see `kind_of`. Raises ValueError for conflicting parts."""
        if self.choices is not None:
            if self.model_fields_set != {"choices"}:
                raise ValueError("give `choices`, or `low` and `high`, not both")
            return CategoricalDistribution([label(choice) for choice in self.choices])
        if kind is None:
            raise ValueError("not a number; give `choices: [...]`")
        if self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"low={self.low}, high={self.high}; give low < high, or `choices: [...]`")
        if kind is float:
            return FloatDistribution(self.low, self.high, log=self.log, step=self.step)
        if any(isinstance(bound, float) for bound in (self.low, self.high, self.step)):
            raise ValueError("must be whole numbers; give low, high and step without a fraction")
        return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))


class Pruner(Section):
    name: Literal["median", "patient", "halving", "hyperband", "wilcoxon", "none"] | None = Field(
        None, description="default: median for ce, patient (around median) for scst, wilcoxon for decode"
    )
    startup_trials: int = Field(4, ge=0, description="median: finished trials before anything is pruned")
    warmup_steps: int = Field(0, ge=0, description="median: steps (wilcoxon: videos) before a trial may be pruned")
    patience: int = Field(2, ge=0, description="patient: validations without improvement before median may prune")
    p_threshold: float = Field(0.05, gt=0, lt=1, description="wilcoxon: prune below this p-value against the best")


class Sampler(Section):
    name: Literal["tpe", "random", "gp", "nsga2"] = "tpe"
    seed: int = 0
    startup_trials: int = Field(5, ge=1, description="tpe, gp: number of random trials at the start")


class Tuning(Section):
    study: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="name of the study, and of its folder OUT/STUDY")
    stage: Literal["ce", "scst", "decode"]
    base: PathText | None = Field(None, description="experiment file of the default trial; for decode, the model's")
    config: Document = Field(default_factory=dict, description="keys and values on top of `base`")
    tuned_model: PathText | None = Field(None, description="decode only: MODEL whose captions are tuned")
    search: dict[str, Range] = Field(min_length=1, description="configuration key → range")
    seconds: bool = Field(False, description="second objective: fewer seconds per caption; trials are not pruned")
    margin: float = Field(
        0.01, ge=0, description="with two objectives, best.yaml is the fastest trial within this of the highest score"
    )
    n_trials: int = Field(20, ge=1, description="total; running the study again resumes it up to this number")
    pruner: Pruner = Pruner()
    sampler: Sampler = Sampler()
    storage: str | None = Field(None, description="journal file, sqlite:///…, postgresql://… or grpc://HOST:PORT")
    out: PathText = Field("runs", description="trials and results go to OUT/STUDY")


def label(value: Any) -> Scalar:
    """A configuration value in a format for the storage: lists become JSON."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


@dataclass(frozen=True)
class Plan:
    """A study with the experiment that it varies. content: the base as in its YAML file."""

    tuning: Tuning
    content: Document
    source: str

    @property
    def folder(self) -> Path:
        """The folder of the study: OUT/STUDY."""
        return Path(self.tuning.out) / self.tuning.study

    @cached_property
    def base(self) -> Config:
        """The configuration that the trials vary."""
        return parse_config(self.content, source=self.source)

    @cached_property
    def defaults(self) -> dict[str, Scalar]:
        """The base's values of the searched keys, in the storage's format."""
        flat = flatten(self.base)
        return {key: label(flat[key]) for key in self.tuning.search}

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The ranges as Optuna's distributions."""
        return {key: values.distribution(kind_of(key)) for key, values in self.tuning.search.items()}

    @property
    def tasks(self) -> "tuple[Task, ...]":
        """The tasks to validate: captions for a decoding study, else the tasks of the experiment."""
        from videoblip2.training.tasks import CAPTIONS, tasks_of

        return (CAPTIONS,) if self.tuning.stage == "decode" else tasks_of(self.base)

    @property
    def metric(self) -> str:
        """The score that ranks trials: CIDEr, accuracy, or "CIDEr + accuracy" for a mixture."""
        return " + ".join(task.metric for task in self.tasks)

    @property
    def margin(self) -> float | None:
        """With two objectives, how far below the highest score the best trial may be; None with one."""
        return self.tuning.margin if self.tuning.seconds else None

    def content_of(self, params: Mapping[str, Scalar]) -> Document:
        """The base with a trial's values, as nested mappings."""
        return overridden(self.content, [f"{key}={_text(value)}" for key, value in params.items()], Config)

    def config_of(self, params: Mapping[str, Scalar], *overrides: str) -> Config:
        """The configuration of a trial."""
        return parse_config(self.content_of(params), overrides, source=f"{self.source} with a trial's values")


def load_plan(path: str | Path, overrides: Iterable[str] = ()) -> Plan:
    """Read a study and its base. Raises InputError naming the key, the range or the value that is wrong."""
    pairs = list(overrides)
    own = [pair for pair in pairs if pair.partition("=")[0].split(".")[0] in Tuning.model_fields]
    tuning = validated(Tuning, overridden(read_yaml(path), own, Tuning), str(path))
    on_top = [f"{key}={_text(value)}" for key, value in flatten(tuning.config).items()]
    on_top += [pair for pair in pairs if pair not in own]
    content = overridden(_base(tuning, str(path)), on_top, Config)
    plan = Plan(tuning, content, str(path))
    _check(plan)
    return plan


def _base(tuning: Tuning, path: str) -> Document:
    wanted, other = ("tuned_model", "base") if tuning.stage == "decode" else ("base", "tuned_model")
    given = getattr(tuning, wanted)
    if getattr(tuning, other) or not given:
        raise InputError(f"{path}: stage {tuning.stage}: give `{wanted}`, not `{other}`")
    return read_yaml(find_model(given).folder / "config.yaml" if tuning.stage == "decode" else given)


def _check(plan: Plan) -> None:
    choices = [choice for values in plan.tuning.search.values() for choice in values.choices or ()]
    if any(Path(str(value)).name == "test.json" for value in [*flatten(plan.content).values(), *choices]):
        raise InputError(f"{plan.source}: names test.json; a study may use only train and val")
    for key, values in plan.tuning.search.items():
        place = f"{plan.source}: search: {key}"
        if key not in dotted_keys(Config):
            plan.config_of({key: None})  # to raise its error
        if key.startswith(FIXED):
            raise InputError(f"{place}: must be the same in all trials; set it under `config`")
        if plan.tuning.stage == "decode" and not key.startswith("decode."):
            raise InputError(f"{place}: stage decode searches decode.* keys only; use stage ce or scst")
        try:
            distribution = values.distribution(kind_of(key))
        except ValueError as error:
            raise InputError(f"{place}: {error}") from error
        for end in [values.low, values.high] if values.choices is None else map(label, values.choices):
            plan.config_of({key: end})
        try:
            create_trial(state=TrialState.WAITING, params={key: plan.defaults[key]}, distributions={key: distribution})
        except ValueError as error:
            fault = f"{place}: the default {plan.defaults[key]!r} is not in {values.text()}"
            remedy = f"widen the range or set {key} under `config`"
            raise InputError(f"{fault}, but the best trial is compared with it; {remedy}") from error


def kind_of(key: str) -> type[int] | type[float] | None:
    """int or float if a key's field is a number, optional or not; None for any other field."""
    kinds = {int: int, float: float, int | None: int, float | None: float}
    return kinds.get(locate(Config, key)[1])


def _text(value: Any) -> str:
    """A value as the right side of an override; JSON is YAML."""
    return value if isinstance(value, str) else json.dumps(value)
