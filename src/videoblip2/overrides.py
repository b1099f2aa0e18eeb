"""Read a YAML file or a shipped experiment, and apply `key=value` overrides to it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from videoblip2.errors import InputError
from videoblip2.files import expand, shipped

#: A section of the configuration: its values and its own sections, by key.
Tree = dict[str, Any]
#: Overrides with a shorter name: `vb2 ce CONFIG resume=RUN`.
SHORT = {"resume": "train.resume"}


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that a mapping has twice; PyYAML keeps the last one."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if (name := (key.tag, str(key.value))) in seen:
                problem = f"{key.value!r} appears twice in this section; merge the two"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(name)
        return node


def read_yaml(path: str | Path) -> Tree:
    """A YAML mapping from a file or a shipped experiment, with errors that name the file."""
    file = Path(expand(str(path)))
    ships = shipped("experiments") / f"{file.name.removesuffix('.yaml')}.yaml"
    if not file.exists() and str(file.parent) in (".", "experiments") and ships.is_file():
        file = ships  # `toy_ce` or `experiments/toy_ce.yaml`
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), UniqueKeys)
    except OSError as error:
        remedy = "give a YAML file, or a name from `vb2 experiments list`"
        raise InputError(f"{path}: {error.strerror}; {remedy}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())}); correct the file") from error
    if not isinstance(content, dict | None):
        kind = type(content).__name__
        raise InputError(f"{path}: holds a {kind}, not keys and values; `vb2 experiments list` names examples")
    return content or {}


def overridden(content: Mapping[str, Any], overrides: Iterable[str], model: type[BaseModel]) -> Tree:
    """A copy with `key=value` applied, unchecked; where a key of `model` is text, the value is taken as typed."""
    merged: Tree = json.loads(json.dumps(content, default=str))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"override {override!r}: not of the form key=value, such as optim.lr=1e-5")
        (*parents, leaf), kind = locate(model, SHORT.get(key.strip(), key.strip()))
        tree = merged
        for parent in parents:
            tree = tree.setdefault(parent, {})
            if not isinstance(tree, dict):
                raise InputError(f"override {override!r}: {parent!r} is a value, not a section; see docs/config.md")
        try:
            tree[leaf] = _value(text, kind)
        except yaml.YAMLError as error:
            raise InputError(f"override {override!r}: not a valid value ({' '.join(str(error).split())})") from error
    return merged


def locate(model: type[BaseModel], key: str) -> tuple[list[str], Any]:
    """The parts of a dotted key, and the type of its value; inside a mapping the rest of the key is one part."""
    parts: list[str] = []
    kind: Any = model
    while key:
        if get_origin(kind) is dict:
            return [*parts, key], get_args(kind)[1]
        part, _, key = key.partition(".")
        parts.append(part)
        field = getattr(kind, "model_fields", {}).get(part)
        kind = field and field.annotation
    return parts, kind


def _value(text: str, kind: Any) -> object:
    """The text itself where `kind` takes text; else YAML's reading, and also 1e-5 (which YAML 1.1 takes for text)."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    plain = [get_args(each)[0] if get_origin(each) is Annotated else each for each in kinds]
    is_null = NoneType in plain and text.strip() in ("", "~", "null")
    is_list = any(get_origin(each) is tuple for each in plain) and text.lstrip().startswith("[")
    if any(each is str or get_origin(each) is Literal for each in plain) and not is_null and not is_list:
        return text
    value = yaml.safe_load(text) if text.strip() else None
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
