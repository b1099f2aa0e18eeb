"""`vb2 promote`, `vb2 rollback`, `vb2 lineage`, `vb2 reproduce`: the registry's commands."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videoblip2.cli.console import (
    Json,
    ModelName,
    Overrides,
    Record,
    RegisteredName,
    emit,
    overrides_from,
    progress,
    say,
    table,
)

if TYPE_CHECKING:
    from videoblip2.registry.lineage import Ancestor
    from videoblip2.registry.promote import Promotion
    from videoblip2.registry.reproduce import Recipe

Run = Annotated[str, typer.Argument(metavar="RUN", help="Run id, models:/NAME/VERSION or models:/m-….")]

#: The parts of a verdict that a lineage shows.
GATE = ("verdict", "outcome", "when", "who", "reason")


def promote(
    run: Run,
    overrides: Overrides = None,
    gate: Annotated[Path | None, typer.Option(help="Gate file; by default the shipped experiments/gate.yaml.")] = None,
    name: RegisteredName = "videoblip2",
    force: Annotated[bool, typer.Option("--force", help="Promote whatever the verdict; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Why the verdict is overruled; stored with the version.")] = "",
    new_manifest: Annotated[
        bool, typer.Option("--new-manifest", help="Accept validation data that changed since the last promotion.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare a run's model with the champion; make it the champion if it passes the gate, else exit with 1.

    \b
    Examples:
      vb2 promote RUN
      vb2 promote RUN --gate toy_gate
      vb2 promote RUN --force --reason 'the champion was trained on the wrong data'
    """
    from videoblip2.errors import InputError
    from videoblip2.registry.promote import Request
    from videoblip2.registry.promote import promote as run_gate

    if force != bool(reason.strip()):
        raise typer.BadParameter("--force and --reason go together: say why the verdict is overruled")
    overridden = tuple(overrides_from(overrides))
    request = Request(run, name, gate, overridden, reason.strip(), new_manifest)
    result = run_gate(request, progress)
    emit(_promotion_record(result), json, _promotion_text(result))
    if not result.promoted:
        keeps = f"champion stays version {result.previous}" if result.previous else "there is still no champion"
        raise InputError(f"{run} does not pass the gate: {'; '.join(result.verdict.failed)}; {keeps}")


def rollback(
    name: RegisteredName = "videoblip2",
    reason: Annotated[str, typer.Option(help="Why; stored in the history of champions.")] = "",
    json: Json = False,
) -> None:
    """Restore the previous champion.

    \b
    Example:
      vb2 rollback --reason 'captions became too long'
    """
    from videoblip2.registry.versions import rollback as go_back

    move = go_back(name, reason)
    text = f"champion: {name}/{move.version} again, was {name}/{move.previous} ({move.why}; {move.who}, {move.when})"
    emit({"name": name, **asdict(move)}, json, text)


def lineage(model: ModelName, json: Json = False) -> None:
    """Show where a model came from: data, encoders, parent, commit, lock and seed, back to its first ancestor."""
    from videoblip2.registry.lineage import lineage as trace

    line = trace(model)
    emit({"model": model, "lineage": [asdict(ancestor) for ancestor in line]}, json, lineage_text(line))


def reproduce(
    run: ModelName,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest difference, as scores are printed.")] = 0.0,
    out: Annotated[Path | None, typer.Option(help="Folder for the new run; by default that of the original.")] = None,
    json: Json = False,
) -> None:
    """Train a run again from its stored configuration and compare its validation scores; exit with 1 if one differs."""
    from videoblip2.captions.metrics import label_of, scale_of
    from videoblip2.errors import InputError
    from videoblip2.registry.reproduce import reproduce as train_again

    result = train_again(run, tolerance, out, progress, _say_recipe)
    (expected, found), *_ = result.scores.values()
    record = {
        "command": result.recipe.command,
        "differs": result.recipe.differs,
        "expected": expected,
        "found": found,
        "scores": {name: {"expected": old, "found": new} for name, (old, new) in result.scores.items()},
        "reproduced": result.reproduced,
        "run_id": result.result.run_id,
        "checkpoint": str(result.result.checkpoint),
    }
    lines = [
        f"validation {label_of(name)} {scale_of(name) * new:.4f}, was {scale_of(name) * old:.4f}"
        for name, (old, new) in result.scores.items()
    ]
    emit(record, json, "\n".join([*lines, f"run: {result.result.run_id or 'not tracked'}"]))
    if not result.reproduced:
        both = "; ".join(lines)
        remedy = "a GPU sums in no fixed order: give --tolerance"
        if changed := result.recipe.differs:
            remedy = f"{len(changed)} things have changed, first {changed[0]}: restore them"
        raise InputError(f"{run}: not reproduced within {tolerance:g}: {both}; {remedy}")


def _say_recipe(recipe: "Recipe") -> None:
    """Print the command, and what has changed since the original."""
    say(recipe.command)
    for difference in recipe.differs:
        say(f"  changed: {difference}")


def lineage_text(line: "list[Ancestor]") -> str:
    """A block for each model, the newest first."""
    return "\n\n".join(_ancestor_text(ancestor, "started from " if n else "") for n, ancestor in enumerate(line))


def _ancestor_text(ancestor: "Ancestor", how: str) -> str:
    if ancestor.missing:
        return f"{how}{ancestor.model}\n  missing      {ancestor.missing}"
    from videoblip2.captions.metrics import label_of, shown, summary_metrics

    commit = ancestor.commit + (", with uncommitted changes" if ancestor.dirty else "")
    scores = ancestor.scores
    facts = {
        "stage": f"{ancestor.stage}, best at step {ancestor.step}",
        "run": f"{ancestor.run_id or 'not tracked'} ({ancestor.name})",
        "version": ancestor.version,
        "scores": ", ".join(f"{label_of(key)} {shown(key, scores[key])}" for key in summary_metrics(scores)),
        "data": _pairs(ancestor.data),
        "encoders": _pairs(ancestor.encoders),
        "weights": _pairs(ancestor.first_weights),
        "commit": commit,
        "lock": ancestor.lock,
        "seed": str(ancestor.seed),
        "gate": _pairs({key: ancestor.gate[key] for key in GATE if key in ancestor.gate}),
        "folder": ancestor.folder,
    }
    return "\n".join([f"{how}{ancestor.model}", *(f"  {key:<12} {value}" for key, value in facts.items() if value)])


def _pairs(facts: Mapping[str, str]) -> str:
    return "; ".join(f"{key} {value}" for key, value in facts.items())


def _promotion_record(result: "Promotion") -> Record:
    """A promotion as plain data; scores in pycocoevalcap's scale."""
    shared = ("name", "version", "promoted", "forced", "previous", "opponent", "gate", "run_id")
    return {
        **{name: getattr(result, name) for name in shared},
        "passed": result.verdict.passed,
        "failed": result.verdict.failed,
        "champion": result.version if result.promoted else result.previous,
        "gain": result.verdict.gain._asdict(),
        "conditions": [asdict(condition) for condition in result.verdict.conditions],
        "manifest": {**asdict(result.manifest), "digest": result.manifest.digest},
    }


def _promotion_text(result: "Promotion") -> str:
    """The table of conditions, and the outcome."""
    from videoblip2.registry.verdict_files import COLUMNS, table_rows

    title = f"{result.name}/{result.version} compared with {result.opponent}, {result.manifest.size} validation videos"
    how = "by force" if result.forced else "passed the gate"
    lines = [
        table(title, COLUMNS, table_rows(result.verdict)),
        f"p-value of the gain: {result.verdict.gain.p_value:.4f}",
    ]
    if result.promoted:
        was = f", was {result.name}/{result.previous}" if result.previous else ""
        lines.append(f"champion: {result.name}/{result.version} ({how}){was}")
    lines.append(f"table, plot and verdict: run {result.run_id}, and version {result.name}/{result.version}")
    return "\n".join(lines)
