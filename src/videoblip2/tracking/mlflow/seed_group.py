"""The parent run of several seeds: the seeds are its children, and it holds what they have in common."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from videoblip2.tracking.liveness import ProcessRecord
from videoblip2.tracking.mlflow import store
from videoblip2.tracking.mlflow.run_records import PARENT, SEEDS
from videoblip2.tracking.source import revision_tags
from videoblip2.tracking.tracker import NullTracker, Tracker

Points = Mapping[str, Sequence[tuple[int, float]]]


@dataclass
class SeedGroup:
    """The parent of a configuration's seeds. Its run is created when the first child joins, so wrong input leaves none.

    Children get its id as a tag: MLflow's own nesting follows the thread.
    """

    stage: str
    name: str
    experiment: str
    tracker: Tracker = field(default_factory=NullTracker)

    @property
    def run_id(self) -> str | None:
        return self.tracker.run_id

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
        self.experiment = str(client.get_experiment(client.get_run(run_id).info.experiment_id).name)
        self._take(run_id)

    def log(
        self, config: Mapping[str, object], seeds: Sequence[int], best: Mapping[str, float], points: Points
    ) -> None:
        """Log what the seeds share: configuration, list of seeds, values under `best/`, mean curves."""
        self.tracker.log_config(config)
        self.tracker.log_best(best)
        for key, curve in points.items():
            for step, value in curve:
                self.tracker.log_metrics({key: value}, step)
        self.tracker.set_tags({SEEDS: ", ".join(map(str, seeds))})

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Log rows with equal keys as NAME.json, replacing an earlier table of that name."""
        file = f"{name}.json"
        if self.run_id is not None and rows and store.has_artifact(store.connect(), self.run_id, file):
            table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
            store.connect().log_dict(self.run_id, table, file)
        else:
            self.tracker.log_table(name, rows)

    def _take(self, run_id: str, name: str | None = None) -> None:
        """Make a run the parent, RUNNING in this process from now on."""
        from videoblip2.tracking.mlflow.mlflow_tracker import MlflowTracker

        client = store.connect()
        client.update_run(run_id, status="RUNNING", name=name)
        self.tracker = MlflowTracker(client, run_id, resumed=True)
        self.tracker.set_tags({"stage": self.stage, **ProcessRecord.current().fields(), **revision_tags()})


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
        group.tracker.close(status)
