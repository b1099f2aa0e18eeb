"""The parent run of several seeds: children under it, and on it what they have in common."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from videoblip2.tracking.liveness import ProcessRecord
from videoblip2.tracking.mlflow import store
from videoblip2.tracking.mlflow.run_records import PARENT, SEEDS
from videoblip2.tracking.source import revision_tags

Points = Mapping[str, Sequence[tuple[int, float]]]


@dataclass
class SeedGroup:
    """The parent of a configuration's seeds. Its run is made when its first child joins: a wrong input leaves none.

    Children get the parent's id as a tag. MLflow's own nesting follows the thread, and loses the parent in others.
    """

    stage: str
    name: str
    experiment: str
    run_id: str | None = None

    def join(self, child: str | None) -> None:
        """Put a run under the parent: the one that it has already, or a new one. An untracked run has none."""
        if child is None:
            return
        client = store.connect()
        run = client.get_run(child)
        if self.run_id is None:
            earlier = run.data.tags.get(PARENT)
            self._take(earlier or client.create_run(run.info.experiment_id).info.run_id, self.name)
        client.set_tag(child, PARENT, self.run_id)

    def adopt(self, run_id: str) -> None:
        """Under `mlflow run` its run is the parent; its name and experiment stay, and the children go there, too."""
        client = store.connect(create=True)
        experiment = client.get_run(run_id).info.experiment_id
        self.experiment = str(client.get_experiment(experiment).name)
        self._take(run_id)

    def log(
        self, config: Mapping[str, object], seeds: Sequence[int], best: Mapping[str, float], points: Points
    ) -> None:
        """Log what the seeds share: configuration, the list of seeds, values under `best/`, mean curves."""
        if self.run_id is None:
            return
        from mlflow.entities import Metric, Param, RunTag

        client, now = store.connect(), int(time.time() * 1000)
        logged = client.get_run(self.run_id).data.params
        params = [Param(key, str(value)) for key, value in config.items() if key not in logged]
        metrics = [Metric(f"best/{key}", value, now, 0) for key, value in best.items()]
        metrics += [Metric(key, value, now, step) for key, curve in points.items() for step, value in curve]
        tags = [RunTag(SEEDS, ", ".join(map(str, seeds)))]
        for start in range(0, len(metrics), 1000):  # MLflow takes no more in one batch
            client.log_batch(self.run_id, metrics=metrics[start : start + 1000])
        client.log_batch(self.run_id, params=params, tags=tags)

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Log rows with equal keys as NAME.json, in place of an earlier table of that name."""
        if self.run_id is None or not rows:
            return
        client, file = store.connect(), f"{name}.json"
        if file in [artifact.path for artifact in client.list_artifacts(self.run_id)]:
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
        """Make a run the parent; it runs from now on, in this process."""
        self.run_id = str(run_id)
        store.connect().update_run(self.run_id, status="RUNNING", name=name)
        self.set_tags({"stage": self.stage, **ProcessRecord.current().fields(), **revision_tags()})


@contextmanager
def seed_group(stage: str, name: str, experiment: str) -> Iterator[SeedGroup]:
    """Open a group and end it FINISHED, FAILED, or KILLED on Ctrl-C and SIGTERM."""
    group, status = SeedGroup(stage, name, experiment), "FAILED"
    if given := os.environ.pop("MLFLOW_RUN_ID", None):  # the children would all write into that run
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
