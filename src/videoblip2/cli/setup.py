"""`vb2 doctor`, `plan`, `weights`, `experiments`: check programs and memory, get weights and files."""

import difflib
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from videoblip2.cli import console
from videoblip2.cli.console import SOME_FAILED, Commands, emit, progress, require, table
from videoblip2.errors import InputError, counted
from videoblip2.files import shipped

if TYPE_CHECKING:
    from videoblip2.training.plan import MemoryPlan

app = Commands()
weights = Commands(help="Fetch pre-trained weights, and inspect weight files.", no_args_is_help=True)
experiments = Commands(help="The experiment files that come with the package.", no_args_is_help=True)
Name = Annotated[str, Argument(metavar="NAME", help="A name from `vb2 experiments list`, such as toy_ce.")]
Status = tuple[str, str]  # ok, note, warn or fail; and what was found
LITTLE_SPACE, NO_SPACE = 10.0, 1.0  # GB: one full-size checkpoint with its training state takes about 6


@app.report("doctor")
def doctor() -> None:
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
    emit({"findings": findings, "counts": counts}, "\n".join(lines))
    if counts["fail"]:
        raise Exit(SOME_FAILED)


@app.report("plan msrvtt_ce --gpus 4 --memory 80", "plan msrvtt_scst scst.samples=8")
def plan(
    config: console.ConfigFile,
    overrides: Annotated[console.Words, console.key_values("Keys of the configuration.")] = None,
    gpus: Annotated[int, Option(min=1, metavar="N", help="Processes that share a batch, one per GPU.")] = 1,
    memory: Annotated[
        float | None, Option(min=0.1, metavar="GB", help="Of each GPU; by default what is free here.")
    ] = None,
    folder: console.Folder = Path(),
) -> None:
    """Compute the memory that a step of each stage needs, and which keys make it fit; loads no weights."""
    from videoblip2.config import load_config
    from videoblip2.training.plan import fitting, free
    from videoblip2.training.plan import plan as planned
    from videoblip2.training.workspace import inherit_model

    console.go_to(folder)
    settings = inherit_model(load_config(config, overrides or []))
    room = memory * 1e9 if memory else free(settings)
    plans = {kind: planned(kind, settings, gpus) for kind in progress(("ce", "scst"), 2, "memory of each stage")}
    changes, record = dict[str, tuple[list[str], int]](), dict[str, dict[str, object]]()
    for kind, made in plans.items():
        fits = made.peak <= room
        words, peak = changes[kind] = ([], made.peak) if fits else fitting(kind, settings, gpus, room, progress)
        record[kind] = {**console.plain(made), "peak": made.peak, "fits": fits, "changes": words, "changed_peak": peak}
    emit({"memory": room, "gpus": gpus, **record}, _plan_text(plans, changes, room))


def _plan_text(plans: "dict[str, MemoryPlan]", changes: dict[str, tuple[list[str], int]], room: float) -> str:
    parts = {kind: {**_parts(made), "peak": made.peak} for kind, made in plans.items()}
    names = sorted({name for part in parts.values() for name in part}, key=[*parts["scst"]].index)
    rows = [[name, *(f"{part[name] / 1e9:.2f}" if name in part else "" for part in parts.values())] for name in names]
    lines = [table("GB per process", ["", *parts], rows)]
    lines += map(": ".join, zip(("language model", "batch"), plans["ce"].sizes, strict=True))
    for kind, (words, peak) in changes.items():
        says = "fits in" if peak <= room else "does not fit in"
        with_keys = f" with {' '.join(words)} ({peak / 1e9:.2f} GB)" if words else ""
        lines.append(f"{kind}: {says} {room / 1e9:.1f} GB{with_keys}")
    return "\n".join([*lines, "A CUDA context takes about half a GB more."])


def _parts(made: "MemoryPlan") -> dict[str, Any]:
    activations = {"activations": made.phases["training"] - made.gradients}
    others = {name: size for name, size in made.phases.items() if name != "training"}
    fixed = {"weights": made.weights, "gradients": made.gradients, "optimizer": made.optimizer}
    return {**fixed, **activations, **others}


def versions() -> Status:
    """Compare the installed packages with the ranges of pyproject.toml."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        requirements = [Requirement(text) for text in metadata.requires("videoblip2") or []]
    except metadata.PackageNotFoundError:
        return "fail", "videoblip2 is not installed"
    wanted = [one for one in requirements if not one.marker or one.marker.evaluate({"extra": ""})]
    installed = {canonicalize_name(each.name): each.version for each in metadata.distributions()}
    found = [(one, installed.get(canonicalize_name(one.name), "not installed")) for one in wanted]
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
    "GPU": (gpu, "the toy world needs none, MSR-VTT 24 GB; the CUDA build: https://pytorch.org/get-started/locally"),
    "uv": (partial(program, "uv"), "`pip install uv`; then `mlflow run . -e ce --env-manager uv`"),
    "conda": (partial(program, "conda"), "install Miniforge, or set MLFLOW_CONDA_HOME; then `mlflow run . -e ce`"),
    "pyenv": (partial(program, "pyenv"), "install pyenv; then `mlflow run . -e ce --env-manager virtualenv`"),
    "disk": (disk, "free some space; a full-size run takes about 6 GB"),
}


@weights.report("weights fetch", "weights fetch blip2-flant5xl")
def fetch(
    name: Annotated[str | None, Argument(help="Name of the weights; omit it to list them.")] = None,
    out: Annotated[Path, Option(file_okay=False, help="Folder to download to.")] = Path("models"),
    sha256: Annotated[str | None, Option(help="Expected checksum of the file.")] = None,
) -> None:
    """Download weights; an interrupted download resumes, and checksums are verified."""
    from videoblip2.model.weight_fetch import KNOWN, fetch_weights

    if name is None:
        rows = [[known.name, known.what, known.url or f"hub: {known.repository}"] for known in KNOWN.values()]
        emit({"known": list(KNOWN.values())}, table("Known weights", ["name", "what", "from"], rows))
        return
    fetched = fetch_weights(name, out, sha256, progress)
    sums = "\n".join(f"{digest}  {file}" for file, digest in fetched.files.items())
    done = "downloaded" if fetched.downloaded else "already there"
    emit(fetched, f"{fetched.path}: {done}, checked against {fetched.checked}\n{sums}")


@weights.report("weights inspect models/blip2_pretrained_flant5xl.pth")
def inspect(file: Annotated[Path, Argument(help=".pth, .bin or .safetensors file, its index, or a folder.")]) -> None:
    """Describe a file of weights: layout, sizes, tensor groups, and whether a Q-Former can be loaded from it."""
    require([file], "`vb2 weights fetch` lists what can be downloaded")
    from videoblip2.model.weight_source import inspect_weights

    inspection = inspect_weights(file)
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in inspection.dtypes.items())
    lines = [
        f"{inspection.file}: {inspection.looks_like} ({inspection.format})",
        f"{inspection.tensors:,} tensors ({kinds}), {inspection.parameters:,} parameters",
    ]
    for found in inspection.qformers:
        sizes = ", ".join(f"{key} {value}" for key, value in found.sizes.items())
        text = "with text branch" if found.text_branch else "no text branch: give a BERT for the text side"
        queries = f"query tokens {list(found.query_tokens)}" if found.query_tokens else "no query tokens"
        lines.append(f"Q-Former under {found.prefix!r}: {found.problem or f'{sizes}; {queries}; {text}'}")
    lines += [] if inspection.qformers else ["contains no Q-Former"]
    rows = [[group, f"{count:,}", f"{parameters:,}"] for group, count, parameters in inspection.groups]
    emit(inspection, "\n".join([*lines, table("Tensor groups", ["group", "tensors", "parameters"], rows)]))


@experiments.report("experiments list", name="list")
def list_() -> None:
    """List the experiments. Commands that take CONFIG also take these names."""
    heads = {name: path.read_text(encoding="utf-8").partition("\n")[0] for name, path in _files().items()}
    purposes = {name: head.lstrip("# ").rstrip(".") for name, head in heads.items()}
    emit({"experiments": purposes}, table("Experiments", ["name", "purpose"], purposes.items()))


@experiments.report("experiments show toy_ce")
def show(name: Name) -> None:
    """Print an experiment file."""
    path = _find(name)
    text = path.read_text(encoding="utf-8")
    emit({"name": path.stem, "text": text}, text.rstrip())


@experiments.report("experiments copy msrvtt_ce my_ce.yaml")
def copy(
    name: Name,
    dest: Annotated[Path, Argument(metavar="DEST", help="File or folder to copy it to.")] = Path(),
) -> None:
    """Copy an experiment file, to edit it."""
    path = _find(name)
    target = dest / path.name if dest.is_dir() else dest
    if target.exists():
        raise InputError(f"{target}: already exists; give another DEST, or delete it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    emit({"name": path.stem, "file": str(target)}, str(target))


def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(shipped("experiments").glob("*.yaml"))}


def _find(name: str) -> Path:
    files, stem = _files(), Path(name).name.removesuffix(".yaml")
    if stem in files:
        return files[stem]
    near = difflib.get_close_matches(stem, files, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`vb2 experiments list` shows their names"
    raise InputError(f"experiment {name!r}: is not in the package; {hint}")
