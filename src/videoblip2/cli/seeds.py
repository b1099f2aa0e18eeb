"""`vb2 ce --seeds 3`: what several seeds have in common."""

from typing import TYPE_CHECKING

from videoblip2.cli.output import emit, progress, table

if TYPE_CHECKING:
    from videoblip2.config import Config
    from videoblip2.training.seeds import SeedsResult


def train_seeds(stage: str, config: "Config", seeds: int, usual: "Config", json: bool) -> None:
    """Train the seeds and print each one's scores, their mean and its interval."""
    from videoblip2.cli.stages import describe, show_weights
    from videoblip2.training.seeds import run_seeds

    result = run_seeds(stage, config, seeds, progress, show_weights, usual)
    record = {
        "stage": stage,
        "name": result.name,
        "run_id": result.run_id,
        "seeds": [describe(seed) for seed in result.seeds],
        "metrics": {name: value._asdict() for name, value in result.metrics.items()},
    }
    emit(record, json, _text(result))


def _text(result: "SeedsResult") -> str:
    from videoblip2.captions.metrics import label_of, shown, shown_interval, summary_metrics

    names = summary_metrics(result.metrics)
    rows = [
        [str(seed), *(shown(name, run.metrics[name]) for name in names), str(run.best_step), run.run_id or ""]
        for seed, run in zip(result.numbers, result.seeds, strict=True)
    ]
    rows.append(
        ["mean", *(shown_interval(name, result.metrics[name]) for name in names), "", result.run_id or "not tracked"]
    )
    title = f"{len(result.seeds)} seeds on val, ×100; the mean with its 95 % interval over seeds"
    return f"{result.name}\n{table(title, ['seed', *map(label_of, names), 'best step', 'run'], rows)}"
