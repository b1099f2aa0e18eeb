"""promote, rollback, lineage, reproduce: the gate, the way back, and where a model came from."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videoblip2.cli.output import emit, progress, table
from videoblip2.cli.stages import ANY_OPTION, Overrides, overrides_from

if TYPE_CHECKING:
    from videoblip2.registry.promote import Promotion

Json = Annotated[bool, typer.Option("--json", help="One JSON object on the last line of standard output.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Run id, models:/NAME/VERSION or models:/m-….")]
Name = Annotated[str, typer.Option(help="Registered model.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(context_settings=ANY_OPTION)(promote)
    app.command()(rollback)


def promote(
    run: Run,
    overrides: Overrides = None,
    gate: Annotated[Path | None, typer.Option(help="Gate file; default experiments/gate.yaml.")] = None,
    name: Name = "videoblip2",
    force: Annotated[bool, typer.Option("--force", help="Overrule the verdict; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Why the verdict is overruled; kept with the version.")] = "",
    new_manifest: Annotated[
        bool, typer.Option("--new-manifest", help="Judge both on validation data changed since the last promotion.")
    ] = False,
    json: Json = False,
) -> None:
    """Hold a run's model against the champion; make it champion if the gate passes, else exit 1."""
    from videoblip2.config import InputError
    from videoblip2.registry.promote import Request
    from videoblip2.registry.promote import promote as hold_gate

    if force != bool(reason.strip()):
        raise typer.BadParameter("--force and --reason go together: say why the verdict is overruled")
    overridden = tuple(overrides_from(overrides))
    request = Request(run, name, gate, overridden, reason.strip(), new_manifest)
    result = hold_gate(request, progress)
    emit(promotion_record(result), json, promotion_text(result))
    if not result.promoted:
        keeps = f"champion stays version {result.previous}" if result.previous else "there is still no champion"
        raise InputError(f"{run} does not pass the gate: {'; '.join(result.verdict.failed)}; {keeps}")


def rollback(
    name: Name = "videoblip2",
    reason: Annotated[str, typer.Option(help="Why; kept in the trail.")] = "",
    json: Json = False,
) -> None:
    """Put the champion before the present one back."""
    from videoblip2.registry.trail import rollback as go_back

    move = go_back(name, reason)
    text = f"champion: {name}/{move.version} again, was {name}/{move.previous} ({move.why}; {move.who}, {move.when})"
    emit({"name": name, **asdict(move)}, json, text)


def promotion_record(result: "Promotion") -> dict[str, Any]:
    """A promotion as plain data; scores in pycocoevalcap's scale."""
    return {
        "name": result.name,
        "version": result.version,
        "promoted": result.promoted,
        "forced": result.forced,
        "passed": result.verdict.passed,
        "failed": result.verdict.failed,
        "champion": result.version if result.promoted else result.previous,
        "previous": result.previous,
        "opponent": result.opponent,
        "gain": result.verdict.gain._asdict(),
        "conditions": [asdict(condition) for condition in result.verdict.conditions],
        "manifest": {**asdict(result.manifest), "digest": result.manifest.digest},
        "gate": result.gate,
        "run_id": result.run_id,
    }


def promotion_text(result: "Promotion") -> str:
    """The table of conditions, and what became of it."""
    from videoblip2.registry.verdict_files import COLUMNS, table_rows

    title = f"{result.name}/{result.version} beside {result.opponent}, {result.manifest.size} validation videos"
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
