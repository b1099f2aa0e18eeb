"""`vb2 tune`: search for better values of configuration keys."""

from typing import TYPE_CHECKING, Annotated

import typer

from videoblip2.cli.options import ANY_OPTION, Json, Overrides, overrides_from
from videoblip2.cli.output import Record, emit, progress, say

if TYPE_CHECKING:
    from videoblip2.tune.lead import Outcome


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(context_settings=ANY_OPTION)(tune)


def tune(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Study: a YAML file, or a name such as tune_toy_ce.")],
    overrides: Overrides = None,
    worker: Annotated[bool, typer.Option("--worker", help="Run trials of a study that another process leads.")] = False,
    storage: Annotated[
        str | None, typer.Option(help="Journal file, sqlite:///…, postgresql://… or grpc://HOST:PORT.")
    ] = None,
    serve: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Run no trial: offer the database at grpc://HOST:PORT.")
    ] = None,
    json: Json = False,
) -> None:
    """Search the ranges of CONFIG for the best validation CIDEr. Run it again to resume, up to n_trials.

    \b
    Examples:
      vb2 tune tune_toy_ce
      vb2 tune tune_toy_ce --worker
    """
    pairs = [*overrides_from(overrides), *([f"storage={storage}"] if storage else [])]
    if serve is not None:
        _serve(config, pairs, serve)
    elif worker:
        from videoblip2.tune.lead import join

        made = join(config, pairs, progress, say)
        emit({"made": made}, json, f"{made} trials run; none is left")
    else:
        from videoblip2.errors import InputError
        from videoblip2.tune.lead import tune as lead

        outcome = lead(config, pairs, progress, say)
        emit(_describe(outcome), json, _summary(outcome))
        if outcome.best is None:
            raise InputError(f"study {outcome.study}: no trial is complete; run the command again to resume")


def _serve(config: str, pairs: list[str], listen: str) -> None:
    from videoblip2.tune.plan import load_plan
    from videoblip2.tune.study import address, hidden, serve

    place = address(load_plan(config, pairs))
    say(f"serving {hidden(place)} to grpc://{listen}; press Ctrl-C to stop")
    serve(place, listen)


def _describe(outcome: "Outcome") -> Record:
    best, verdict = outcome.best, outcome.verdict
    return {
        "study": outcome.study,
        "run_id": outcome.run_id,
        "trials": outcome.states,
        "best": best
        and {"trial": verdict.best if verdict else best.number, "CIDEr": best.value, "params": best.params},
        "best_file": outcome.best_file and str(outcome.best_file),
        "verdict": verdict
        and {
            "better": verdict.better,
            "difference": verdict.difference,
            "interval": [verdict.low, verdict.high],
            "chosen_among": verdict.chosen_among,
            "chosen_again": verdict.chosen_again,
        },
        "plots": [str(path) for path in outcome.plots],
        "rows": outcome.rows,
    }


def _summary(outcome: "Outcome") -> str:
    ended = ", ".join(f"{number} {state}" for state, number in outcome.states.items())
    lines = [f"study {outcome.study}: {ended}", f"run: {outcome.run_id or 'not tracked'}"]
    if outcome.best is None:
        return "\n".join([*lines, "no trial is complete, so there is no best.yaml"])
    from videoblip2.tune.report import SCORE, shown, shown_score

    lines.append(f"best: {SCORE} {shown_score(outcome.best)}   {shown(outcome.best.params)}")
    lines.append(
        outcome.verdict.text()
        if outcome.verdict
        else "the default trial is not complete, so there is nothing to compare with"
    )
    lines.append(f"best.yaml: {outcome.best_file}")
    lines += [f"plots: {', '.join(str(path) for path in outcome.plots)}"] if outcome.plots else []
    return "\n".join([*lines, "next:", *(f"  {command}" for command in outcome.commands)])
