"""Where a model came from: what its checkpoint records, then its parent's, and so on to the first weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videoblip2.config import InputError
from videoblip2.overrides import read_yaml
from videoblip2.provenance import FeatureOrigin, Provenance
from videoblip2.registry.verdict_files import facts_of
from videoblip2.tracking import FoundModel, find_model
from videoblip2.tracking.mlflow.store import connect
from videoblip2.tracking.source import ENVIRONMENT_FILE, lock_digest

UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Ancestor:
    """One model of the line. data: split → digest of annotations and features. encoders: kind → name and fingerprint.
    lock: digest of the installed packages. gate: the registered version's verdict. missing: why nothing is known."""

    model: str
    version: str = ""
    folder: str = ""
    stage: str = UNKNOWN
    name: str = UNKNOWN
    run_id: str | None = None
    step: int | None = None
    commit: str = UNKNOWN
    dirty: bool | None = None
    seed: int | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)
    first_weights: Mapping[str, str] = field(default_factory=dict)
    lock: str = UNKNOWN
    parent: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    gate: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""


def lineage(model: str) -> list[Ancestor]:
    """MODEL first, then what it started from, and so on. A parent that is gone ends the line and says why; a MODEL that
    cannot be found raises InputError."""
    line = [describe(find_model(model), model)]
    while parent := line[-1].parent:
        try:
            ancestor = describe(find_model(parent), parent)
        except InputError as error:
            return [*line, Ancestor(parent, missing=str(error))]
        if ancestor.folder in [each.folder for each in line]:
            return [*line, Ancestor(parent, missing="is already in this line: its folder was overwritten")]
        line.append(ancestor)
    return line


def describe(found: FoundModel, model: str) -> Ancestor:
    """What one checkpoint records about itself, and the store about its run and version."""
    folder = found.folder
    provenance = Provenance.read(folder, optional=True)
    config = read_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    dirty = provenance.revision.get("git.dirty")
    origin = provenance.features or FeatureOrigin()
    encoders = {kind: f"{made.name} ({made.fingerprint or UNKNOWN})" for kind, made in origin.encoders.items()}
    if settings := ", ".join(f"{key} {value}" for key, value in origin.settings.recorded.items()):
        encoders["settings"] = settings
    locks = (folder / ENVIRONMENT_FILE, folder.parents[1] / "requirements.txt")  # the latter is MLflow's
    lock = next((file for file in locks if file.is_file()), None)
    name, _, number = found.version.partition("/")
    tags = connect().get_model_version(name, number).tags if number else {}
    return Ancestor(
        model=model,
        version=found.version,
        folder=str(folder),
        stage=provenance.stage or UNKNOWN,
        name=provenance.name or UNKNOWN,
        run_id=provenance.run_id,
        step=provenance.step,
        commit=provenance.revision.get("git.commit", UNKNOWN),
        dirty=None if dirty is None else dirty == "true",
        seed=config.get("seed"),
        data=provenance.data,
        encoders=encoders,
        first_weights=_first_weights(config.get("model", {}), provenance.parent),
        lock=f"{lock_digest(lock.read_text(encoding='utf-8'))} ({lock.name})" if lock else UNKNOWN,
        parent=parent_of(provenance),
        scores=read_scores(folder),
        gate=facts_of(tags),
    )


def parent_of(provenance: Provenance) -> str | None:
    """The parent as a MODEL, by a name that does not change: its version, its folder if the same run still owns it, its
    run; otherwise as `train.start_from` named it."""
    given, run_id, version = provenance.parent, provenance.parent_run_id, provenance.parent_version or ""
    if given is None:
        return None
    if version.startswith("m-") or "/" in version:
        return f"models:/{version}"
    if run_id and Provenance.read(Path(given), optional=True).run_id != run_id:
        return run_id
    return given


def read_scores(folder: Path) -> dict[str, float]:
    """metrics.json of a checkpoint; empty if it has none."""
    path = folder / "metrics.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _first_weights(model: Mapping[str, Any], parent: str | None) -> dict[str, str]:
    """The sources of T5 and the Q-Formers, as configured; a model with a parent has the parent's."""
    if parent or not model:
        return {}
    qformer = model.get("qformer", {})
    return {
        "T5": str(model.get("language_model")),
        "Q-Formers": str(qformer.get("weights") or "fresh"),
        "BERT": f"{qformer.get('bert')}{'' if qformer.get('bert_weights', True) else ', word pieces only'}",
    }
