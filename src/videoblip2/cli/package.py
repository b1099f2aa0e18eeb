"""`vb2 package`: the champion, its encoders, the service and its exact requirements as one Bento."""

import json as json_module
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from videoblip2.cli.output import emit, progress

CHAMPION = "models:/videoblip2@champion"


def package(
    model: Annotated[str, typer.Option(metavar="MODEL", help="What is baked in.")] = CHAMPION,
    export: Annotated[Path | None, typer.Option(help="Also write the Bento to this file, to carry it away.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of standard output.")] = False,
) -> None:
    """Build a Bento that serves MODEL with no MLflow store and no network."""
    from videoblip2.cli.bento_files import stage

    target = _file_to_be(export) if export else None
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


def _file_to_be(export: Path) -> Path:
    """Where to export to, once it is sure that a file can lie there: building takes minutes."""
    from videoblip2.config import InputError

    if export.is_dir() or not export.absolute().parent.is_dir():
        reason = "is a folder" if export.is_dir() else f"there is no folder {export.absolute().parent}"
        raise InputError(f"--export {export}: {reason}; name a file such as videoblip2.bento")
    return export.absolute()


def build(folder: Path, version: str, export: Path | None = None) -> dict[str, str]:
    """Build a Bento from a staged folder, offline → its `tag` and `path`. Raises InputError with what BentoML says."""
    from videoblip2.config import InputError

    words = [version] + ([str(export)] if export else [])
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True"}
    done = subprocess.run(
        [sys.executable, "-m", "serving.bento", *words], capture_output=True, text=True, env=environment, cwd=folder
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:]
        raise InputError(f"bentoml build failed: {' '.join(said)}")
    result: dict[str, str] = json_module.loads(done.stdout.strip().splitlines()[-1])
    return result


def _text(built: dict[str, str], version: str, media: bool, export: Path | None) -> str:
    tag = built["tag"]
    lines = [f"Bento: {tag}   model: {version}", built["path"]]
    if not media:
        lines.append("Its encoders are unknown (no manifest came with its features): it serves features, no media.")
    if export:
        lines.append(f"exported: {export}   (there: bentoml import {export.name})")
    lines += [
        "Next:",
        f"  bentoml serve {tag}            # from any folder, without a store or a network",
        f"  bentoml containerize {tag} -t videoblip2:latest",
        "  kubectl apply -k serving/k8s",
    ]
    return "\n".join(lines)
