"""`vb2 experiments`: the experiment files that come with the package."""

import difflib
import shutil
from pathlib import Path
from typing import Annotated

import typer

from videoblip2.cli.console import Json, emit, table

app = typer.Typer(help="The experiment files that come with the package.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name from `vb2 experiments list`, such as toy_ce.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """List the experiments. Commands that take CONFIG also take these names."""
    heads = {path.stem: path.read_text(encoding="utf-8").partition("\n")[0] for path in _files()}
    purposes = {name: head.lstrip("# ").rstrip(".") for name, head in heads.items()}
    emit({"experiments": purposes}, json, table("Experiments", ["name", "purpose"], purposes.items()))


@app.command()
def show(name: Name, json: Json = False) -> None:
    """Print an experiment file.

    \b
    Example:
      vb2 experiments show toy_ce
    """
    path = _find(name)
    text = path.read_text(encoding="utf-8")
    emit({"name": path.stem, "text": text}, json, text.rstrip())


@app.command()
def copy(
    name: Name,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="File or folder to copy it to.")] = Path(),
    json: Json = False,
) -> None:
    """Copy an experiment file, to edit it.

    \b
    Example:
      vb2 experiments copy msrvtt_ce my_ce.yaml
    """
    from videoblip2.errors import InputError

    path = _find(name)
    target = dest / path.name if dest.is_dir() else dest
    if target.exists():
        raise InputError(f"{target}: exists already; give another DEST, or delete it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    emit({"name": path.stem, "file": str(target)}, json, str(target))


def _files() -> list[Path]:
    from videoblip2.files import shipped

    return sorted(shipped("experiments").glob("*.yaml"))


def _find(name: str) -> Path:
    from videoblip2.errors import InputError

    files = {path.stem: path for path in _files()}
    stem = Path(name).name.removesuffix(".yaml")
    if stem not in files:
        near = difflib.get_close_matches(stem, files, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`vb2 experiments list` shows their names"
        raise InputError(f"experiment {name!r}: does not come with the package; {hint}")
    return files[stem]
