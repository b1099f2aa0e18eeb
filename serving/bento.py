"""`python -m serving.bento VERSION [FILE]`, run by `vb2 package` in the folder that it laid out: builds the Bento.

It is a process of its own, so that what it imports is what the folder holds.
"""

import json
import sys
from pathlib import Path

import bentoml


def build(version: str, export: str | None = None) -> dict[str, str]:
    """Build the Bento that bentofile.yaml of the current folder describes; with `export`, write it to a file, too."""
    bento = bentoml.bentos.build_bentofile("bentofile.yaml", build_ctx=".", labels={"model_version": version})
    if export:
        bento.export(export)
    return {"tag": str(bento.tag), "path": str(Path(bento.path))}


if __name__ == "__main__":
    print(json.dumps(build(*sys.argv[1:])))
