"""The command line, `vb2`: parse, call one function, print. Heavy imports wait until a command runs.

Exit codes: 0 done; 1 an error, in one line; 2 wrong usage; 3 some items failed.
"""

import atexit
import errno
import gc
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, get_args

from typer import Exit, Option, Typer

from videoblip2 import __version__
from videoblip2.cli import caption, console, data, demo, deploy, features, registry, runs, setup, train
from videoblip2.errors import DENIED, LOGIN, InputError, first_line, masked
from videoblip2.plugins import load_plugins

app = Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 160},
    epilog="Every command takes --debug, which shows where an error came from.",
)
GROUPS = (
    *((None, group) for group in (train.app, caption.app, runs.scoring, registry.app, deploy.app, demo.app, setup.app)),
    *(("data", data.app), ("features", features.app), ("weights", setup.weights)),
    *(("experiments", setup.experiments), ("runs", runs.app)),
)
#: What to do about an error of the system.
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space or choose another place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a writable place"),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST), "choose another place"),
}
#: Parameters that take a path or another name.
MAY_BE_PATHS = ("model", "run", "shadow", "clip", "clap", "video", "videos")
for name, group in GROUPS:
    app.add_typer(group, name=name)
    for info in group.registered_commands:
        assert info.callback
        info.short_help = (info.callback.__doc__ or "").partition("\n")[0]  # shown whole in lists of commands
        if "overrides" in info.callback.__annotations__:  # `mlflow run -P optim.lr=1` gives `--optim.lr 1`
            info.context_settings = {"ignore_unknown_options": True}
        for parameter, hint in info.callback.__annotations__.items():
            if parameter in MAY_BE_PATHS or any(Path in (kind, *get_args(kind)) for kind in get_args(hint)[:1]):
                get_args(hint)[1].callback = console.expanded


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, Option("--version", help="Print the version and exit.")] = False) -> None:
    """VideoBLIP2: video and audio captioning, from features to a served model."""
    if version:
        print(f"vb2 {__version__}")
        raise Exit


def main() -> None:
    """Run `vb2`; a failure is one line on standard error and exit code 1."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    atexit.register(gc.freeze)  # or the last collection, over torch's objects, takes a second or two
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a file name may hold characters it cannot encode
            stream.reconfigure(errors="backslashreplace")
    try:
        load_plugins()
        app(words, prog_name="vb2")
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        if "torch" in sys.modules or os.environ.get("RANK", "0") == "0":  # without torch, all ranks fail alike
            print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(1)


def explain(error: Exception) -> str:
    """One line: a user's mistake verbatim; any other error with its type and a hint at --debug."""
    text, code = masked(" ".join(str(error).split())), getattr(error, "error_code", "")  # MLflow's
    if code in DENIED:
        return f"{text}; {LOGIN}"
    if code == "TEMPORARILY_UNAVAILABLE":
        from videoblip2.tracking.mlflow.store import tracking_uri

        fault = f"{tracking_uri()}: the store is locked by another process, or unreachable ({first_line(error)})"
        return masked(f"{fault}; nothing more was written; run the command again once it is available")
    if isinstance(error, InputError | FloatingPointError):
        return text
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        remedy = f"; {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
        return f"{place}{error.strerror}{remedy} (--debug shows where it failed)"
    return f"{type(error).__name__}: {text} (run again with --debug to see where)"
