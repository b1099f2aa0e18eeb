"""Where a run's first weights come from, for its tags and its page."""

import json
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from videoblip2.config import InputError


def lineage_tags(checkpoint: Path) -> dict[str, str]:
    """Name the run that made a checkpoint: `lineage.parent_run`, `_name`, `_stage`, `_step`, and its `_cider`."""
    made, scores = _read(checkpoint / "provenance.json"), _read(checkpoint / "metrics.json")
    known = {"run": made.get("run_id"), "name": made.get("name"), "stage": made.get("stage"), "step": made.get("step")}
    known["cider"] = scores.get("CIDEr", scores.get("val/CIDEr"))
    return {f"lineage.parent_{key}": str(value) for key, value in known.items() if value is not None}


def run_link(run_id: str, name: str) -> str:
    """Return markdown that leads to a run's page in the UI; the name and id where the store knows no such run."""
    from videoblip2.tracking.run_records import find_run

    with suppress(InputError):
        return f"[{name}](#/experiments/{find_run(run_id).experiment_id}/runs/{run_id})"
    return f"{name} (`{run_id}`)"


def command_line() -> str:
    """The command of this process as one would type it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; nothing where the file is absent, as in checkpoints made by other means."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
