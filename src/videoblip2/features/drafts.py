"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def draft(path: Path) -> Iterator[IO[bytes]]:
    """A new file that becomes `path` in one move if the block ends well, and is gone if it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with name.open("xb") as file:
            yield file
        os.replace(name, path)
    finally:
        name.unlink(missing_ok=True)
