"""The tracking store: where it is, its first start under a lock, and an MLflow client on it.

Several processes that open a fresh sqlite file at once corrupt it for good, so the tables are created under a file
lock. Write-ahead logging, which the file remembers, lets readers and writers run at once and marks a finished start.
"""

import logging
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from videoblip2.config import InputError
from videoblip2.errors import first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_DATABASE = "mlflow.db"
SQLITE = "sqlite:///"
REACH_SECONDS = 10
FORBIDDEN = 403
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
    """Return a client on the store. A missing sqlite store is created with `create`, else it raises InputError."""
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
    elif uri.startswith("http"):
        check_reachable(uri)
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient()


def has_artifact(client: "MlflowClient", run_id: str, path: str) -> bool:
    """Whether a run has an artifact of this name at its root."""
    return path in [artifact.path for artifact in client.list_artifacts(run_id)]


def check_reachable(uri: str) -> None:
    """Check that a tracking server answers. Raises InputError within seconds if it does not."""
    from mlflow.tracking._tracking_service.utils import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    start = "see that it is running, correct MLFLOW_TRACKING_URI, or unset it for mlflow.db of this folder"
    try:
        answer = http_request(get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=REACH_SECONDS)
    except Exception as error:
        raise InputError(f"{uri}: no tracking server answers ({first_line(error)}); {start}") from error
    if answer.status_code == FORBIDDEN:
        raise InputError(
            f"{uri}: the server refuses ({answer.text.strip()[:100]}); see its --allowed-hosts and your login"
        )


def server_version(uri: str) -> str:
    """MLflow's version on a tracking server; empty if the server does not say."""
    from mlflow.tracking._tracking_service.utils import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), "/version", "GET", max_retries=0, timeout=REACH_SECONDS)
    return answer.text.strip() if answer.status_code == 200 else ""


def schema_versions(uri: str) -> tuple[str | None, str]:
    """The schema revision that a database has and the one that the installed MLflow wants."""
    from mlflow.store.db.utils import _get_latest_schema_revision, _get_schema_version
    from sqlalchemy import create_engine

    engine = create_engine(uri)
    try:
        return _get_schema_version(engine), _get_latest_schema_revision()
    finally:
        engine.dispose()


def _first_start(uri: str, database: Path) -> None:
    """Create the tables once, in one process, while the others wait. A ready store costs one look at the file."""
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
