"""`vb2 weights`: fetch pre-trained weights, and describe a file of weights."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videoblip2.cli.console import Json, emit, progress, table

if TYPE_CHECKING:
    from videoblip2.model.qformer.weight_inspect import Inspection

app = typer.Typer(help="Fetch pre-trained weights, and inspect files of weights.", no_args_is_help=True)


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="Name of the weights; omit it to list them.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to download to.")] = Path("models"),
    sha256: Annotated[str | None, typer.Option(help="Checksum the file must have.")] = None,
    json: Json = False,
) -> None:
    """Download weights; an interrupted download resumes, and checksums are verified.

    \b
    Example:
      vb2 weights fetch blip2-flant5xl
    """
    from videoblip2.model.qformer.weight_fetch import KNOWN, fetch_weights

    if name is None:
        rows = [[known.name, known.what, known.url or f"hub: {known.repository}"] for known in KNOWN.values()]
        text = table("Known weights", ["name", "what", "from"], rows)
        emit({"known": [asdict(known) for known in KNOWN.values()]}, json, text)
        return
    fetched = fetch_weights(name, out, sha256, progress)
    sums = "\n".join(f"{digest}  {file}" for file, digest in fetched.files.items())
    done = "downloaded" if fetched.downloaded else "already there"
    emit(asdict(fetched), json, f"{fetched.path}: {done}, checked against {fetched.checked}\n{sums}")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help=".pth, .bin or .safetensors file, its index, or a folder.")],
    json: Json = False,
) -> None:
    """Describe a file of weights: layout, sizes, tensor groups, and whether a Q-Former can be loaded from it."""
    from videoblip2.model.qformer.weight_inspect import inspect_weights

    inspection = inspect_weights(file)
    emit(asdict(inspection), json, _text(inspection))


def _text(inspection: "Inspection") -> str:
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
    if not inspection.qformers:
        lines.append("contains no Q-Former")
    rows = [[group, f"{count:,}", f"{parameters:,}"] for group, count, parameters in inspection.groups]
    return "\n".join([*lines, table("Tensor groups", ["group", "tensors", "parameters"], rows)])
