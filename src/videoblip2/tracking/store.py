"""The tracking store: where it is, its first start under a lock, and an MLflow client on it.

Several processes that meet a fresh sqlite file at once corrupt it for good, so the tables are made under a file lock.
Write-ahead logging, which the file remembers, lets writers pass each other and marks a finished first start.
"""

import logging
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from videoblip2.config import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_DATABASE = "mlflow.db"
SQLITE = "sqlite:///"
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or `mlflow.db` of the current folder. A sqlite path comes back absolute: MLflow keeps
    its stores by address, so a relative one would mean another file after a chdir."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DEFAULT_DATABASE}"
    database = sqlite_file(uri)
    return f"{SQLITE}{database}" if database else uri


def sqlite_file(uri: str) -> Path | None:
    """Return the file behind a `sqlite:///` address, absolute; None for any other store."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def artifact_root(uri: str) -> Path | None:
    """Return the artifact folder beside a sqlite store; None where the store has its own idea of the place."""
    database = sqlite_file(uri)
    return database.parent / "mlruns" if database else None


def connect(create: bool = False) -> "MlflowClient":
    """Return a client on the store; with `create` a missing sqlite store is made, without it that is an InputError."""
    for quiet, value in QUIET.items():
        os.environ.setdefault(quiet, value)
    uri = tracking_uri()
    database = sqlite_file(uri)
    if database is not None:
        if not create and not database.is_file():
            raise InputError(
                f"{database}: no MLflow store there; run from the folder where the runs were made, "
                "set MLFLOW_TRACKING_URI, or make a first run with `vb2 demo`"
            )
        _first_start(uri, database)
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient()


def _first_start(uri: str, database: Path) -> None:
    """Make the tables once, by one process; the others wait. A store that is ready costs one look at the file."""
    if database.is_file() and _journal_mode(database) == "wal":
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        if database.is_file() and _journal_mode(database) == "wal":
            return
        _create_tables(uri, database)
        with suppress(sqlite3.OperationalError):  # a reader holds the file: the next start sets it
            _journal_mode(database, "wal")


def _create_tables(uri: str, database: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    SqlAlchemyStore(uri, str(artifact_root(uri))).engine.dispose()


def _journal_mode(database: Path, wanted: str = "") -> str:
    connection = sqlite3.connect(database, timeout=60)
    try:
        return str(connection.execute("PRAGMA journal_mode" + (f"={wanted}" if wanted else "")).fetchone()[0])
    finally:
        connection.close()
