"""Health of the tracking store: reachability, schema, write-ahead logging, abandoned runs. Read only."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from videoblip2.config import InputError
from videoblip2.errors import first_line
from videoblip2.tracking.mlflow import store
from videoblip2.tracking.mlflow.run_records import find_dead_runs

BUSY_SECONDS = 2.0
MOVE_AWAY = "move it away and start again, or bring back a copy"


@dataclass(frozen=True)
class Finding:
    """One check: `status` is ok, note (harmless), warn or fail; every status but ok has a remedy."""

    name: str
    status: str
    found: str
    remedy: str = ""


def store_findings() -> list[Finding]:
    """Check the store named by MLFLOW_TRACKING_URI, or the one in the current folder."""
    uri = store.tracking_uri()
    database = store.sqlite_file(uri)
    first = _sqlite(database) if database else _server(uri)
    if any(finding.status == "fail" for finding in first) or (database and not database.is_file()):
        return first
    return [*first, _schema(uri), _dead_runs()]


def _sqlite(database: Path) -> list[Finding]:
    if not database.is_file():
        remedy = "run where the runs were made, set MLFLOW_TRACKING_URI, or make a first run with `vb2 demo`"
        return [Finding("store", "note", f"{database}: not there yet", remedy)]
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=BUSY_SECONDS)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            mode = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except sqlite3.Error as error:
        remedy = f"if no process writes there, {MOVE_AWAY}"
        if "locked" in str(error):
            remedy = f"another process holds it: `fuser {database}` names it; stop it, or wait"
        return [Finding("store", "fail", f"{database}: {error}", remedy)]
    return [_tables(database, tables), _journal(database, mode)]


def _tables(database: Path, tables: set[str]) -> Finding:
    half = sorted(name for name in tables if name.startswith("_alembic_tmp_"))
    if half or not {"runs", "experiments"} <= tables:
        found = f"{database}: its first start or an upgrade was cut off ({', '.join(half) or 'tables are missing'})"
        return Finding("store", "fail", found, MOVE_AWAY)
    return Finding("store", "ok", str(database))


def _journal(database: Path, mode: str) -> Finding:
    if mode == "wal":
        return Finding("store: write-ahead logging", "ok", "on")
    remedy = f"`sqlite3 {database} 'PRAGMA journal_mode=WAL'` while nothing else uses it; `vb2 runs list` does so, too"
    return Finding("store: write-ahead logging", "warn", f"off ({mode}): processes wait for each other", remedy)


def _server(uri: str) -> list[Finding]:
    try:
        store.check_reachable(uri)
    except InputError as error:
        found, _, remedy = str(error).partition("; ")
        return [Finding("store", "fail", found, remedy)]
    return [Finding("store", "ok", uri)]


def _schema(uri: str) -> Finding:
    """Of a database: its tables against this MLflow's. Of a server: its MLflow against ours."""
    import mlflow

    name, ours = "store: schema", mlflow.__version__
    if uri.startswith("http"):
        theirs = store.server_version(uri)
        if theirs.split(".")[:2] == ours.split(".")[:2]:
            return Finding(name, "ok", f"server {theirs}, here {ours}")
        remedy = f"install the same MLflow on both sides: `pip install mlflow=={theirs}` here, or update the server"
        return Finding(name, "warn", f"server {theirs or 'does not tell its version'}, here {ours}", remedy)
    try:
        has, wants = store.schema_versions(uri)
    except Exception as error:
        return Finding(
            name, "fail", first_line(error), f"see that {uri.partition('@')[2] or uri} is an MLflow database"
        )
    if has == wants:
        return Finding(name, "ok", f"{has}, as MLflow {ours} wants it")
    remedy = f"`mlflow db upgrade {uri}` after a copy, if it is older; `pip install -U mlflow`, if it is newer"
    return Finding(name, "fail", f"{has}, but MLflow {ours} wants {wants}", remedy)


def _dead_runs() -> Finding:
    try:
        dead = find_dead_runs()
    except Exception as error:
        return Finding("store: unclosed runs", "fail", first_line(error), "fix the store's schema first")
    if not dead:
        return Finding("store: unclosed runs", "ok", "none")
    found = f"{len(dead)} RUNNING without a process: {', '.join(run.name for run in dead[:3])}"
    return Finding(
        "store: unclosed runs", "warn", found, "`vb2 runs gc` closes them; `vb2 ce CONFIG resume=RUN` resumes one"
    )
