"""Where the points of a run that is opened again go on: what it has already is not logged twice."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException


class Fence:
    """The last logged step of each metric and table of a run, looked up when first asked for."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._points: dict[str, int] = {}
        self._tables: dict[str, int] = {}

    def new_points(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """The metrics that have no point at this step or after it."""
        return {key: value for key, value in metrics.items() if step > self._last_point(key)}

    def new_rows(self, table: str, rows: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
        """The rows after the last `step` of a table; rows without a step are all new."""
        if table not in self._tables:
            self._tables[table] = self._last_row(table)
        return [row for row in rows if "step" not in row or int(str(row["step"])) > self._tables[table]]

    def _last_point(self, key: str) -> int:
        if key not in self._points:
            history = self._client.get_metric_history(self._run_id, key)
            self._points[key] = max((point.step for point in history), default=-1)
        return self._points[key]

    def _last_row(self, table: str) -> int:
        name = f"{table.removesuffix('.json')}.json"
        if name not in [artifact.path for artifact in self._client.list_artifacts(self._run_id)]:
            return -1
        with tempfile.TemporaryDirectory() as folder:
            content = json.loads(Path(self._client.download_artifacts(self._run_id, name, folder)).read_text("utf-8"))
        if "step" not in content["columns"]:
            return -1
        place = content["columns"].index("step")
        return max((int(row[place]) for row in content["data"]), default=-1)


def is_there(client: mlflow.MlflowClient, run_id: str) -> bool:
    """Whether a run can be opened again: the store knows it and it is not deleted."""
    try:
        return str(client.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException:
        return False
