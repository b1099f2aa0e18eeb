"""The command line, `vb2`: parse, call one function, print. Nothing heavy is imported before a command runs.

Exit codes: 0 done; 1 an error, as one line; 2 wrong usage; 3 some items failed.
"""

import sys
from typing import Annotated

import typer

from videoblip2.cli import data, demo, deploy, doctor, experiments, features, predict, registry, runs, train, weights
from videoblip2.cli.console import ANY_OPTION

app = typer.Typer(
    help="VideoBLIP2: video and audio captioning, from features to a served model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command takes --debug, which shows where an error came from.",
)
OVERRIDABLE = (train.ce, train.scst, train.tune, predict.evaluate, registry.promote)
for command in (
    *(train.ce, train.scst, train.lm),
    *(predict.evaluate, predict.caption, predict.ask, train.tune),
    *(registry.promote, registry.rollback, registry.lineage, registry.reproduce),
    *(deploy.serve, deploy.package, demo.demo, doctor.doctor),
):
    app.command(context_settings=ANY_OPTION if command in OVERRIDABLE else {})(command)
for group in (data, features, weights, experiments, runs):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2])


def _print_version(wanted: bool) -> None:
    if wanted:
        from videoblip2.config import VERSION

        print(f"vb2 {VERSION}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """VideoBLIP2: video and audio captioning, from features to a served model."""


def main() -> None:
    """Run `vb2`; a failure is one line on standard error and exit code 1."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        app(words, prog_name="vb2")
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(1)


def explain(error: Exception) -> str:
    """One line: a user's mistake as it is; anything else with its type and how to see more."""
    from videoblip2.errors import InputError

    text = " ".join(str(error).split())
    if isinstance(error, InputError | FloatingPointError):
        return text
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; free some space or choose a writable place (--debug shows where it failed)"
    return f"{type(error).__name__}: {text} (run again with --debug to see where)"
