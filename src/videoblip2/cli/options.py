"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line of standard output.")]
ConfigFile = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file, or a name from `vb2 experiments list`, such as toy_ce.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Configuration keys to override: optim.lr=1e-5. `--optim.lr 1e-5` works too."
    ),
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Checkpoint folder, run id, or models:/videoblip2@champion.")
]
RegisteredName = Annotated[str, typer.Option(help="Registered model.")]
Folder = Annotated[Path, typer.Option(help="Folder that relative paths in the configuration start from.")]
FeatureStore = Annotated[Path | None, typer.Option("--features", help="Feature store; VIDEO is then a video id.")]
Beams = Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")]

#: Settings of a command that takes overrides: `mlflow run -P optim.lr=1e-5` arrives as `--optim.lr 1e-5`.
ANY_OPTION = {"ignore_unknown_options": True}


def overrides_from(words: list[str] | None) -> list[str]:
    """["a=1", "--b.c", "2"] → ["a=1", "b.c=2"]."""
    pairs, rest = [], list(words or [])
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            key, separator, value = word[2:].partition("=")
            word = f"{key}={value if separator or not rest else rest.pop(0)}"
        pairs.append(word)
    return pairs
