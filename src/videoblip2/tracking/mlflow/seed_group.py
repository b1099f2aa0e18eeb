"""The parent run of several seeds: the seeds are its children, and it holds what they have in common."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from videoblip2.tracking.liveness import ProcessRecord
from videoblip2.tracking.mlflow import store
from videoblip2.tracking.mlflow.run_records import PARENT, SEEDS
from videoblip2.tracking.outbox import Batch
from videoblip2.tracking.source import revision_tags

Points = Mapping[str, Sequence[tuple[int, float]]]


@dataclass
class SeedGroup:
    """The parent of a configuration's seeds. Its run is created when the first child joins, so wrong input leaves none.

    Children get the parent's id as a tag. MLflow's own nesting follows the thread and loses the parent in any other.
    """

    stage: str
    name: str
    experiment: str
    run_id: str | None = None

    def join(self, child: str | None) -> None:
        """Put a run under the parent: the one it already has, or a new one. An untracked run has no parent."""
        if child is None:
            return
        client = store.connect()
        run = client.get_run(child)
        if self.run_id is None:
            earlier = run.data.tags.get(PARENT)
            self._take(earlier or client.create_run(run.info.experiment_id).info.run_id, self.name)
        client.set_tag(child, PARENT, self.run_id)

    def adopt(self, run_id: str) -> None:
        """Under `mlflow run` MLflow's run is the parent: it keeps its name and experiment, and the children follow."""
        client = store.connect(create=True)
        experiment = client.get_run(run_id).info.experiment_id
        self.experiment = str(client.get_experiment(experiment).name)
        self._take(run_id)

    def log(
        self, config: Mapping[str, object], seeds: Sequence[int], best: Mapping[str, float], points: Points
    ) -> None:
        """Log what the seeds share: configuration, list of seeds, values under `best/`, mean curves."""
        if self.run_id is None:
            return
        from videoblip2.tracking.mlflow.delivery import Deduplicator, deliver

        client, now = store.connect(), int(time.time() * 1000)
        logged = client.get_run(self.run_id).data.params
        batch = Batch(
            points=tuple((key, value, now, step) for key, curve in points.items() for step, value in curve),
            best=tuple((f"best/{key}", value, now) for key, value in best.items()),
            params={key: str(value) for key, value in config.items() if key not in logged},
            tags={SEEDS: ", ".join(map(str, seeds))},
        )
        deliver(client, self.run_id, Deduplicator(client, self.run_id), batch)

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Log rows with equal keys as NAME.json, replacing an earlier table of that name."""
        if self.run_id is None or not rows:
            return
        client, file = store.connect(), f"{name}.json"
        if store.has_artifact(client, self.run_id, file):
            table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
            client.log_dict(self.run_id, table, file)
        else:
            client.log_table(self.run_id, {column: [row[column] for row in rows] for column in rows[0]}, file)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the parent's artifacts."""
        if self.run_id is not None:
            store.connect().log_artifact(self.run_id, str(path), folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the parent."""
        for key, value in tags.items() if self.run_id is not None else ():
            store.connect().set_tag(self.run_id, key, value)

    def close(self, status: str) -> None:
        """End the parent, if there is one."""
        if self.run_id is not None:
            store.connect().set_terminated(self.run_id, status)

    def _take(self, run_id: str, name: str | None = None) -> None:
        """Make a run the parent, RUNNING in this process from now on."""
        self.run_id = str(run_id)
        store.connect().update_run(self.run_id, status="RUNNING", name=name)
        self.set_tags({"stage": self.stage, **ProcessRecord.current().fields(), **revision_tags()})


@contextmanager
def seed_group(stage: str, name: str, experiment: str) -> Iterator[SeedGroup]:
    """Open a group and end it FINISHED, FAILED, or KILLED on Ctrl-C and SIGTERM."""
    group, status = SeedGroup(stage, name, experiment), "FAILED"
    if given := os.environ.pop("MLFLOW_RUN_ID", None):  # or every child would write to that run
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
        group.adopt(given)
    try:
        yield group
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        group.close(status)
