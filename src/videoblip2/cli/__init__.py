"""The command line, `vb2`: parse, call one function, print. Nothing heavy is imported before a command runs."""

import sys

import typer

from videoblip2.cli import ask, data, doctor, features, package, registry, runs, serve, stages, tune, weights

app = typer.Typer(
    help="VideoBLIP2: video and audio captioning, from features to a served model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Every command takes --debug, which shows where an error came from.",
)
app.add_typer(data.app, name="data", help="Annotations and the toy world.")
app.add_typer(features.app, name="features", help="Videos to features.")
app.add_typer(weights.app, name="weights", help="Pre-trained weights: fetch and look into them.")
app.add_typer(runs.app, name="runs", help="Tracked runs.")
stages.register(app)
app.command()(package.package)
app.command()(doctor.doctor)
registry.register(app)
ask.register(app)
tune.register(app)
serve.register(app)


def main() -> None:
    """Run `vb2`; a failure is one line on standard error and exit code 1."""
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        app()
    except Exception as error:
        if debug:
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(1)


def explain(error: Exception) -> str:
    """One line: a user's mistake as it is; anything else with its type and a way to see more."""
    from videoblip2.config import InputError

    text = " ".join(str(error).split())
    if isinstance(error, InputError | FloatingPointError):
        return text
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; make room, or give a place that can be written (--debug shows where)"
    return f"{type(error).__name__}: {text} (run again with --debug to see where)"
