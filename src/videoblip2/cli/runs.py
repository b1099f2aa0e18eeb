"""`vb2 runs`: the runs of the MLflow store."""

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from videoblip2.cli.compare import compare
from videoblip2.cli.options import Json
from videoblip2.cli.output import emit, table

if TYPE_CHECKING:
    from videoblip2.tracking.mlflow.run_records import RunRow

app = typer.Typer(help="The runs of the MLflow store.", no_args_is_help=True)
app.command()(compare)


@app.command("list")
def list_(
    experiment: Annotated[str | None, typer.Option(help="Show this experiment only.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Number of most recent runs to show.")] = 20,
    json: Json = False,
) -> None:
    """List the most recent runs with the scores of their best checkpoint."""
    from videoblip2.tracking.mlflow.run_records import list_runs

    runs = list_runs(experiment, limit)
    emit({"runs": [asdict(run) for run in runs]}, json, _table("Runs", runs))


@app.command()
def gc(
    hours: Annotated[
        float, typer.Option(min=0.0, help="Hours of silence after which another machine's run counts as dead.")
    ] = 24.0,
    json: Json = False,
) -> None:
    """Mark abandoned runs as failed: those left RUNNING by a process that was killed."""
    from videoblip2.tracking.mlflow.run_records import close_dead_runs

    closed = close_dead_runs(hours)
    emit({"closed": [run.run_id for run in closed]}, json, _table(f"Closed {len(closed)} runs", closed))


def _table(title: str, runs: "list[RunRow]") -> str:
    from videoblip2.captions.metrics import PRIMARY, label_of

    scores = [f"{label_of(PRIMARY)} {split}" for split in ("val", "test")]
    columns = ["run id", "name", "stage", "status", "started", *scores]
    rows = [[run.run_id, run.name, run.stage, run.status, _time(run.started), *_scores(run)] for run in runs]
    return table(title, columns, rows, fold=("name",))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _scores(run: "RunRow") -> list[str]:
    from videoblip2.captions.metrics import PRIMARY, shown

    values = [run.metrics.get(key) for key in (f"best/val/{PRIMARY}", f"test/{PRIMARY}")]
    return ["" if value is None else shown(PRIMARY, value) for value in values]
