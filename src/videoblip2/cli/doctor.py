"""`vb2 doctor`: what this machine has and what it lacks, with remedies."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from videoblip2.cli.console import SOME_FAILED, Json, emit, progress

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from videoblip2.tracking.mlflow.store import Finding

PACKAGE = "videoblip2"
LITTLE_SPACE, NO_SPACE = 10.0, 1.0  # GB: one full-size checkpoint with its training state takes about 6
MANAGERS = {
    "uv": "`pip install uv`; then `mlflow run . -e ce --env-manager uv`",
    "conda": "install Miniforge, or set MLFLOW_CONDA_HOME; then `mlflow run . -e ce` makes the environment",
    "pyenv": "install pyenv; then `mlflow run . -e ce --env-manager virtualenv`",
}


def doctor(json: Json = False) -> None:
    """Check Java, video decoding, GPU, tracking store, environment managers, disk, versions; exit with 3 on a fault."""
    findings = [finding for check in progress(CHECKS, len(CHECKS), "check") for finding in check()]
    counts = {status: sum(f.status == status for f in findings) for status in ("ok", "note", "warn", "fail")}
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:4}  {finding.name}: {finding.found}")
        lines += [f"      → {finding.remedy}"] if finding.remedy else []
    faults = f"faults: {counts['fail']}" if counts["fail"] else "no faults"
    text = "\n".join([*lines, f"{faults}, warnings: {counts['warn']}"])
    emit({"findings": [asdict(f) for f in findings], "counts": counts}, json, text)
    if counts["fail"]:
        raise typer.Exit(SOME_FAILED)


def _finding(name: str, status: str, found: str, remedy: str = "") -> "Finding":
    from videoblip2.tracking.mlflow.store import Finding

    return Finding(name, status, found, "" if status == "ok" else remedy)


def java() -> list["Finding"]:
    from videoblip2.captions.metrics import spice_models_present

    remedy = "`apt-get install default-jre-headless`; without it METEOR and SPICE are left out"
    if shutil.which("java") is None:
        return [_finding("Java", "warn", "not found", remedy)]
    done = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60)
    if done.returncode:
        return [_finding("Java", "warn", f"does not start ({(done.stderr or done.stdout).strip()[:100]})", remedy)]
    spice = spice_models_present()
    fetch = "`python -c 'from pycocoevalcap.spice.spice import Spice; Spice()'` fetches them; only SPICE needs them"
    models = _finding(
        "SPICE's model files", "ok" if spice else "note", "installed" if spice else "not installed", fetch
    )
    return [_finding("Java", "ok", done.stderr.splitlines()[0]), models]


def video() -> list["Finding"]:
    from videoblip2.features.media import missing_decoders, pyav_version

    missing = missing_decoders()
    remedy = "`pip install --only-binary av av`: its wheels bring FFmpeg with these decoders"
    found = pyav_version() + (f", without {', '.join(missing)}" if missing else "")
    ffmpeg = shutil.which("ffmpeg")
    return [
        _finding("video decoding (PyAV)", "warn" if missing else "ok", found, remedy),
        _finding("ffmpeg", "ok" if ffmpeg else "note", ffmpeg or "not on PATH", "optional: PyAV has its own"),
    ]


def gpu() -> list["Finding"]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return [_finding("GPU", "ok", f"{', '.join(names)}, torch {torch.__version__}")]
    if shutil.which("nvidia-smi"):
        remedy = "install torch's CUDA build: see https://pytorch.org/get-started/locally"
        return [_finding("GPU", "warn", f"present, but torch {torch.__version__} cannot use it", remedy)]
    return [
        _finding("GPU", "note", f"none, torch {torch.__version__}", "the toy world needs none; MSR-VTT needs 24 GB")
    ]


def tracking() -> list["Finding"]:
    from videoblip2.tracking.mlflow.run_records import store_findings

    return store_findings()


def managers() -> list["Finding"]:
    """None is required: `mlflow run --env-manager local` works in this environment."""
    found = {name: shutil.which(name) for name in MANAGERS}
    conda = Path(os.environ.get("MLFLOW_CONDA_HOME", "nowhere")) / "bin" / "conda"
    if conda.is_file():
        found["conda"] = found["conda"] or str(conda)
    return [
        _finding(f"environment manager {name}", "ok" if path else "note", path or "not found", MANAGERS[name])
        for name, path in found.items()
    ]


def disk() -> list["Finding"]:
    from videoblip2.tracking.mlflow import store

    places = {"disk (here)": Path.cwd()}
    database = store.sqlite_file(store.tracking_uri())
    if database and database.parent.is_dir() and database.parent != Path.cwd():
        places["disk (store)"] = database.parent
    return [_free_space(name, folder) for name, folder in places.items()]


def _free_space(name: str, folder: Path) -> "Finding":
    free = shutil.disk_usage(folder).free / 1e9
    status = "fail" if free < NO_SPACE else "warn" if free < LITTLE_SPACE else "ok"
    return _finding(
        name, status, f"{free:.1f} GB free in {folder}", "free some space; a full-size run takes about 6 GB"
    )


def versions() -> list["Finding"]:
    """Compare the installed packages with the ranges of pyproject.toml."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    except metadata.PackageNotFoundError:
        return [_finding("versions", "fail", f"{PACKAGE} is not installed", "`make setup`, or `pip install -e .`")]
    wanted = [
        requirement for requirement in asked if not requirement.marker or requirement.marker.evaluate({"extra": ""})
    ]
    wrong = [text for text in map(_shortfall, wanted) if text]
    remedy = "`pip install -e . -c constraints.txt` installs versions that were tested together"
    found = "; ".join(wrong) or f"{len(wanted)} packages within their ranges"
    return [_finding("versions", "fail" if wrong else "ok", found, remedy)]


def _shortfall(requirement: "Requirement") -> str:
    name, specifier = requirement.name, requirement.specifier
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    return "" if specifier.contains(version, prereleases=True) else f"{name} {version}, needs {specifier}"


CHECKS: tuple[Callable[[], list["Finding"]], ...] = (versions, java, video, gpu, tracking, managers, disk)
