"""What a file of weights is: its kind, its sizes, its groups of tensors, and whether it holds a Q-Former."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from videoblip2.config import InputError
from videoblip2.model.qformer.weight_report import group_rows
from videoblip2.model.qformer.weight_source import (
    QFormerSource,
    Tensors,
    find_qformer,
    looks_like,
    qformer_roots,
    read_sizes,
)
from videoblip2.model.tensor_files import read_tensors, sniff, weights_file


@dataclass(frozen=True)
class QFormerFound:
    """One Q-Former in the file; `sizes` are those that its tensors show, `problem` says why it cannot be loaded."""

    prefix: str
    layout: str
    text_branch: bool
    query_tokens: tuple[int, ...] | None
    sizes: dict[str, int]
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """A file of weights, described; `groups` are (group, tensors, parameters)."""

    file: str
    format: str
    looks_like: str
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    qformers: tuple[QFormerFound, ...]
    groups: tuple[tuple[str, int, int], ...]


def inspect_weights(path: Path | str) -> Inspection:
    """Describe a file or folder of weights without loading it; InputError for what cannot be opened."""
    file = weights_file(path)
    tensors = read_tensors(file)
    found = tuple(_found(tensors, str(file), root) for root in qformer_roots(tensors))
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return Inspection(
        file=str(file),
        format=sniff(file),
        looks_like=", ".join(one.layout for one in found) or looks_like(tensors),
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        dtypes=dict(dtypes),
        qformers=found,
        groups=tuple(group_rows((name, tensor.numel()) for name, tensor in tensors.items())),
    )


def _found(tensors: Tensors, file: str, root: str) -> QFormerFound:
    source = find_qformer(tensors, file, root)
    queries = source.query_tokens
    shape = tuple(queries.tensor.shape) if queries is not None else None
    try:
        sizes, problem = _sizes(source, file), ""
    except InputError as error:
        sizes, problem = {}, str(error)
    return QFormerFound(root, source.layout, source.has_text, shape, sizes, problem)


def _sizes(source: QFormerSource, file: str) -> dict[str, int]:
    """The sizes that are in the file: without word embeddings it shows no vocabulary."""
    sizes = asdict(read_sizes(source, file))
    words = source.tensors.get("embeddings.word_embeddings.weight")
    positions = source.tensors.get("embeddings.position_embeddings.weight")
    for key, found in (("vocab_size", words), ("max_position_embeddings", positions)):
        if found is None:
            del sizes[key]
        else:
            sizes[key] = int(found.tensor.shape[0])
    return sizes
