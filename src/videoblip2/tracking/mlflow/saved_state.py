"""Where `training.resume` looks for a stopped run."""

from videoblip2.tracking.mlflow.run_records import RunRecord as StoppedRun
from videoblip2.tracking.mlflow.run_records import fetch_state, find_stopped_run

__all__ = ["StoppedRun", "fetch_state", "find_stopped_run"]
