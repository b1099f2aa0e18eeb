"""`vb2 weights` and `vb2 experiments`: what training starts from, pre-trained weights and experiment files."""

import difflib
import shutil
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from videoblip2.cli.console import Json, emit, examples, progress, require, table
from videoblip2.errors import InputError
from videoblip2.files import shipped

weights = Typer(help="Fetch pre-trained weights, and inspect weight files.", no_args_is_help=True)
experiments = Typer(help="The experiment files that come with the package.", no_args_is_help=True)
Name = Annotated[str, Argument(metavar="NAME", help="A name from `vb2 experiments list`, such as toy_ce.")]


@weights.command(epilog=examples("weights fetch", "weights fetch blip2-flant5xl"))
def fetch(
    name: Annotated[str | None, Argument(help="Name of the weights; omit it to list them.")] = None,
    out: Annotated[Path, Option(help="Folder to download to.")] = Path("models"),
    sha256: Annotated[str | None, Option(help="Checksum the file must have.")] = None,
    json: Json = False,
) -> None:
    """Download weights; an interrupted download resumes, and checksums are verified."""
    from videoblip2.model.weight_fetch import KNOWN, fetch_weights

    if name is None:
        rows = [[known.name, known.what, known.url or f"hub: {known.repository}"] for known in KNOWN.values()]
        emit({"known": list(KNOWN.values())}, json, table("Known weights", ["name", "what", "from"], rows))
        return
    fetched = fetch_weights(name, out, sha256, progress)
    sums = "\n".join(f"{digest}  {file}" for file, digest in fetched.files.items())
    done = "downloaded" if fetched.downloaded else "already there"
    emit(fetched, json, f"{fetched.path}: {done}, checked against {fetched.checked}\n{sums}")


@weights.command(epilog=examples("weights inspect models/blip2_pretrained_flant5xl.pth"))
def inspect(
    file: Annotated[Path, Argument(help=".pth, .bin or .safetensors file, its index, or a folder.")], json: Json = False
) -> None:
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
    emit(inspection, json, "\n".join([*lines, table("Tensor groups", ["group", "tensors", "parameters"], rows)]))


@experiments.command("list", epilog=examples("experiments list"))
def list_(json: Json = False) -> None:
    """List the experiments. Commands that take CONFIG also take these names."""
    heads = {name: path.read_text(encoding="utf-8").partition("\n")[0] for name, path in _files().items()}
    purposes = {name: head.lstrip("# ").rstrip(".") for name, head in heads.items()}
    emit({"experiments": purposes}, json, table("Experiments", ["name", "purpose"], purposes.items()))


@experiments.command(epilog=examples("experiments show toy_ce"))
def show(name: Name, json: Json = False) -> None:
    """Print an experiment file."""
    path = _find(name)
    text = path.read_text(encoding="utf-8")
    emit({"name": path.stem, "text": text}, json, text.rstrip())


@experiments.command(epilog=examples("experiments copy msrvtt_ce my_ce.yaml"))
def copy(
    name: Name,
    dest: Annotated[Path, Argument(metavar="DEST", help="File or folder to copy it to.")] = Path(),
    json: Json = False,
) -> None:
    """Copy an experiment file, to edit it."""
    path = _find(name)
    target = dest / path.name if dest.is_dir() else dest
    if target.exists():
        raise InputError(f"{target}: exists already; give another DEST, or delete it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    emit({"name": path.stem, "file": str(target)}, json, str(target))


def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(shipped("experiments").glob("*.yaml"))}


def _find(name: str) -> Path:
    files, stem = _files(), Path(name).name.removesuffix(".yaml")
    if stem in files:
        return files[stem]
    near = difflib.get_close_matches(stem, files, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`vb2 experiments list` shows their names"
    raise InputError(f"experiment {name!r}: does not come with the package; {hint}")
