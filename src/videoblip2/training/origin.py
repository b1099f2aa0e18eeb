"""Where a run comes from, as its checkpoint says it: the source's revision, and its parent by names that stay.

`train.start_from` may be an alias or a folder, and both can mean another model tomorrow.
"""

import json
from pathlib import Path
from typing import Any

from videoblip2.tracking import find_model
from videoblip2.tracking.source import revision_tags


def origin(parent: str | None) -> dict[str, Any]:
    """`revision` ({"git.commit", "git.dirty"}, empty outside a repository), `parent` as it was given, and of the parent
    `parent_run_id` and `parent_version` (`NAME/3`, `m-…` or a folder's name)."""
    revision = {"revision": revision_tags(), "parent": parent}
    if parent is None:
        return revision
    found = find_model(parent)
    return {**revision, "parent_run_id": _run_id(found.folder), "parent_version": found.version}


def _run_id(folder: Path) -> str | None:
    file = folder / "provenance.json"
    run_id = json.loads(file.read_text(encoding="utf-8")).get("run_id") if file.is_file() else None
    return str(run_id) if run_id else None
