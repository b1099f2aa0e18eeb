"""Read runs from the store: list, find, close, resume; configuration, scores, captions, curves."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import psutil

from videoblip2.captions.predictions import NAMES, Kind, Prediction, read_rows
from videoblip2.config import InputError
from videoblip2.errors import first_line, refused
from videoblip2.tracking.mlflow import store
from videoblip2.tracking.mlflow.store import Finding
from videoblip2.tracking.source import ProcessRecord

SPEED = {"decode.batch_size", "decode.compile"}  # decoding keys that change no caption
SEEDS, PARENT, TRAINED_BY = "seeds", "mlflow.parentRunId", "trained_by"
#: Training state of a stopped run: its artifact folder, the parts of the run's folder in it, its tag once complete.
STATE_ARTIFACTS, STATE_PARTS, STATE_LOGGED = "resume", ("best", "state"), "state.logged"
SPLITS = ("val", "test")
HOW_TO_FIND = "`vb2 runs list` shows the runs"


@dataclass(frozen=True)
class RunRecord:
    """One run. `started` in seconds since 1970; `data`: context (train, val, test) → name and digest.

    minutes: from its start to its end; 0 while it runs.
    """

    run_id: str
    name: str
    experiment_id: str
    experiment: str
    status: str
    started: float
    minutes: float
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    data: Mapping[str, str]

    @property
    def stage(self) -> str:
        return self.tags.get("stage", "")

    @property
    def commit(self) -> str:
        """Commit of the source; empty if not recorded."""
        return self.tags.get("git.commit", "")[:10] + (" with changes" if self.tags.get("git.dirty") == "true" else "")

    @property
    def folder(self) -> Path | None:
        """Where the run's files were, on `host`."""
        return Path(self.tags["folder"]) if "folder" in self.tags else None

    @property
    def host(self) -> str:
        return self.tags.get("host", "an unknown host")

    @property
    def seconds_silent(self) -> float:
        """Seconds since the run's last sign of life."""
        return time.time() - float(self.tags.get("heartbeat", self.started))

    @property
    def logged(self) -> bool:
        """Whether the store has a copy of the training state."""
        return self.tags.get(STATE_LOGGED) == "true"

    @property
    def validated(self) -> str:
        """Where the validation scores of the chosen checkpoint are; `val/` are the last ones of a training."""
        return "val/" if self.stage == "evaluate" else "best/val/"

    def listed(self) -> dict[str, object]:
        """The fields for lists of runs: scores of the chosen checkpoint and of the test split."""
        found = (self.validated, "best/", "test/")
        scores = {key: value for key, value in sorted(self.metrics.items()) if key.startswith(found)}
        shown = ("run_id", "name", "experiment", "stage", "status", "started")
        return {**{key: getattr(self, key) for key in shown}, "metrics": scores}


def list_runs(experiment: str | None = None, limit: int = 20) -> list[RunRecord]:
    """Return the newest runs of one experiment, or of all. Raises InputError for an unknown experiment."""
    names = _experiments()
    if experiment not in (None, *names.values()):
        raise InputError(
            f"experiment {experiment!r}: not in {store.tracking_uri()}; it has {', '.join(names.values())}"
        )
    return _search("", {key: name for key, name in names.items() if experiment in (None, name)}, limit)


def find_run(word: str, also: str = "") -> RunRecord:
    """Find a run by its id, by at least the first six digits of it, or by its name if unique.

    Raises InputError if no run, several, or a deleted run match; `also` is more text for the message.
    """
    names, quoted = _experiments(), word.replace("'", "")
    found = _search(f"attributes.run_name = '{quoted}'", names)
    if re.fullmatch(r"[0-9a-f]{32}", word):
        with store.answered(*store.UNKNOWN):
            run = store.connect().get_run(word)
            if run.info.lifecycle_stage != "active":
                raise InputError(f"{word}: this run was deleted; restore it with `mlflow runs restore --run-id {word}`")
            found = [_record(run, names)]
    elif not found and re.fullmatch(r"[0-9a-f]{6,31}", word):
        found = _search(f"attributes.run_id LIKE '{word}%'", names)
    if not found:
        raise InputError(f"{word}: {also}no run with that id or name in {store.tracking_uri()}; {HOW_TO_FIND}")
    if len(found) > 1:
        ids = ", ".join(run.run_id[:12] for run in found[:5])
        raise InputError(f"{word}: {len(found)} runs have this name, newest first {ids}; give the id of one")
    return found[0]


def run_link(run_id: str, name: str) -> str:
    """A Markdown link to a run's page in the UI; the name and id if the store has no such run."""
    with suppress(InputError):
        return f"[{name}](#/experiments/{find_run(run_id).experiment_id}/runs/{run_id})"
    return f"{name} (`{run_id}`)"


def runs_page(run_id: str) -> str:
    """The address in MLflow's UI of the experiment of a run, with CIDEr and stage as columns."""
    return f"/#/experiments/{find_run(run_id).experiment_id}/runs?viewStateShareKey=vb2&workflowType=machine_learning"


def seeds_of(record: RunRecord) -> list[RunRecord]:
    """The runs under a parent from `--seeds`, by seed; empty for any other run."""
    runs = _beside(record, PARENT) if SEEDS in record.tags else []
    return sorted(runs, key=lambda run: int(run.tags.get("seed", 0)))


def rows_of(record: RunRecord) -> dict[tuple[Kind, str], tuple[str, str]]:
    """(kind, split) → (run id, artifact) of a run's captions and answers, or of its latest finished evaluation with
    the same decoding."""

    def alike(run: RunRecord) -> bool:
        keys = {key for key in run.params.keys() & record.params.keys() if key.startswith("decode.")} - SPEED
        return all(plain(run.params[key]) == plain(record.params[key]) for key in keys)

    found: dict[tuple[Kind, str], tuple[str, str]] = {}
    runs = [record, *filter(alike, _beside(record, TRAINED_BY))]
    for run, (kind, name), split in product(runs, NAMES.items(), SPLITS):
        if path := run.tags.get(f"{name}.{split}"):
            found.setdefault((kind, split), (run.run_id, path))
    return found


def read_logged(kind: Kind, run_id: str, path: str) -> dict[str, Prediction]:
    """The rows of one kind that a run logged, by key. Raises InputError if the file is gone or malformed."""
    fault, remedy = f"run {run_id}: {path} cannot be read", f"evaluate the run again with `vb2 evaluate {run_id}`"
    with refused(fault, remedy, OSError, ValueError), tempfile.TemporaryDirectory() as folder:
        file = Path(store.connect().download_artifacts(run_id, path, folder))
        return {row.key: row for row in read_rows(file, kind)}


def curve(run_id: str, metric: str) -> list[tuple[int, float]]:
    """The points (step, value) of a metric, in order; none if the run, metric or store does not exist."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException, InputError):
        return sorted((point.step, point.value) for point in store.connect().get_metric_history(run_id, metric))
    return []


def plain(text: str) -> str:
    """A logged value in normal form: `1e-4` equals 0.0001, and `True` equals true."""
    text = text.strip("'\"")
    try:
        number = float(text)
    except ValueError:
        return {"null": "none", "True": "true", "False": "false"}.get(text, text)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def find_stopped_run(word: str) -> RunRecord:
    """Find a run to resume, by the name of its folder. Raises InputError as `find_run` does, or if it still runs."""
    record = find_run(word, "no such folder, and ")
    record = replace(record, name=record.folder.name) if record.folder else record
    process = ProcessRecord.read(record.tags)
    if record.status != "RUNNING" or process is None:
        return record
    if process.is_local():  # two processes writing to one run would corrupt it
        if process.is_running() and process.pid != os.getpid():
            raise InputError(f"resume={word}: still running as process {process.pid}; stop it first")
    elif (silent := record.seconds_silent) < store.ALIVE_SECONDS:
        remedy = "stop it first, or if it is dead, mark it as failed with `vb2 runs gc --hours 0.02`"
        raise InputError(f"resume={word}: running on {process.host}, last heard of {silent:.0f} s ago; {remedy}")
    return record


def fetch_state(run_id: str, folder: Path) -> None:
    """Download a stopped run's training state from the store into FOLDER, atomically; replaces older parts."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".resume-") as draft:
        store.connect().download_artifacts(run_id, STATE_ARTIFACTS, draft)
        for part in STATE_PARTS:
            if (Path(draft) / STATE_ARTIFACTS / part).is_dir():
                shutil.rmtree(folder / part, ignore_errors=True)
                os.replace(Path(draft) / STATE_ARTIFACTS / part, folder / part)


def find_dead_runs(hours: float = 24.0) -> list[RunRecord]:
    """The RUNNING runs without a process: local ones at once, others after HOURS of silence, children included."""
    running = _search("attributes.status = 'RUNNING'", _experiments())
    silent = {run.run_id for run in running if run.seconds_silent > hours * 3600}
    heard = {run.tags.get(PARENT) for run in running if run.run_id not in silent}
    return [run for run in running if _is_gone(run) or run.run_id in silent - heard]


def close_dead_runs(hours: float = 24.0) -> list[RunRecord]:
    """End the runs of `find_dead_runs` as KILLED."""
    client, dead = store.connect(), find_dead_runs(hours)
    for run in dead:
        client.set_terminated(run.run_id, "KILLED")
    return [replace(run, status="KILLED") for run in dead]


def store_findings() -> list[Finding]:
    """Check the store named by MLFLOW_TRACKING_URI, or the one in the current folder, and its runs. Read only."""
    found, name = store.findings(), "store: unclosed runs"
    if any(finding.status == "fail" for finding in found) or len(found) == 1:
        return found
    try:
        dead = find_dead_runs()
    except Exception as error:
        return [*found, Finding(name, "fail", first_line(error), "fix the store's schema first")]
    if not dead:
        return [*found, Finding(name, "ok", "none")]
    text = f"{len(dead)} RUNNING without a process: {', '.join(run.name for run in dead[:3])}"
    remedy = "`vb2 runs gc` closes them; `vb2 ce CONFIG resume=RUN` resumes one"
    return [*found, Finding(name, "warn", text, remedy)]


def _is_gone(run: RunRecord) -> bool:
    """Whether certainly no process here writes to a run."""
    process = ProcessRecord.read(run.tags)
    if process is not None:
        return process.is_local() and not process.is_running()
    database = store.sqlite_file(store.tracking_uri())
    if run.tags.get("mlflow.source.type") != "PROJECT" or database is None or store.network_file_system(database):
        return False
    # `mlflow run` opened the run, and has been building its environment since.
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return not any("run" in words and "mlflow" in [Path(word).name for word in words[:3]] for words in commands)


def _beside(record: RunRecord, tag: str) -> list[RunRecord]:
    """The runs of a record's experiment that name it in a tag, newest first."""
    return _search(f"tags.`{tag}` = '{record.run_id}'", {record.experiment_id: record.experiment})


def _experiments() -> dict[str, str]:
    """Id → name."""
    return {experiment.experiment_id: experiment.name for experiment in store.connect().search_experiments()}


def _search(condition: str, names: Mapping[str, str], limit: int = 1000) -> list[RunRecord]:
    """Runs that meet a condition, newest first. names: of the experiments to search, by id. limit: MLflow's is 1000."""
    order = ["attributes.start_time DESC"]
    runs = store.connect().search_runs(list(names), condition, max_results=limit, order_by=order) if names else []
    return [_record(run, names) for run in runs]


def _record(run: Any, names: Mapping[str, str]) -> RunRecord:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id[:8],
        experiment_id=run.info.experiment_id,
        experiment=names.get(run.info.experiment_id, ""),
        status=run.info.status,
        started=run.info.start_time / 1000,
        minutes=(run.info.end_time - run.info.start_time) / 60_000 if run.info.end_time else 0.0,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
        data={tag.value: f"{item.dataset.name} {item.dataset.digest}" for item in inputs for tag in item.tags},
    )
