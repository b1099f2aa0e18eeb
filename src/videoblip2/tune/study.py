"""A study in its storage: how it opens, its identity, and which trials count.

Optuna's storage is authoritative, MLflow a view of it: a journal file (one machine or a shared disk, no races and no
server), a database, or a gRPC proxy to one. A study refuses a changed `identity`; the bounds of a range may change.
"""

import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import BaseModel

from videoblip2.config import Config, InputError, flatten
from videoblip2.errors import refused, warn
from videoblip2.files import atomic, expand
from videoblip2.tracking import find_model
from videoblip2.tracking.source import short_digest
from videoblip2.tune.plan import Plan

SQLITE, GRPC = "sqlite:///", "grpc://"
LOCK_SECONDS = 60.0
FORMS = "give a file, sqlite:///FILE, postgresql://… or grpc://HOST:PORT"
NUMBER = r"[-+.\de]+"
OPENING = b'{"op_code"'  # start of a journal line
#: Keys that may differ between starts of a study, or between machines, since they change no score.
FREE = (
    "run.", "device", "decode.batch_size", "train.resume", "train.save_every", "train.log_every", "train.probe_videos",
    "data.annotations", "data.features", "model.language_model", "model.qformer.bert", "model.qformer.weights",
)  # fmt: skip


def open_study(plan: Plan, storage: Any, worker: bool = False) -> optuna.Study:
    """Open or create the study. Raises InputError naming the key that differs from the study as created."""
    with quiet():
        name = plan.tuning.study
        aims = ["maximize", "minimize"] if plan.tuning.seconds else ["maximize"]
        study = optuna.create_study(study_name=name, storage=storage, directions=aims, load_if_exists=True)
        done = len(study.get_trials(deepcopy=False))
        study.sampler, study.pruner = sampler(plan, done, worker), pruner(plan)
    now, then = identity(plan), study.user_attrs.get("identity", {})
    default = flatten(Config())  # an older release's study lacks newer keys
    for key in [*now, *then] if then else ():
        found, began = (record.get(key, default.get(key, "absent")) for record in (now, then))
        if found != began and not (key.startswith("search.") and _fits(str(found), str(began))):
            fault = f"study {name!r} started with {began}, and the two are not comparable"
            raise InputError(f"{plan.source}: {key}: {found}; {fault}; give this study another name:  study=NAME")
    if now != then and not (worker and then):
        study.set_user_attr("identity", now)
    return study


def _fits(text: str, began: str) -> bool:
    """Whether a study may resume with a range: bounds and step may change, not the scale or a list of choices."""
    scales = [re.sub(rf"^{NUMBER}\.\.{NUMBER}( step {NUMBER})?", "a range", each) for each in (text, began)]
    return scales[0] == scales[1] and ".." in began


def identity(plan: Plan) -> dict[str, object]:
    """Everything that makes two trials comparable, flat."""
    search = {f"search.{key}": values.text() for key, values in plan.tuning.search.items()}
    record: dict[str, object] = {"stage": plan.tuning.stage, **search}
    record |= {"seconds": True} if plan.tuning.seconds else {}
    config = {key: value for key, value in flatten(plan.base).items() if not key.startswith(FREE)}
    if plan.tuning.stage == "decode":
        record["tuned_model"] = find_model(str(plan.tuning.tuned_model)).version
        config = {key: value for key, value in config.items() if key.startswith("decode.")}
    data = plan.base.data
    for path in (task.file(data, "val") for task in plan.tasks):
        if not path.is_file():
            raise InputError(f"data.annotations={data.annotations}: no {path.name} there; see `vb2 data prepare`")
        record[path.name] = short_digest(path.read_bytes())
    return json.loads(json.dumps({**record, **config}))  # type: ignore[no-any-return]


def sampler(plan: Plan, done: int, worker: bool = False) -> optuna.samplers.BaseSampler:
    """The sampler, seeded by the number of trials and a worker's process, so that no point is drawn twice."""
    settings, samplers = plan.tuning.sampler, optuna.samplers
    entropy = [settings.seed, done, *([os.getpid()] if worker else [])]
    seed, startup = int(np.random.SeedSequence(entropy).generate_state(1)[0]), settings.startup_trials
    makers = {
        "random": lambda: samplers.RandomSampler(seed),
        "gp": lambda: samplers.GPSampler(seed=seed, n_startup_trials=startup),
        "tpe": lambda: samplers.TPESampler(seed=seed, n_startup_trials=startup),
        "nsga2": lambda: samplers.NSGAIISampler(population_size=max(2, startup), seed=seed),
    }
    return makers[settings.name]()


def pruner(plan: Plan) -> optuna.pruners.BasePruner:
    """The pruner that the study names, or the stage's default."""
    settings, pruners = plan.tuning.pruner, optuna.pruners
    median = pruners.MedianPruner(settings.startup_trials, settings.warmup_steps)
    makers = {
        "median": lambda: median,
        "patient": lambda: pruners.PatientPruner(median, settings.patience),
        "halving": lambda: pruners.SuccessiveHalvingPruner(plan.base.train.validate_every),
        "hyperband": lambda: pruners.HyperbandPruner(plan.base.train.validate_every, plan.base.train.steps),
        "wilcoxon": lambda: pruners.WilcoxonPruner(
            p_threshold=settings.p_threshold, n_startup_steps=max(2, settings.warmup_steps)
        ),
        "none": pruners.NopPruner,
    }
    return makers[settings.name or {"ce": "median", "scst": "patient", "decode": "wilcoxon"}[plan.tuning.stage]]()


class TrialAttributes(BaseModel):
    """User attributes of a trial in Optuna's storage."""

    default: bool = False  # has the base configuration's values, and is never pruned
    attempts: tuple[int, ...] = ()  # numbers of its earlier attempts
    run_id: str | None = None
    model: str | None = None
    scores: tuple[float, ...] = ()  # by video, in the order of ids
    surplus: bool = False  # drawn after `n_trials` was reached, and never ran
    reason: str | None = None


def attributes(trial: Trial | FrozenTrial) -> TrialAttributes:
    """Read a trial's attributes."""
    return TrialAttributes.model_validate(trial.user_attrs)


def default_of(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The trial with the base configuration's values."""
    return next((trial for trial in trials if attributes(trial).default), None)


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that `n_trials` counts: all attempts at one trial count once, even if they failed."""
    repeated = {number for trial in trials for number in attributes(trial).attempts}
    return [trial for trial in trials if trial.number not in repeated and not attributes(trial).surplus]


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials."""
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def best_of(trials: Sequence[FrozenTrial], margin: float | None = None) -> FrozenTrial | None:
    """The complete trial with the highest score, the first on a tie; with two objectives, the fastest whose score is
    within `margin` of that, and that no other trial beats in both."""
    top = max(finished(trials), key=lambda trial: (trial.values[0], -trial.number), default=None)
    if top is None or margin is None:
        return top
    near = [trial for trial in finished(trials) if trial.values[0] >= top.values[0] - margin]
    return min(near, key=lambda trial: (trial.values[1], -trial.values[0], trial.number))


def name_of(trial: Trial | FrozenTrial) -> str:
    """`trial-007`, the name of its run and folder; later attempts keep the name of the first."""
    return f"trial-{(*attributes(trial).attempts, trial.number)[0]:03d}"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's progress lines, and its warnings about experimental features and plots of few trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", module=r"optuna\.importance")
        yield


def address(plan: Plan) -> str:
    """The storage as the user named it, or the study's own journal file; `~` and `$HOME` are replaced in files."""
    place = plan.tuning.storage or str(plan.folder / "study.journal")
    _, scheme, file = place.rpartition(SQLITE)
    return place if "://" in place and not scheme else f"{scheme}{expand(file)}"


def open_storage(place: str) -> Any:
    """Open a storage, creating it if necessary. Raises InputError if it cannot be reached."""
    missing = refused(f"storage {place}", "pip install 'videoblip2[postgres,grpc]'", ImportError)
    with refused(f"storage {place}: cannot be opened", FORMS, Exception), missing:
        if "://" not in place:
            return _journal(Path(place))
        if place.startswith(GRPC):
            host, port = host_and_port(place.removeprefix(GRPC))
            with quiet():
                proxy = optuna.storages.GrpcStorageProxy(host=host, port=port)
                proxy.wait_server_ready(timeout=20)
            return proxy
        if not place.startswith(SQLITE):
            url = re.sub("^postgres(ql)?://", "postgresql+psycopg2://", place)  # else SQLAlchemy looks for psycopg 3
            return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        file = Path(place.removeprefix(SQLITE))
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # concurrent creation would corrupt its tables
            return optuna.storages.RDBStorage(place, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})


def _journal(path: Path) -> Any:
    """A journal file, without a partial last line from a power failure."""
    if path.is_dir():
        raise InputError(f"storage {path}: is a folder; {FORMS}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open("rb") as file:
            first = file.readline()
        if first and not first.startswith(OPENING[: len(first)]):  # Optuna would append to it
            raise InputError(f"storage {path}: not a study's journal; {FORMS}")
    lock = JournalFileOpenLock(str(path))
    backend = JournalFileBackend(str(path), lock)
    lock.acquire()
    try:
        content = path.read_bytes()
        kept = content[: content.rfind(b"\n") + 1]
        if lost := len(content) - len(kept):
            warn(f"storage {path}: removed a partial line ({lost} bytes) of an interrupted write")
            with atomic(path) as file:
                file.write(kept)
    finally:
        lock.release()
    return optuna.storages.JournalStorage(backend)


def storage_errors(place: str) -> AbstractContextManager[None]:
    """Turn the error of a locked, full or missing storage into one line; the study can be resumed."""
    remedy = "free it, then run the same command again to resume the study"
    return refused(f"storage {place}: cannot be used", remedy, optuna.exceptions.StorageInternalError)


def host_and_port(text: str) -> tuple[str, int]:
    """`127.0.0.1:13000` → ("127.0.0.1", 13000)."""
    if not (parts := re.fullmatch(r"(.+):(\d+)", text)):
        raise InputError(f"address {text!r}: not of the form HOST:PORT, such as 127.0.0.1:13000")
    return parts[1], int(parts[2])


def serve(place: str, listen: str) -> None:
    """Serve a database at `grpc://HOST:PORT` until the process ends."""
    if "://" not in place or place.startswith(GRPC):
        raise InputError(f"storage {place}: only a database can be served; give sqlite:///FILE or postgresql://…")
    host, port = host_and_port(listen)
    with quiet():
        optuna.storages.run_grpc_proxy_server(open_storage(place), host=host, port=port)
