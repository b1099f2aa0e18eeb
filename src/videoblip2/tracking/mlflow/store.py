"""The tracking store: its address, its first start under a lock, an MLflow client, and health checks.

Several processes that open a fresh sqlite file at once corrupt it for good, so the tables are created under a file
lock. Write-ahead logging, which is set in the file, lets readers and writers work at once and marks a finished start.
"""

import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

import psutil
from filelock import FileLock

from videoblip2.captions.metrics import PRIMARY, label_of, scale_of
from videoblip2.config import InputError
from videoblip2.errors import LOGIN, first_line, masked, refused

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_DATABASE, ARTIFACTS = "mlflow.db", "mlruns"  # the folder is beside the file
SQLITE = "sqlite:///"
REACH_SECONDS = 10
BUSY_SECONDS = 2.0
ALIVE_SECONDS = 300.0  # a run with a sign of life this recent is alive
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
NOISY = ("alembic", "mlflow.store.db.utils", "urllib3.connectionpool")  # they print errors that are also raised
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's answer for a missing name or alias
NO_STORE = "run where the runs were made, set MLFLOW_TRACKING_URI, or make a first run with `vb2 demo`"
MOVE_AWAY = "move it away and start again, or restore a copy"
#: File systems shared by machines, where sqlite's write-ahead logging corrupts data; most FUSE ones too.
NETWORK = {"nfs", "nfs4", "cifs", "smbfs", "smb2", "smb3", "9p", "virtiofs", "afs", "ceph", "lustre", "beegfs", "gpfs"}
#: Columns with addresses of artifacts.
ADDRESSES = (
    *(("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location")),
    *(("model_versions", "source"), ("model_versions", "storage_location")),
)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or `mlflow.db` of the current folder. A sqlite path is absolute, to survive a chdir."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DEFAULT_DATABASE}"
    database = sqlite_file(uri)
    return f"{SQLITE}{database}" if database else uri


def sqlite_file(uri: str) -> Path | None:
    """Return the file behind a `sqlite:///` address, absolute; None for any other store."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def ask(database: Path, query: str, *values: str, patience: float = BUSY_SECONDS) -> list[Any]:
    """Query the database, without MLflow. Raises sqlite3.Error; never creates a file."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=patience)) as connection:
        return connection.execute(query, values).fetchall()


def lacks_run(word: str) -> bool:
    """Whether a sqlite store certainly has no run of this name or id; asked before MLflow, whose import is slow."""
    database = sqlite_file(tracking_uri())
    with suppress(sqlite3.Error):
        query = "SELECT 1 FROM runs WHERE name = ? OR run_uuid LIKE ?"
        return database is not None and database.is_file() and not ask(database, query, word, f"{word}%")
    return False


def is_local(address: str) -> bool:
    """Whether artifacts at this address are on this machine."""
    return urlparse(address).scheme in ("", "file")


def connect(create: bool = False) -> "MlflowClient":
    """Return a client for the store. A missing sqlite store is created with `create`, else it raises InputError."""
    for quiet, value in QUIET.items():
        os.environ.setdefault(quiet, value)
    uri = tracking_uri()
    database = sqlite_file(uri)
    if database and not create and not database.is_file():
        raise InputError(f"{database}: no MLflow store there; {NO_STORE}")
    import mlflow

    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    if database:
        _first_start(uri, database)
        _follow_move(database)
    elif uri.startswith("http"):
        check_reachable(uri)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient()


@contextmanager
def answered(*codes: str) -> Iterator[None]:
    """Ignore MLflow's errors with these codes."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise


def is_unknown(error: Exception) -> bool:
    """Whether MLflow says that a name or alias does not exist."""
    return getattr(error, "error_code", "") in UNKNOWN


def section(metric: str) -> str:
    """The chart section of a metric in the scale of the command line."""
    return f"{label_of(metric)} x{scale_of(metric):g}"


def add_views(client: "MlflowClient", experiment_id: str) -> None:
    """Add views of the experiment to MLflow: CIDEr and kind of each run; runs with validation captions."""
    from mlflow.exceptions import MlflowException

    columns = ["attributes.`Source`", *(f"metrics.`{section(PRIMARY)}/{split}`" for split in ("best", "test"))]
    views = {
        "vb2": (label_of(PRIMARY), {"selectedColumns": columns}),
        "captions": ("Captions", {"searchFilter": "tags.`predictions.val` LIKE '%'"}),
    }
    known = client.get_experiment(experiment_id).tags
    for key, (name, state) in views.items():
        if (tag := f"mlflow.sharedViewState.{key}") not in known:
            view = {"name": name, "createdAt": int(1000 * time.time()), "state": json.dumps(state)}
            with suppress(MlflowException):  # another process was first, or no permission
                client.set_experiment_tag(experiment_id, tag, json.dumps(view))


def check_reachable(uri: str) -> None:
    """Check that a tracking server answers and accepts the login. Raises InputError within seconds if not."""
    remedy = "check that it is running, correct MLFLOW_TRACKING_URI, or unset it to use mlflow.db here"
    with refused(f"{uri}: no tracking server answers", remedy, Exception):
        answer = get(uri, "/api/2.0/mlflow/experiments/search", params={"max_results": 1})
    if answer.status_code in (401, 403):
        hosts = "; also check the server's --allowed-hosts" if answer.status_code == 403 else ""
        reason = f"{answer.status_code}: {' '.join(answer.text.split())[:100]}"
        raise InputError(f"{uri}: the server refuses ({reason}); {LOGIN}{hosts}")


def get(uri: str, path: str, **options: Any) -> Any:
    """Send one GET request to a tracking server, with its credentials."""
    from mlflow.tracking._tracking_service.utils import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(get_default_host_creds(uri), path, "GET", max_retries=0, timeout=REACH_SECONDS, **options)


def _first_start(uri: str, database: Path) -> None:
    """Create the tables once, in one process, while others wait. A ready store costs one check of the file."""
    if database.is_file() and _journal_mode(database) == "wal":
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        shared = network_file_system(database)
        if database.is_file() and (_journal_mode(database) == "wal" or (shared and "runs" in _tables(database))):
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore(uri, str(database.parent / ARTIFACTS)).engine.dispose()
        if not shared:
            with suppress(sqlite3.OperationalError):  # a reader holds the file: the next start sets it
                _journal_mode(database, "=wal")


def network_file_system(path: Path) -> str:
    """The type of a path's file system if machines can share it, such as `nfs4`; else empty."""
    path = path.resolve()
    mounted = reversed(psutil.disk_partitions(all=True))  # the last mount at a place is the one in use
    places = [place for place in mounted if path.is_relative_to(place.mountpoint)]
    kind = max(places, key=lambda place: len(place.mountpoint)).fstype.lower() if places else ""
    return kind if kind in NETWORK or kind.startswith("fuse.") else ""


@cache
def _follow_move(database: Path) -> None:
    """Update MLflow's absolute addresses after a folder was renamed or mounted elsewhere."""
    root, alive = database.parent / ARTIFACTS, time.time() - ALIVE_SECONDS
    busy = "SELECT 1 FROM runs JOIN tags USING (run_uuid) WHERE status = 'RUNNING' AND key = 'heartbeat' AND value > ?"
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection, connection:
        for (address,) in connection.execute("SELECT artifact_location FROM experiments").fetchall():
            old, folder, _ = address.rpartition("/mlruns/")
            former = Path(unquote(urlparse(old).path)) / "mlruns"
            if not folder or not is_local(old) or former.exists() or not root.is_dir():
                continue
            if connection.execute(busy, (str(alive),)).fetchone():
                return  # a container may be writing here, with another name for this folder
            new = database.parent.as_uri() if old.startswith("file:") else str(database.parent)
            for table, column in ADDRESSES:
                changed = f"{column} = ? || substr({column}, ?)"
                where = f"substr({column}, 1, ?) = ?"
                values = (new, len(old) + 1, len(old + folder), old + folder)
                connection.execute(f"UPDATE {table} SET {changed} WHERE {where}", values)


def _tables(database: Path) -> set[str]:
    return {name for (name,) in ask(database, "SELECT name FROM sqlite_master WHERE type = 'table'")}


def _journal_mode(database: Path, change: str = "") -> str:
    return str(ask(database, f"PRAGMA journal_mode{change}", patience=60)[0][0])


@dataclass(frozen=True)
class Finding:
    """One check: `status` is ok, note (harmless), warn or fail; every status but ok has a remedy."""

    name: str
    status: str
    found: str
    remedy: str = ""


def findings() -> list[Finding]:
    """Check the store: reachable, schema, write-ahead logging. Read only; one finding if it is missing."""
    uri = tracking_uri()
    database = sqlite_file(uri)
    if database and not database.is_file():
        return [Finding("store", "note", f"{database}: does not exist yet", NO_STORE)]
    try:
        if database:
            _check_sqlite(database)
        else:
            check_reachable(uri)
    except InputError as error:
        found, _, remedy = str(error).partition("; ")
        return [Finding("store", "fail", found, remedy)]
    return [
        Finding("store", "ok", str(database or masked(uri))),
        *([_journal(database)] if database else []),
        _schema(uri),
    ]


def _check_sqlite(database: Path) -> None:
    try:
        ask(database, "BEGIN IMMEDIATE")  # tests whether it is writable; rolled back
        tables = _tables(database)
    except sqlite3.Error as error:
        remedy = f"if no process writes there, {MOVE_AWAY}"
        if "locked" in str(error):
            remedy = f"another process holds it: `fuser {database}` names it; stop it, or wait"
        raise InputError(f"{database}: {error}; {remedy}") from error
    half = ", ".join(sorted(name for name in tables if name.startswith("_alembic_tmp_")))
    if half or not {"runs", "experiments"} <= tables:
        reason = half or "tables are missing"
        raise InputError(f"{database}: its first start or an upgrade was interrupted ({reason}); {MOVE_AWAY}")


def _journal(database: Path) -> Finding:
    name, shared, mode = "store: write-ahead logging", network_file_system(database), _journal_mode(database)
    change = f"`sqlite3 {database} 'PRAGMA journal_mode={{}}'` while nothing else uses it"
    if not shared and mode == "wal":
        return Finding(name, "ok", "on")
    if not shared:
        remedy = f"{change.format('WAL')}, or `vb2 runs list`"
        return Finding(name, "warn", f"off ({mode}): processes wait for each other", remedy)
    if mode == "wal":
        found = f"on, but {shared} is a network file system, where it corrupts a store that two machines use"
        return Finding(name, "warn", found, f"{change.format('DELETE')}, or use a tracking server")
    found = f"off ({mode}), and left off: {shared} is a network file system, where it would corrupt the store"
    return Finding(name, "note", found, "for many processes or machines use a tracking server")


def _schema(uri: str) -> Finding:
    """Compare a database's tables with this MLflow's, or a server's MLflow with ours."""
    import mlflow
    from mlflow.store.db.utils import _get_latest_schema_revision, _get_schema_version
    from sqlalchemy import create_engine

    name, ours, shown = "store: schema", mlflow.__version__, masked(uri)
    if uri.startswith("http"):
        answer = get(uri, "/version")
        theirs = answer.text.strip() if answer.status_code == 200 else ""
        found = f"server {theirs or 'does not report its version'}, here {ours}"
        remedy = f"install the same MLflow on both sides: `pip install mlflow=={theirs}` here, or update the server"
        equal = theirs.split(".")[:2] == ours.split(".")[:2]
        return Finding(name, "ok", found) if equal else Finding(name, "warn", found, remedy)
    try:
        engine = create_engine(uri)
        has, wants = _get_schema_version(engine), _get_latest_schema_revision()
        engine.dispose()
    except Exception as error:
        return Finding(name, "fail", masked(first_line(error)), f"check that {shown} is an MLflow database")
    if has == wants:
        return Finding(name, "ok", f"{has}, as MLflow {ours} expects")
    remedy = f"`mlflow db upgrade {shown}` after a copy, if it is older; `pip install -U mlflow`, if it is newer"
    return Finding(name, "fail", f"{has}, but MLflow {ours} expects {wants}", remedy)
