"""The MLflow tracker, and how its run opens and ends: one run, however it was started.

Once it is open, a store that does not answer stops nothing: unsent data waits in an outbox and is sent later. MLflow's
own asynchronous logging loses what its queue cannot send.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking.context.registry import resolve_tags

from videoblip2.captions.metrics import scale_of
from videoblip2.captions.predictions import AnswerRow, CaptionRow
from videoblip2.config import InputError
from videoblip2.errors import first_line, masked, refused, warn
from videoblip2.tracking.mlflow import models, outbox, store
from videoblip2.tracking.mlflow.outbox import Unsent
from videoblip2.tracking.mlflow.run_records import PARENT, STATE_ARTIFACTS, STATE_LOGGED, STATE_PARTS, plain
from videoblip2.tracking.source import ProcessRecord, revision_tags
from videoblip2.tracking.tracker import RunSpec, Tracker, ending, sigterm_raises

FULL_BUFFER = 500  # a batch of 200 points costs about as much as three single calls
SECONDS_BETWEEN_FLUSHES = 10.0
TABLE_ROWS = 200


class MlflowTracker(Tracker):
    """Writes to one open MLflow run, except what a `resumed` run has already. Unsent data is kept in `folder`."""

    def __init__(self, client: mlflow.MlflowClient, run: Run, resumed: bool, folder: Path | None = None) -> None:
        self.run_id = self._run_id = str(run.info.run_id)
        self._client, self._folder, self._began = client, folder, int(run.info.start_time)
        file = folder / f"unsent-{self.run_id}.jsonl" if folder else None
        self._outbox = outbox.Outbox(client, self.run_id, resumed, file)
        self._last_flush = time.monotonic()

    def log_config(self, config: Mapping[str, object]) -> None:
        """Log parameters. One logged by `mlflow run` keeps the user's spelling; a different value becomes a tag."""
        with outbox.impatient():
            logged = self._client.get_run(self._run_id).data.params
        parameters, tags = [], []
        for key, value in config.items():
            text = masked(value if isinstance(value, str) else json.dumps(value, default=str))
            if key not in logged:
                parameters.append((key, text))
            elif plain(logged[key]).lower() != plain(text).lower():
                tags.append((f"config.{key}", text))
        self._outbox.put(Unsent(parameters=parameters, tags=tags))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        points = self._outbox.unsent.points
        points += [(key, value, now, step) for key, value in with_shown(metrics).items()]
        if len(points) >= FULL_BUFFER or time.monotonic() - self._last_flush > SECONDS_BETWEEN_FLUSHES:
            self._last_flush = time.monotonic()
            self._outbox.send()

    def log_best(self, metrics: Mapping[str, float]) -> None:
        self._outbox.put(Unsent(points=self._best(metrics)))

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        if rows:
            shown = [dict(row) for row in rows[:TABLE_ROWS]]
            self._outbox.put(Unsent(tables=[(f"{name.removesuffix('.json')}.json", shown)]))

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self._outbox.put(Unsent(files=[(path.absolute(), folder)]))

    def log_data(self, name: str, digest: str, context: str) -> None:
        short = digest[:36]  # MLflow's limit
        self._outbox.put(Unsent(data_sets=[(name, short, json.dumps({"digest": digest}), context)]))

    def log_checkpoint(self, folder: Path, name: str, metrics: Mapping[str, float]) -> str:
        """Log a checkpoint folder as a model; its metrics go on the model, and on the run under `best/`.

        Raises InputError if the store does not answer or is full: a model cannot wait in the outbox.
        """
        self.flush()
        best = [Metric(*point[:3], 0) for point in self._best(metrics)]
        fault = f"{folder}: trained, but not logged as a model, since {store.tracking_uri()} does not answer"
        with refused(fault, f"when it does, resume={self._run_id} logs it", Exception, when=outbox.is_outage):
            if not self._outbox.send(at_once=True):  # MLflow would retry for minutes
                raise ConnectionError("earlier data could not be sent either")
            model_id = models.log_checkpoint(self._client, self._run_id, folder, name)
            for metric in best:
                metric._model_id = model_id
            self._client.log_batch(self._run_id, metrics=best)
        return f"models:/{model_id}"

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._outbox.put(Unsent(tags=[(key, masked(str(value))) for key, value in tags.items()]))

    def flush(self) -> None:
        self._outbox.send()
        self._outbox.write()

    def keep_state(self) -> None:
        """Log FOLDER/best and FOLDER/state to a remote store, so that any machine can resume the run."""
        folder, run_id = self._folder, self._run_id
        try:
            with outbox.impatient(outbox.ONE_RETRY):
                if folder is None or store.is_local(self._client.get_run(run_id).info.artifact_uri):
                    return
                self._client.set_tag(run_id, STATE_LOGGED, "false")  # until it is complete
                for part in STATE_PARTS:
                    if (folder / part).is_dir():
                        self._client.log_artifacts(run_id, str(folder / part), f"{STATE_ARTIFACTS}/{part}")
                self._client.set_tag(run_id, STATE_LOGGED, "true")
        except Exception as error:
            reason = f"its state could not be logged ({first_line(error)})"
            warn(f"run {run_id}: {reason}; resume it on this machine: {folder}")

    def drop_state(self) -> None:
        """Delete what `keep_state` logged, if anything: the run is over."""
        try:
            with outbox.impatient(outbox.ONE_RETRY):
                run = self._client.get_run(self._run_id)
                if STATE_LOGGED in run.data.tags:
                    get_artifact_repository(run.info.artifact_uri).delete_artifacts(STATE_ARTIFACTS)
                    self._client.delete_tag(self._run_id, STATE_LOGGED)
        except Exception as error:
            warn(f"run {self._run_id}: its saved state stays in the store ({first_line(error)})")

    def close(self, status: str) -> None:
        """Send everything and end the run; report what could not be sent and where it is."""
        try:
            if not self._outbox.send(at_once=True):
                what, file = self._outbox.unsent, self._outbox.file
                if self._outbox.write():
                    warn(f"not sent: {what}; they are in {file}, and resume={self._run_id} sends them")
                else:
                    warn(f"run {self._run_id}: lost, since the tracking store does not answer: {what}")
        finally:
            try:
                with outbox.impatient():
                    self._client.set_terminated(self._run_id, status)
            except Exception as error:
                if not outbox.is_outage(error):
                    raise
                reason = first_line(error)
                warn(f"run {self._run_id} could not be closed ({reason}); `vb2 runs gc` closes it later")

    def _best(self, metrics: Mapping[str, float]) -> list[outbox.Point]:
        """The points of the chosen checkpoint, dated at the run's start, so that MLflow merges equal points."""
        named = with_shown({f"best/{key}": float(value) for key, value in metrics.items()})
        return [(key, value, self._began, None) for key, value in named.items()]


def with_shown(metrics: Mapping[str, float]) -> dict[str, float]:
    """Add CIDEr and accuracy as the command line shows them, under names that sort first: `CIDEr x100/val`."""
    found = {key: float(value) for key, value in metrics.items()}
    for key, value in metrics.items():
        prefix, _, name = key.rpartition("/")
        if prefix and name in (CaptionRow.metric, AnswerRow.metric):
            found[f"{store.section(name)}/{prefix.partition('/')[0]}"] = round(scale_of(name) * value, 2)
    return found


@contextmanager
def mlflow_run(spec: RunSpec) -> Iterator[MlflowTracker]:
    """Open, reopen or attach to a run, tag it, and end it FINISHED, FAILED or KILLED with everything flushed."""
    client, folder = store.connect(create=True), spec.folder and spec.folder.absolute()
    fault = f"{store.tracking_uri()}: no run can be opened"
    remedy = "`vb2 doctor` checks the store, and run.tracking=false trains without one"
    with sigterm_raises():
        # Nothing has started: the user must fix an unavailable store.
        with refused(fault, remedy, Exception, when=outbox.is_outage), outbox.impatient():
            run = _start(client, spec)
        tracker = MlflowTracker(client, run, run.info.run_id == spec.resume_run_id, folder)
        with ending(tracker.close):
            tags = {"stage": spec.stage, **ProcessRecord.current().fields(), "heartbeat": str(int(time.time()))}
            tags |= {"resumed_from": spec.resume_run_id} if spec.resume_run_id else {}
            tags |= {"folder": str(folder)} if folder else {}
            tracker.set_tags({**tags, **revision_tags()})
            yield tracker


def _start(client: mlflow.MlflowClient, spec: RunSpec) -> Run:
    """The run to resume, if the store still has it; the run that `mlflow run` opened; or a new one."""
    given, parent = os.environ.pop("MLFLOW_RUN_ID", None), spec.parent_run_id
    resumed = spec.resume_run_id if spec.resume_run_id and _exists(client, spec.resume_run_id) else None
    if resumed and given and given != resumed and not parent:
        client.set_tag(given, "continues", resumed)  # the empty run that `mlflow run` opened
        client.set_terminated(given, "FINISHED")
        client.delete_run(given)
    if run_id := resumed or (None if parent else given):
        client.update_run(run_id, status="RUNNING")
        run = client.get_run(run_id)
    else:
        experiment_id = client.get_run(parent).info.experiment_id if parent else _experiment_id(client, spec.experiment)
        tags = {"mlflow.source.name": f"vb2 {spec.stage}", **({PARENT: parent} if parent else {})}  # in the runs table
        run = client.create_run(experiment_id, tags=resolve_tags(tags), run_name=spec.name)
    if not parent:
        store.add_views(client, run.info.experiment_id)
    return run


def _exists(client: mlflow.MlflowClient, run_id: str) -> bool:
    with store.answered(*store.UNKNOWN):
        return str(client.get_run(run_id).info.lifecycle_stage) == "active"
    return False


def _experiment_id(client: mlflow.MlflowClient, name: str) -> str:
    """Find or create the experiment. A sqlite store's artifacts are beside it, wherever the command runs."""
    found = client.get_experiment_by_name(name)
    if found is None:
        database = store.sqlite_file(store.tracking_uri())
        with store.answered("RESOURCE_ALREADY_EXISTS"):  # another process created it meanwhile
            client.create_experiment(name, (database.parent / store.ARTIFACTS / name).as_uri() if database else None)
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        remedy = "restore it with `mlflow experiments restore` or use another name"
        raise InputError(f"experiment {name!r} was deleted; {remedy}")
    return str(found.experiment_id)
