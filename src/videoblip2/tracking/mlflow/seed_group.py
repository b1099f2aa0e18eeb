"""The parent run of several seeds: the seeds are its children, and it holds what they have in common."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from videoblip2.tracking.mlflow import store
from videoblip2.tracking.mlflow.run_records import PARENT
from videoblip2.tracking.source import ProcessRecord, revision_tags
from videoblip2.tracking.tracker import Tracker, ending


@dataclass
class SeedGroup:
    """The parent of a configuration's seeds. Its run is created when the first child joins, so wrong input leaves none.

    Children get its id as a tag: MLflow's own nesting follows the thread.
    """

    stage: str
    name: str
    experiment: str
    tracker: Tracker = field(default_factory=Tracker)

    def join(self, child: str | None) -> None:
        """Put a run under the parent: the one it already has, or a new one. An untracked run has no parent."""
        if child is None:
            return
        client = store.connect()
        run = client.get_run(child)
        if self.tracker.run_id is None:
            earlier = run.data.tags.get(PARENT)
            self.take(earlier or client.create_run(run.info.experiment_id).info.run_id, self.name)
        client.set_tag(child, PARENT, self.tracker.run_id)

    def take(self, run_id: str, name: str | None = None) -> None:
        """Make a run the parent, RUNNING in this process from now on."""
        from videoblip2.tracking.mlflow.mlflow_tracker import MlflowTracker

        client = store.connect()
        client.update_run(run_id, status="RUNNING", name=name)
        self.tracker = MlflowTracker(client, run_id, resumed=True)
        self.tracker.set_tags({"stage": self.stage, **ProcessRecord.current().fields(), **revision_tags()})


@contextmanager
def seed_group(stage: str, name: str, experiment: str) -> Iterator[SeedGroup]:
    """Open a group, and end it as a run ends."""
    group = SeedGroup(stage, name, experiment)
    if given := os.environ.pop("MLFLOW_RUN_ID", None):  # of `mlflow run`: it keeps its name, and children follow it
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
        client = store.connect(create=True)
        group.experiment = str(client.get_experiment(client.get_run(given).info.experiment_id).name)
        group.take(given)
    with ending(lambda status: group.tracker.close(status)):
        yield group
