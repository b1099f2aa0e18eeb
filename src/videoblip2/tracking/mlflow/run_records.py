"""Runs as they are read back from the store: list, find, close; configuration, scores, captions, curves."""

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from videoblip2.captions.predictions import Kind, Row, read_rows
from videoblip2.config import InputError
from videoblip2.errors import first_line
from videoblip2.tracking.liveness import ProcessRecord
from videoblip2.tracking.mlflow import store

#: Tags of a run that say where the rows of a split are: this and the split's name → the artifact's path.
ROW_TAGS: Mapping[Kind, str] = {"captions": "predictions.", "answers": "answers."}
SEEDS, PARENT, TRAINED_BY = "seeds", "mlflow.parentRunId", "trained_by"
SPLITS = ("val", "test")
HOW_TO_FIND = "`vb2 runs list` shows the runs"


@dataclass(frozen=True)
class RunRecord:
    """One run. `started` in seconds since 1970; `data`: context (train, val, test) → name and digest."""

    run_id: str
    name: str
    experiment_id: str
    status: str
    started: float
    seconds: float
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    data: Mapping[str, str]

    @property
    def stage(self) -> str:
        return self.tags.get("stage", "")


def find_run(word: str) -> RunRecord:
    """Find a run by its id, by the first six or more digits of it, or by its name where only one run has that.

    Raises InputError for a word that names no run, or several.
    """
    client = store.connect()
    found = _candidates(client, word)
    if not found:
        raise InputError(f"{word}: no run of that id or name in {store.tracking_uri()}; {HOW_TO_FIND}")
    if len(found) > 1:
        ids = ", ".join(run.info.run_id[:12] for run in found[:5])
        raise InputError(f"{word}: {len(found)} runs are called so, newest first {ids}; give the id of one")
    return _record(found[0])


def run_link(run_id: str, name: str) -> str:
    """Markdown that links to a run's page in the UI; the name and id where the store knows no such run."""
    with suppress(InputError):
        return f"[{name}](#/experiments/{find_run(run_id).experiment_id}/runs/{run_id})"
    return f"{name} (`{run_id}`)"


def seeds_of(record: RunRecord) -> list[RunRecord]:
    """The runs under a parent that `--seeds` made, by seed; none for any other run."""
    if SEEDS not in record.tags:
        return []
    runs = _search(store.connect(), f"tags.`{PARENT}` = '{record.run_id}'", [record.experiment_id])
    return sorted((_record(run) for run in runs), key=lambda run: int(run.tags.get("seed", 0)))


def rows_of(record: RunRecord) -> dict[tuple[Kind, str], tuple[str, str]]:
    """Where a run's captions and answers are: (kind, split) → (run id, artifact).

    Those of its newest finished evaluation count, too.
    """
    client = store.connect()
    runs = _search(client, f"tags.{TRAINED_BY} = '{record.run_id}'", [record.experiment_id])
    found: dict[tuple[Kind, str], tuple[str, str]] = {}
    for run in [client.get_run(record.run_id), *runs]:
        for key, path in _artifacts(client, run).items():
            found.setdefault(key, (run.info.run_id, path))
    return found


def read_logged(kind: Kind, run_id: str, path: str) -> dict[str, Row]:
    """The rows of one kind that a run logged, by key. Raises InputError where the file is gone or malformed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = Path(store.connect().download_artifacts(run_id, path, folder))
            return {row.key: row for row in read_rows(file, kind)}
        except (OSError, ValueError) as error:
            remedy = f"evaluate the run again with `vb2 evaluate {run_id}`"
            raise InputError(f"run {run_id}: {path} cannot be read ({first_line(error)}); {remedy}") from error


def curve(run_id: str, metric: str) -> list[tuple[int, float]]:
    """The points (step, value) of a metric, in order; none where run, metric or store are not there."""
    from mlflow.exceptions import MlflowException

    try:
        points = store.connect().get_metric_history(run_id, metric)
    except (MlflowException, InputError):
        return []
    return sorted((point.step, point.value) for point in points)


def _candidates(client: Any, word: str) -> list[Any]:
    from mlflow.exceptions import MlflowException

    if re.fullmatch(r"[0-9a-f]{32}", word):
        try:
            return [client.get_run(word)]
        except MlflowException:
            return []
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    quoted = word.replace("'", "")
    named = _search(client, f"attributes.run_name = '{quoted}'", experiments)
    if named or not re.fullmatch(r"[0-9a-f]{6,31}", word):
        return named
    return _search(client, f"attributes.run_id LIKE '{word}%'", experiments)


def _search(client: Any, condition: str, experiments: Sequence[str]) -> list[Any]:
    """Newest first."""
    order = ["attributes.start_time DESC"]
    return list(client.search_runs(list(experiments), condition, max_results=1000, order_by=order))


def _artifacts(client: Any, run: Any) -> dict[tuple[Kind, str], str]:
    """(kind, split) → artifact: what the tags say, or the file names of runs without such tags."""
    tags = run.data.tags
    tagged = {
        (kind, tag.removeprefix(prefix)): tags[tag]
        for kind, prefix in ROW_TAGS.items()
        for tag in tags
        if tag.startswith(prefix)
    }
    if not tagged and run.info.status != "RUNNING":
        paths = [file.path for file in client.list_artifacts(run.info.run_id) if file.path.endswith(".jsonl")]
        forms = {split: re.compile(rf"{split}_predictions\.jsonl|evaluate-{split}-.*\.jsonl") for split in SPLITS}
        tagged = {("captions", split): path for path in paths for split, form in forms.items() if form.fullmatch(path)}
    return _told_apart(tagged, run.data.params.get("data.task"))


def _told_apart(found: dict[tuple[Kind, str], str], task: str | None) -> dict[tuple[Kind, str], str]:
    """Runs of older versions have captions and answers in one file, tagged as captions."""
    if task not in ("qa", "mixed") or any(kind == "answers" for kind, _ in found):
        return found
    answers: dict[tuple[Kind, str], str] = {("answers", split): path for (_, split), path in found.items()}
    return answers if task == "qa" else {**found, **answers}


def _record(run: Any) -> RunRecord:
    end = run.info.end_time or run.info.start_time
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id[:8],
        experiment_id=run.info.experiment_id,
        status=run.info.status,
        started=run.info.start_time / 1000,
        seconds=(end - run.info.start_time) / 1000,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
        data=_data(run),
    )


def _data(run: Any) -> dict[str, str]:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return {tag.value: f"{item.dataset.name} {item.dataset.digest}" for item in inputs for tag in item.tags}


@dataclass(frozen=True)
class RunRow:
    """One run; `started` in seconds since 1970, `metrics` of the chosen checkpoint (`best/`) and of the test split."""

    run_id: str
    name: str
    experiment: str
    stage: str
    status: str
    started: float
    metrics: Mapping[str, float]


def list_runs(experiment: str | None = None, limit: int = 20) -> list[RunRow]:
    """Return the newest runs of one experiment, or of all."""
    client = store.connect()
    names = _experiments(client, experiment)
    runs = client.search_runs(list(names), order_by=["attributes.start_time DESC"], max_results=limit) if names else []
    return [_row(run, names) for run in runs]


def find_dead_runs(hours: float = 24.0) -> list[RunRow]:
    """The RUNNING runs whose process is gone: here at once, on other machines after HOURS of silence."""
    client = store.connect()
    names = _experiments(client, None)
    running = client.search_runs(list(names), "attributes.status = 'RUNNING'", max_results=1000) if names else []
    return [_row(run, names) for run in running if _is_dead(run, hours)]


def close_dead_runs(hours: float = 24.0) -> list[RunRow]:
    """End as KILLED what `find_dead_runs` finds."""
    client, dead = store.connect(), find_dead_runs(hours)
    for run in dead:
        client.set_terminated(run.run_id, "KILLED")
    return [replace(run, status="KILLED") for run in dead]


def _experiments(client: Any, wanted: str | None) -> dict[str, str]:
    return {e.experiment_id: e.name for e in client.search_experiments() if wanted in (None, e.name)}


def _row(run: Any, names: Mapping[str, str]) -> RunRow:
    return RunRow(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        experiment=names[run.info.experiment_id],
        stage=run.data.tags.get("stage", ""),
        status=run.info.status,
        started=run.info.start_time / 1000,
        metrics={key: value for key, value in sorted(run.data.metrics.items()) if key.startswith(("best/", "test/"))},
    )


def seconds_silent(run: Any) -> float:
    """How long ago a run was last heard of."""
    return time.time() - float(run.data.tags.get("heartbeat", run.info.start_time / 1000))


def _is_dead(run: Any, hours: float) -> bool:
    process = ProcessRecord.read(run.data.tags)
    gone = process is not None and process.is_local() and not process.is_running()
    return gone or seconds_silent(run) > hours * 3600
