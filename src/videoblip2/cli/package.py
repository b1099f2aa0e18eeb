"""`vb2 package`: the champion, its encoders, the service and its exact requirements as one Bento."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from videoblip2.cli.options import Json
from videoblip2.cli.output import emit, progress

CHAMPION = "models:/videoblip2@champion"


def package(
    model: Annotated[str, typer.Option(metavar="MODEL", help="Model to build in.")] = CHAMPION,
    export: Annotated[
        Path | None, typer.Option(help="Also write the Bento to this file, to move it to another machine.")
    ] = None,
    json: Json = False,
) -> None:
    """Build a Bento that serves MODEL with no MLflow store and no network.

    \b
    Examples:
      vb2 package
      vb2 package --model runs/demo/runs/scst/best --export videoblip2.bento
    """
    from videoblip2.cli.bento_files import stage

    target = _checked(export) if export else None
    with tempfile.TemporaryDirectory(prefix="vb2-package-") as folder:
        steps = progress(["collect", "build"], description="package")
        next(steps)
        staged = stage(model, Path(folder))
        next(steps)
        built = build(Path(folder), staged.version, target)
        list(steps)
    record = {
        **built,
        "model_version": staged.version,
        "media": staged.media,
        "export": str(export) if export else None,
    }
    emit(record, json, _text(built, staged.version, staged.media, export))


def _checked(export: Path) -> Path:
    """The absolute path to export to. Raises InputError, before the minutes of building, if no file can be there."""
    from videoblip2.errors import InputError

    if export.is_dir() or not export.absolute().parent.is_dir():
        reason = "is a folder" if export.is_dir() else f"there is no folder {export.absolute().parent}"
        raise InputError(f"--export {export}: {reason}; name a file such as videoblip2.bento")
    return export.absolute()


def build(folder: Path, version: str, export: Path | None = None) -> dict[str, str]:
    """Build a Bento from a staged folder, offline → its `tag` and `path`. Raises InputError with what BentoML says."""
    tag = _bentoml(folder, "build", "--label", f"model_version={version}", "--output", "tag").removeprefix("__tag__:")
    if export:
        _bentoml(folder, "export", tag, str(export))
    return {"tag": tag, "path": _bentoml(folder, "get", tag, "--output", "path")}


def _bentoml(folder: Path, *words: str) -> str:
    """The last line that a BentoML command prints, run in `folder` so that it imports what the folder holds."""
    from videoblip2.errors import InputError

    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", "COLUMNS": "10000"}  # it wraps long lines
    command = [sys.executable, "-m", "bentoml", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise InputError(f"bentoml {words[0]} failed: {' '.join(said)}")
    return done.stdout.strip().splitlines()[-1]


def _text(built: dict[str, str], version: str, media: bool, export: Path | None) -> str:
    from videoblip2.files import shipped

    tag = built["tag"]
    lines = [f"Bento: {tag}   model: {version}", built["path"]]
    if not media:
        lines.append("Its encoders are unknown (its features have no manifest): it takes features, but no media files.")
    if export:
        lines.append(f"exported: {export}   (on the other machine: bentoml import {export.name})")
    lines += [
        "Next:",
        f"  bentoml serve {tag}            # from any folder, with no store and no network",
        f"  bentoml containerize {tag} -t videoblip2:latest",
        f"  kubectl apply -k {shipped('serving') / 'k8s'}",
    ]
    return "\n".join(lines)
