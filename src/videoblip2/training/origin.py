"""Where a run comes from, for its checkpoint: the source's revision, and its parent by names that do not change.

`train.start_from` may be an alias or a folder, and both can mean another model tomorrow.
"""

from videoblip2.provenance import Provenance
from videoblip2.tracking import find_model
from videoblip2.tracking.source import revision_tags


def origin(parent: str | None) -> Provenance:
    """`revision` (empty outside a repository), `parent` as it was given, its run, and its version (`NAME/3`, `m-…` or a
    folder's name)."""
    if parent is None:
        return Provenance(revision=revision_tags())
    found = find_model(parent)
    run_id = Provenance.read(found.folder, optional=True).run_id
    return Provenance(revision=revision_tags(), parent=parent, parent_run_id=run_id, parent_version=found.version)
