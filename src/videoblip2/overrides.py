"""Read a YAML file or a shipped experiment, and put `key=value` overrides into it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from videoblip2.errors import InputError
from videoblip2.files import shipped

#: A section of the configuration: its values and its own sections, by key.
Tree = dict[str, Any]
#: Overrides with a shorter name: `vb2 ce CONFIG resume=RUN`.
SHORT = {"resume": "train.resume"}
#: Overrides that are no number even where they look like one: a run id may be all digits, or `12e3…`.
NAMES = ("train.resume", "train.start_from")


def find_experiment(name: str | Path) -> Path:
    """The file `name`; where there is none, the shipped experiment of that name.

    "toy_ce", "toy_ce.yaml" and "experiments/toy_ce.yaml" all name the shipped experiment.
    """
    path = Path(name)
    ships = shipped("experiments") / f"{path.name.removesuffix('.yaml')}.yaml"
    return ships if not path.exists() and str(path.parent) in (".", "experiments") and ships.is_file() else path


def read_yaml(path: str | Path) -> Tree:
    """A YAML mapping from a file or a shipped experiment, with errors that name the file."""
    try:
        content = yaml.safe_load(find_experiment(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; give a YAML file, or a name from `vb2 experiments list`"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())}); correct the file") from error
    if not isinstance(content, dict | None):
        raise InputError(
            f"{path}: holds a {type(content).__name__}, not keys and values; see `vb2 experiments show toy_ce`"
        )
    return content or {}


def overridden(content: Mapping[str, Any], overrides: Iterable[str]) -> Tree:
    """A copy of nested mappings with `key=value` overrides put in; keys and types are not checked."""
    merged: Tree = json.loads(json.dumps(content, default=str))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"override {override!r}: not of the form key=value, such as optim.lr=1e-5")
        key = SHORT.get(key.strip(), key.strip())
        value = _parse_value(text)
        _assign(merged, key, text.strip() if key in NAMES and isinstance(value, int | float) else value, override)
    return merged


def _parse_value(text: str) -> object:
    """YAML's reading, and also 1e-5 (which YAML 1.1 takes for a string)."""
    value = yaml.safe_load(text) if text.strip() else None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _assign(tree: Tree, key: str, value: object, override: str) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise InputError(f"override {override!r}: {parent!r} is a value, not a section; see docs/config.md")
    tree[leaf] = value
