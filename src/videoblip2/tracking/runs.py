"""What the store knows of its runs: listing them, and closing those whose process died without a word."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from videoblip2.tracking import process, store


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


def _is_dead(run: Any, hours: float) -> bool:
    tags = run.data.tags
    if time.time() - process.last_sign(tags, run.info.start_time / 1000) > hours * 3600:
        return True
    return process.is_here(tags) and process.is_gone(tags)
