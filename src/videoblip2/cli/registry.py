"""promote, rollback, lineage, reproduce: the gate, the way back, and where a model came from."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videoblip2.cli.output import emit, progress, table
from videoblip2.cli.stages import ANY_OPTION, ModelName, Overrides, overrides_from

if TYPE_CHECKING:
    from videoblip2.registry.lineage import Ancestor
    from videoblip2.registry.promote import Promotion
    from videoblip2.registry.reproduce import Recipe

Json = Annotated[bool, typer.Option("--json", help="One JSON object on the last line of standard output.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Run id, models:/NAME/VERSION or models:/m-….")]
Name = Annotated[str, typer.Option(help="Registered model.")]

#: What of a verdict a line of descent shows.
GATE = ("verdict", "outcome", "when", "who", "reason")


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(context_settings=ANY_OPTION)(promote)
    app.command()(rollback)
    app.command()(lineage)
    app.command()(reproduce)


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


def lineage(model: ModelName, json: Json = False) -> None:
    """Where a model came from: data, encoders, parent, commit, lock, seed, of it and of what it started from."""
    from videoblip2.registry.lineage import lineage as trace

    line = trace(model)
    emit({"model": model, "lineage": [asdict(ancestor) for ancestor in line]}, json, lineage_text(line))


def reproduce(
    run: ModelName,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest difference of CIDEr, as printed.")] = 0.0,
    out: Annotated[Path | None, typer.Option(help="Folder for the new run; default the first one's.")] = None,
    json: Json = False,
) -> None:
    """Train a run again from what it kept, and compare validation CIDEr; exit 1 where it differs."""
    from videoblip2.config import InputError
    from videoblip2.registry.reproduce import reproduce as train_again

    result = train_again(run, tolerance / 100, out, progress, say_recipe)
    record = {
        "command": result.recipe.command,
        "differs": result.recipe.differs,
        "expected": result.expected,
        "found": result.found,
        "reproduced": result.reproduced,
        "run_id": result.result.run_id,
        "checkpoint": str(result.result.checkpoint),
    }
    both = f"validation CIDEr {100 * result.found:.4f}, was {100 * result.expected:.4f}"
    emit(record, json, f"{both}\nrun: {result.result.run_id or 'not tracked'}")
    if not result.reproduced:
        raise InputError(f"{run}: not reproduced within {tolerance:g}: {both}; {why_it_differs(result.recipe)}")


def say_recipe(recipe: "Recipe") -> None:
    """The command, and what is not as it was."""
    print(recipe.command, flush=True)
    for difference in recipe.differs:
        print(f"  not as it was: {difference}", flush=True)


def why_it_differs(recipe: "Recipe") -> str:
    """The remedy in a few words."""
    if recipe.differs:
        return f"{len(recipe.differs)} things are not as they were, first {recipe.differs[0]}: put them back"
    return "a GPU adds in no fixed order: give --tolerance"


def lineage_text(line: "list[Ancestor]") -> str:
    """A block for each model, from the youngest."""
    return "\n\n".join(_ancestor_text(ancestor, "started from " if n else "") for n, ancestor in enumerate(line))


def _ancestor_text(ancestor: "Ancestor", how: str) -> str:
    if ancestor.missing:
        return f"{how}{ancestor.model}\n  missing      {ancestor.missing}"
    commit = ancestor.commit + (", with changes that were not committed" if ancestor.dirty else "")
    from videoblip2.captions.metrics import label_of, shown, summary_metrics

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
