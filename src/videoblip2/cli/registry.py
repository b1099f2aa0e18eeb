"""`vb2 promote`, `vb2 rollback`, `vb2 lineage`, `vb2 reproduce`: the registry's commands."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from videoblip2.cli import console
from videoblip2.errors import InputError, counted

if TYPE_CHECKING:
    from videoblip2.registry.lineage import Ancestor
    from videoblip2.registry.promote import Promotion

app = console.Commands()
Run = Annotated[str, Argument(metavar="RUN", help="Run, models:/NAME/VERSION or models:/m-….")]
#: The parts of a verdict that a lineage shows.
GATE = ("verdict", "outcome", "when", "who", "reason")
BATCH = "decode.batch_size="  # changes no caption


@app.report("promote RUN --gate toy_gate", "promote RUN --force --reason 'better audio'")
def promote(
    run: Run,
    overrides: Annotated[console.Words, console.key_values("Keys for both models, such as data.features=DIR.")] = None,
    gate: Annotated[Path | None, Option(help="Gate file; by default the shipped experiments/gate.yaml.")] = None,
    name: console.RegisteredName = "videoblip2",
    force: Annotated[bool, Option("--force", help="Promote regardless of the verdict; needs --reason.")] = False,
    reason: Annotated[str, Option(help="Why the verdict is overruled; stored with the version.")] = "",
    new_manifest: Annotated[bool, Option("--new-manifest", help="Accept changed validation data.")] = False,
) -> None:
    """Compare a run's model with the champion; make it the champion if it passes the gate, else exit with 1."""
    if force != bool(reason.strip()):
        raise BadParameter("--force and --reason go together: say why the verdict is overruled")
    if own := [word for word in overrides or () if word.startswith("decode.") and not word.startswith(BATCH)]:
        raise BadParameter(f"{own[0]}: the gate compares models as they are served; train with it, or leave it out")
    if gate:
        from videoblip2.overrides import read_yaml

        read_yaml(gate)
    console.require_model(run)
    from videoblip2.registry.promote import Request
    from videoblip2.registry.promote import promote as run_gate

    request = Request(run, name, gate, tuple(overrides or ()), reason.strip(), new_manifest)
    result = run_gate(request, console.progress)
    record = {name: value for name, value in console.plain(result).items() if name not in ("verdict", "manifest")}
    verdict = result.verdict
    more = {
        **{name: getattr(result, name) for name in ("promoted", "forced")},
        **{name: getattr(verdict, name) for name in ("passed", "failed", "gain", "conditions", "sentence")},
        "champion": result.version if result.promoted else result.previous,
        "manifest": {**console.plain(result.manifest), "digest": result.manifest.digest},
    }
    console.emit(record, _promotion_text(result), **more)
    if not result.promoted:
        keeps = f"version {result.previous} stays champion" if result.previous else "there is still no champion"
        raise InputError(f"{run} does not pass the gate: {'; '.join(verdict.failed)}; {keeps}")


def _promotion_text(result: "Promotion") -> str:
    from videoblip2.registry.verdict_files import COLUMNS, table_rows

    videos = counted(result.manifest.size, "validation video")
    title = f"{result.name}/{result.version} compared with {result.opponent}, {videos}"
    lines = [console.table(title, COLUMNS, table_rows(result.verdict))]
    lines.append(f"{result.verdict.sentence}; p-value of the gain: {result.verdict.gain.p_value:.4f}")
    if result.promoted:
        was = f", was {result.name}/{result.previous}" if result.previous else ""
        how = "by force" if result.forced else "passed the gate"
        lines.append(f"champion: {result.name}/{result.version} ({how}){was}")
    lines.append(f"table, plot and verdict: run {result.run_id}, and version {result.name}/{result.version}")
    return "\n".join(lines)


@app.report("rollback --reason 'captions became too long'")
def rollback(
    name: console.RegisteredName = "videoblip2",
    reason: Annotated[str, Option(help="Why; stored in the history of champions.")] = "",
) -> None:
    """Restore the previous champion."""
    from videoblip2.registry.promote import rollback as go_back

    move = go_back(name, reason)
    text = f"champion: {name}/{move.version} again, was {name}/{move.previous} ({move.why}; {move.who}, {move.when})"
    console.emit(move, text, name=name)


@app.report("lineage models:/videoblip2@champion")
def lineage(model: console.ModelName) -> None:
    """Show where a model came from: data, encoders, parent, commit, packages and seed, back to its first ancestor."""
    console.require_model(model)
    from videoblip2.registry.lineage import lineage as trace

    line = trace(model)
    console.emit({"model": model, "lineage": line}, lineage_text(line))


def lineage_text(line: "list[Ancestor]") -> str:
    """One block per model, newest first."""
    return "\n\n".join(_ancestor_text(ancestor, "started from " if n else "") for n, ancestor in enumerate(line))


def _ancestor_text(ancestor: "Ancestor", how: str) -> str:
    from videoblip2.captions.metrics import label_of, shown, summary_metrics

    if ancestor.missing:
        return f"{how}{ancestor.model}\n  missing      {ancestor.missing}"
    scores = ancestor.scores
    facts = {
        "stage": f"{ancestor.stage}, best at step {ancestor.step}",
        "run": f"{ancestor.run_id or 'not tracked'} ({ancestor.name})",
        "version": ancestor.version,
        "scores": ", ".join(f"{label_of(key)} {shown(key, scores[key])}" for key in summary_metrics(scores)),
        "data": _pairs(ancestor.data),
        "encoders": _pairs(ancestor.encoders),
        "weights": _pairs(ancestor.first_weights),
        "commit": ancestor.commit + (", with uncommitted changes" if ancestor.dirty else ""),
        "lock": ancestor.lock,
        "seed": str(ancestor.seed),
        "gate": _pairs({key: ancestor.gate[key] for key in GATE if key in ancestor.gate}),
        "folder": ancestor.folder,
    }
    return "\n".join([f"{how}{ancestor.model}", *(f"  {key:<12} {value}" for key, value in facts.items() if value)])


def _pairs(facts: Mapping[str, str]) -> str:
    return "; ".join(f"{key} {value}" for key, value in facts.items())


@app.report("reproduce RUN", "reproduce RUN --tolerance 0.5 --out /tmp/again")
def reproduce(
    run: console.ModelName,
    tolerance: Annotated[float, Option(min=0.0, help="Largest difference allowed, on the printed scale.")] = 0.0,
    out: Annotated[Path | None, Option(help="Folder for the new run; by default the original's.")] = None,
) -> None:
    """Train a run again from its stored configuration and compare its validation scores; exit with 1 if one differs."""
    console.require_model(run)
    from videoblip2.captions.metrics import label_of, scale_of
    from videoblip2.registry.lineage import read_recipe

    recipe = read_recipe(run, out)
    console.say("\n".join([recipe.command, *(f"  changed: {difference}" for difference in recipe.differs)]))
    result = recipe.repeat(tolerance, console.progress)
    (expected, found), *_ = result.scores.values()
    made = result.result
    record = {"command": recipe.command, "differs": recipe.differs, "expected": expected, "found": found}
    scores = {name: {"expected": old, "found": new} for name, (old, new) in result.scores.items()}
    more = {"scores": scores, "reproduced": result.reproduced, "run_id": made.run_id, "checkpoint": made.checkpoint}
    lines = [
        f"validation {label_of(name)} {scale_of(name) * new:.4f}, was {scale_of(name) * old:.4f}"
        for name, (old, new) in result.scores.items()
    ]
    console.emit(record | more, "\n".join([*lines, f"run: {made.run_id or 'not tracked'}"]))
    if not result.reproduced:
        remedy = "GPU sums have no fixed order: give --tolerance"
        if recipe.differs:
            remedy = f"{len(recipe.differs)} things have changed, first {recipe.differs[0]}: restore them"
        raise InputError(f"{run}: not reproduced within {tolerance:g}: {'; '.join(lines)}; {remedy}")
