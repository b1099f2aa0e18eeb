"""Where the points of a run that is opened again, or was cut off, go on: what it has already is not logged twice."""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

NO_STEP = sys.maxsize  # such a row comes after every step, and nothing comes after it
Row = Mapping[str, object]
#: (metric, value, milliseconds since 1970, step)
Point = tuple[str, float, int, int]


class Fence:
    """The last logged step of each metric and table of a run, looked up when first asked for.

    Args:
        up: a fence that is down lets everything pass and asks nothing: the run is new and nothing went wrong.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str, up: bool = True) -> None:
        self._client, self._run_id, self._up = client, run_id, up
        self._points: dict[str, int] = {}
        self._tables: dict[str, int] = {}

    def raise_again(self) -> None:
        """Look everything up anew: messages were sent of which it is not known whether they arrived."""
        self._up, self._points, self._tables = True, {}, {}

    def new_points(self, points: Sequence[Point]) -> list[Point]:
        """The points after the last step of their metric, which they then are themselves."""
        if not self._up:
            return list(points)
        new = []
        for point in points:
            if point[3] > self._last_point(point[0]):
                self._points[point[0]] = point[3]
                new.append(point)
        return new

    def new_rows(self, table: str, rows: Sequence[Row]) -> list[Row]:
        """The rows after the last `step` of a table; a table without steps is logged once."""
        if not self._up:
            return list(rows)
        if table not in self._tables:
            self._tables[table] = self._last_row(table)
        new = [row for row in rows if _step(row) > self._tables[table]]
        self._tables[table] = max([self._tables[table], *map(_step, new)])
        return new

    def _last_point(self, key: str) -> int:
        if key not in self._points:
            history = self._client.get_metric_history(self._run_id, key)
            self._points[key] = max((point.step for point in history), default=-1)
        return self._points[key]

    def _last_row(self, table: str) -> int:
        """-1 where there is no such table, NO_STEP where it has no steps."""
        if table not in [artifact.path for artifact in self._client.list_artifacts(self._run_id)]:
            return -1
        with tempfile.TemporaryDirectory() as folder:
            content = json.loads(Path(self._client.download_artifacts(self._run_id, table, folder)).read_text("utf-8"))
        if "step" not in content["columns"]:
            return NO_STEP
        place = content["columns"].index("step")
        return max((int(row[place]) for row in content["data"]), default=-1)


def _step(row: Row) -> int:
    return int(str(row.get("step", NO_STEP)))


def is_there(client: mlflow.MlflowClient, run_id: str) -> bool:
    """Whether a run can be opened again: the store knows it and it is not deleted. Any other failure is raised."""
    try:
        return str(client.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False
