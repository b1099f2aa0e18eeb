"""`vb2 serve` and `vb2 package`: a model over HTTP, from here or as one Bento for another machine."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Annotated

from typer import Option

from videoblip2.cli.console import Commands, emit, examples, progress, require_model, say
from videoblip2.errors import InputError, refused
from videoblip2.files import shipped

app = Commands()
CHAMPION = "models:/videoblip2@champion"
#: What serving imports directly; the rest comes from package metadata.
NEEDED = (
    *("av", "bentoml", "fastapi", "filelock", "huggingface-hub", "numpy", "peft", "pillow", "prometheus-client"),
    *("pydantic", "python-multipart", "pyyaml", "safetensors", "tokenizers", "torch", "transformers"),
)
ENVIRONMENT = {"BENTOML_DO_NOT_TRACK": "True", "HF_HUB_OFFLINE": "1"}
LEFT_OUT = ("__pycache__", "*.pyc", "state", ".*")
BENTOFILE = {
    "service": "serving.service:VideoBlip2Service",
    # Not the package's name: BentoML first tries a tag as a module, and would import an installed videoblip2.
    "name": "videoblip2-service",
    "include": ["*"],
    "envs": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
    "python": {"requirements_txt": "requirements.txt", "lock_packages": False},
    "docker": {"distro": "debian", "python_version": "3.11"},
}


@app.command(epilog=examples("serve", "serve --model runs/demo/runs/scst/best --port 8080"))
def serve(
    model: Annotated[str | None, Option(help=f"MODEL to serve; an alias is followed. Default: {CHAMPION}.")] = None,
    pin: Annotated[int | None, Option(min=1, help="Serve this version instead of following the champion.")] = None,
    shadow: Annotated[str | None, Option(help="MODEL in shadow: logged and compared, never returned.")] = None,
    host: Annotated[str, Option(help="0.0.0.0 listens on every network of this machine.")] = "127.0.0.1",
    port: Annotated[int, Option(min=1, max=65535)] = 3000,
) -> None:
    """Serve the champion over HTTP; promotions and rollbacks take effect within seconds."""
    from videoblip2.files import server_command, server_environment

    for name in filter(None, (model, shadow)):
        require_model(name)
    with refused(f"{host}:{port}: cannot listen there", "give another --port", OSError):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(found[0], socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, to restart at once
            listener.bind(found[4])
    home = os.environ.get("BENTOML_HOME") or str(Path.home() / "bentoml")
    own = os.path.join(home, "vb2-serve", str(port))  # BentoML deletes the metrics in its home when a server starts
    settings = {"VB2_MODEL": model, "VB2_PIN": pin, "VB2_SHADOW": shadow, "BENTOML_HOME": own}
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    say(f"serving at http://{f'[{shown}]' if ':' in shown else shown}:{port} (page), /docs (API); press Ctrl-C to stop")
    os.execve(sys.executable, server_command(host, port), server_environment(settings))


@app.report("package", "package --model runs/demo/runs/scst/best --export videoblip2.bento")
def package(
    model: Annotated[str, Option(metavar="MODEL", help="Model to include.")] = CHAMPION,
    export: Annotated[Path | None, Option(help="Also write the Bento to this file, for another machine.")] = None,
) -> None:
    """Build a Bento that serves MODEL with no MLflow store and no network."""
    if export and (export.is_dir() or not export.absolute().parent.is_dir()):
        reason = "is a folder" if export.is_dir() else f"there is no folder {export.absolute().parent}"
        raise InputError(f"--export {export}: {reason}; name a file such as videoblip2.bento")
    require_model(model)
    with tempfile.TemporaryDirectory(prefix="vb2-package-") as folder:
        steps = progress(["collect", "build"], description="package")
        next(steps)
        version, media = stage(model, Path(folder))
        next(steps)
        built = build(Path(folder), version, export and export.absolute())
        list(steps)
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
    record = {**built, "model_version": version, "media": media, "export": str(export) if export else None}
    emit(record, "\n".join(lines))


def build(folder: Path, version: str, export: Path | None = None) -> dict[str, str]:
    """Build a Bento from a staged folder, offline → its `tag` and `path`. Raises InputError with BentoML's message."""
    tag = _bentoml(folder, "build", "--label", f"model_version={version}", "--output", "tag").removeprefix("__tag__:")
    if export:
        _bentoml(folder, "export", tag, str(export))
    return {"tag": tag, "path": _bentoml(folder, "get", tag, "--output", "path")}


def _bentoml(folder: Path, *words: str) -> str:
    """Run a BentoML command in `folder`, whose code it imports; return the last line that it prints."""
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", "COLUMNS": "10000"}  # BentoML wraps long lines
    command = [sys.executable, "-m", "bentoml", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise InputError(f"bentoml {words[0]} failed: {' '.join(reason)}")
    return done.stdout.strip().splitlines()[-1]


def stage(model: str, folder: Path) -> tuple[str, bool]:
    """Lay out a Bento of MODEL in `folder` → the model's version, and whether its encoders are in model/encoders."""
    import yaml

    import videoblip2
    from videoblip2.tracking import find_model

    found, ignore = find_model(model), shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(shipped("serving"), folder / "serving", ignore=ignore)
    shutil.copytree(found.folder, folder / "model", ignore=ignore)
    ignore = shutil.ignore_patterns(*LEFT_OUT, "serving", "experiments")  # an installed package contains both
    shutil.copytree(Path(videoblip2.__file__).parent, folder / "videoblip2", ignore=ignore)
    (folder / "model" / "VERSION").write_text(found.version + "\n", encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(pinned(NEEDED)) + "\n", encoding="utf-8")
    (folder / "bentofile.yaml").write_text(yaml.safe_dump(BENTOFILE, sort_keys=False), encoding="utf-8")
    return found.version, _copy_encoders(folder / "model")


def _copy_encoders(checkpoint: Path) -> bool:
    """Copy the CLIP and CLAP that made the model's features to `checkpoint`/encoders; False if none are recorded."""
    from videoblip2.features.encoders import load_clap, load_clip
    from videoblip2.provenance import ENCODERS, Provenance

    features = Provenance.read(checkpoint).features
    if features is None or not all(kind in features.encoders and features.encoders[kind].name for kind in ENCODERS):
        return False
    chosen = features.settings.model_dump(include={"output", "tokens"}, exclude_unset=True)
    for kind, load, options in (("clip", load_clip, chosen), ("clap", load_clap, {})):
        target, encoder = checkpoint / "encoders" / kind, features.encoders[kind]
        shutil.copytree(_encoder_folder(encoder.name, encoder.revision), target)
        found = load(target, **options).identity.fingerprint
        if encoder.fingerprint not in (None, found):
            wanted = f"but the model's features were made with {encoder.fingerprint}; restore that encoder"
            raise InputError(f"{encoder.name}: fingerprint {found}, {wanted}")
    return True


def _encoder_folder(name: str, revision: str | None) -> Path:
    """The folder itself, or the local copy of a hub repository, downloaded if necessary."""
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return Path(name)
    fault = f"{name}: this model's encoder is neither a folder nor available from the hub"
    with refused(fault, "restore the folder, or package on a machine that can download it", Exception):
        wanted = ["*.json", "*.safetensors", "*.txt", "*.bin"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))


def pinned(needed: Iterable[str]) -> list[str]:
    """`name==version`, as installed here, of these distributions and everything they require.

    A local label such as `+cpu` is left out, since no index has it: on a GPU machine pip installs the CUDA build.
    """
    from packaging.requirements import Requirement

    versions, waiting, seen = dict[str, str](), list(needed), set(needed)
    while waiting:
        text = waiting.pop()
        wanted = Requirement(text)
        try:
            distribution = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError as error:
            if text in needed:
                raise InputError(f"{text}: not installed; run `make setup`") from error
            continue
        versions[distribution.name.lower().replace("_", "-")] = distribution.version.partition("+")[0]
        extras = wanted.extras or {""}
        for line in distribution.requires or ():
            inner = Requirement(line)
            applies = inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras)
            if applies and line not in seen:
                seen.add(line)
                waiting.append(line)
    return [f"{name}=={version}" for name, version in sorted(versions.items())]
