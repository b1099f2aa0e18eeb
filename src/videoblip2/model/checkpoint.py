"""A checkpoint is a folder that rebuilds itself with no network and explains itself.

config.json  model.safetensors        the network (transformers' own form)
tokenizer files, qformer_tokenizer/   T5's pieces, BERT's word pieces
config.yaml                           the training configuration
document_frequencies/…                CIDEr-D's, of the training set
metrics.json  provenance.json         scores; where it came from: features' encoders, data digests, commit, parent
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from videoblip2.config import InputError
from videoblip2.model.network import VideoBlip2
from videoblip2.model.quiet import quiet_transformers
from videoblip2.model.tokenizers import QFORMER_FOLDER, Tokenizers, load_tokenizers

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds."""

    model: VideoBlip2
    tokenizers: Tokenizers
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, extras: Mapping[str, Callable[[Path], object]] | None = None
) -> Path:
    """Write the folder whole or not at all: an older one stays until the new one is complete.

    Args:
        extras: file name → a function that writes this file at a given path, such as `DocumentFrequencies.save`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(fresh, checkpoint, extras or {})
        _swap(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _write(folder: Path, checkpoint: Checkpoint, extras: Mapping[str, Callable[[Path], object]]) -> None:
    with quiet_transformers():
        checkpoint.model.save_pretrained(folder)
    checkpoint.tokenizers.save(folder)
    for name, write in extras.items():
        write(folder / name)
    (folder / "config.yaml").write_text(yaml.safe_dump(checkpoint.config, sort_keys=False), encoding="utf-8")
    _write_json(folder / "metrics.json", checkpoint.metrics)
    _write_json(folder / "provenance.json", {"format": FORMAT, **checkpoint.provenance})
    os.chmod(folder, 0o755)


def _swap(fresh: Path, folder: Path) -> None:
    """Put `fresh` where `folder` is; the moment between the two renames is all that is not covered by either."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Rebuild network and tokenizers from a folder; the network comes in eval mode, on the CPU.

    Raises InputError naming the folder and what is missing in it.
    """
    folder = Path(folder)
    provenance = _read_json(folder, "provenance.json")
    if provenance.get("format", 0) > FORMAT:
        raise InputError(
            f"checkpoint {folder}: has format {provenance['format']}, this version reads up to {FORMAT}; "
            "update videoblip2"
        )
    return Checkpoint(
        _load_network(folder),
        load_tokenizers(folder, folder / QFORMER_FOLDER),
        config=yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {},
        metrics=_read_json(folder, "metrics.json"),
        provenance=provenance,
    )


def _load_network(folder: Path) -> VideoBlip2:
    try:
        with quiet_transformers():
            model, report = VideoBlip2.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"checkpoint {folder}: its network does not load ({reason}); train or copy it again"
        ) from error
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if wrong:
        raise InputError(
            f"checkpoint {folder}: {len(wrong)} tensors do not fit its config.json, first {sorted(wrong)[0]}; "
            "the folder mixes two models: train or copy it again"
        )
    network: VideoBlip2 = model.eval()
    return network


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise InputError(f"checkpoint {folder}: no {name}; give a folder that `vb2 ce` or `vb2 scst` wrote")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
