"""`vb2 doctor`: what this machine has and what it lacks, with remedies."""

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

from typer import Exit, Typer

from videoblip2.cli.console import SOME_FAILED, Json, emit, examples, progress
from videoblip2.errors import counted

app = Typer()
Status = tuple[str, str]  # ok, note, warn or fail; and what was found
LITTLE_SPACE, NO_SPACE = 10.0, 1.0  # GB: one full-size checkpoint with its training state takes about 6


@app.command(epilog=examples("doctor"))
def doctor(json: Json = False) -> None:
    """Check Java, video decoding, GPU, tracking store, environment managers, disk, versions; exit with 3 on a fault."""
    from videoblip2.tracking.mlflow.run_records import store_findings
    from videoblip2.tracking.mlflow.store import Finding

    findings = []
    for name, (check, remedy) in progress(CHECKS.items(), len(CHECKS), "check"):
        status, found = check()
        findings.append(Finding(name, status, found, "" if status == "ok" else remedy))
    findings += store_findings()
    counts = {status: sum(f.status == status for f in findings) for status in ("ok", "note", "warn", "fail")}
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:4}  {finding.name}: {finding.found}")
        lines += [f"      → {finding.remedy}"] if finding.remedy else []
    faults = counted(counts["fail"], "fault") if counts["fail"] else "no faults"
    lines.append(f"{faults}, {counted(counts['warn'], 'warning')}")
    emit({"findings": findings, "counts": counts}, json, "\n".join(lines))
    if counts["fail"]:
        raise Exit(SOME_FAILED)


def versions() -> Status:
    """Compare the installed packages with the ranges of pyproject.toml."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        asked = [Requirement(text) for text in metadata.requires("videoblip2") or []]
    except metadata.PackageNotFoundError:
        return "fail", "videoblip2 is not installed"
    wanted = [one for one in asked if not one.marker or one.marker.evaluate({"extra": ""})]
    there = {canonicalize_name(each.name): each.version for each in metadata.distributions()}
    found = [(one, there.get(canonicalize_name(one.name), "not installed")) for one in wanted]
    good = [one for one, version in found if version[0].isdigit() and one.specifier.contains(version, True)]
    wrong = [f"{one.name} {version}, needs {one.specifier}" for one, version in found if one not in good]
    return ("fail", "; ".join(wrong)) if wrong else ("ok", f"{len(wanted)} packages within their ranges")


def java() -> Status:
    if shutil.which("java") is None:
        return "warn", "not found"
    done = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60)
    if done.returncode:
        return "warn", f"does not start ({(done.stderr or done.stdout).strip()[:100]})"
    return "ok", done.stderr.splitlines()[0]


def spice() -> Status:
    from videoblip2.captions.metrics import spice_models_present

    return ("ok", "installed") if spice_models_present() else ("note", "not installed")


def decoders() -> Status:
    from videoblip2.features.media import missing_decoders, pyav_version

    missing = missing_decoders()
    return ("warn", f"{pyav_version()}, without {', '.join(missing)}") if missing else ("ok", pyav_version())


def program(name: str) -> Status:
    """Whether it is on PATH; for conda, also in MLFLOW_CONDA_HOME."""
    conda = Path(os.environ.get("MLFLOW_CONDA_HOME", "nowhere")) / "bin" / "conda"
    path = shutil.which(name) or (str(conda) if name == "conda" and conda.is_file() else None)
    return ("ok", path) if path else ("note", "not found")


def gpu() -> Status:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return "ok", f"{', '.join(names)}, torch {torch.__version__}"
    if shutil.which("nvidia-smi"):
        return "warn", f"present, but torch {torch.__version__} cannot use it"
    return "note", f"none, torch {torch.__version__}"


def disk() -> Status:
    """Here, and where the tracking store is."""
    from videoblip2.tracking.mlflow import store

    database = store.sqlite_file(store.tracking_uri())
    folders = {Path.cwd(), database.parent} if database and database.parent.is_dir() else {Path.cwd()}
    free = {folder: shutil.disk_usage(folder).free / 1e9 for folder in sorted(folders)}
    least = min(free.values())
    status = "fail" if least < NO_SPACE else "warn" if least < LITTLE_SPACE else "ok"
    return status, "; ".join(f"{gigabytes:.1f} GB free in {folder}" for folder, gigabytes in free.items())


#: Name → the check, and its remedy. No environment manager is required: `mlflow run --env-manager local` works.
CHECKS: dict[str, tuple[Callable[[], Status], str]] = {
    "versions": (versions, "`pip install -e . -c constraints.txt` installs versions that were tested together"),
    "Java": (java, "`apt-get install default-jre-headless`; without it METEOR and SPICE are left out"),
    "SPICE's model files": (spice, "`python -c 'from pycocoevalcap.spice.spice import Spice; Spice()'` fetches them"),
    "video decoding (PyAV)": (decoders, "`pip install --only-binary av av`: its wheels bring FFmpeg with all decoders"),
    "ffmpeg": (partial(program, "ffmpeg"), "optional: PyAV has its own"),
    "GPU": (
        gpu,
        "the toy world needs none, MSR-VTT 24 GB; torch's CUDA build: https://pytorch.org/get-started/locally",
    ),
    "uv": (partial(program, "uv"), "`pip install uv`; then `mlflow run . -e ce --env-manager uv`"),
    "conda": (partial(program, "conda"), "install Miniforge, or set MLFLOW_CONDA_HOME; then `mlflow run . -e ce`"),
    "pyenv": (partial(program, "pyenv"), "install pyenv; then `mlflow run . -e ce --env-manager virtualenv`"),
    "disk": (disk, "free some space; a full-size run takes about 6 GB"),
}
