"""Where a study is stored: a journal file (one machine or a shared disk), a database, or a gRPC proxy to one.

A journal file has no races and needs no server. Its lock is a link beside it; the lock of a killed process is broken
after 30 s, with a warning.
"""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend

from videoblip2.config import InputError
from videoblip2.tune.plan import Plan
from videoblip2.tune.study import quiet

SQLITE = "sqlite:///"
LOCK_SECONDS = 60.0
GRPC = "grpc://"
FORMS = "give a file, sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME or grpc://HOST:PORT"


def address(plan: Plan) -> str:
    """The storage as the user named it, or the study's own journal file."""
    return plan.tuning.storage or str(plan.folder / "study.journal")


def open_storage(place: str) -> Any:
    """Open a storage, creating it if necessary. Raises InputError where it cannot be reached."""
    scheme = place.partition("://")[0] if "://" in place else "file"
    try:
        if scheme == "file":
            return _journal(Path(place))
        if scheme == "grpc":
            return _proxy(*host_and_port(place.removeprefix(GRPC)))
        return _database(place)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"storage {hidden(place)}: {' '.join(str(error).split())[:300]}; {FORMS}") from error


def hidden(place: str) -> str:
    """An address without its password."""
    if "@" not in place or "://" not in place:
        return place
    scheme, rest = place.split("://", 1)
    user, host = rest.rsplit("@", 1)
    return f"{scheme}://{user.partition(':')[0]}@{host}"


@contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Turn the error of a locked, full or missing storage into one line; the study can be resumed."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise InputError(
            f"storage {hidden(place)}: {reason}; free it, then run the same command again to resume the study"
        ) from error


def _journal(path: Path) -> Any:
    if path.is_dir():
        raise InputError(f"storage {path}: is a folder; {FORMS}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not _is_journal(path):  # Optuna would append to it
        raise InputError(f"storage {path}: not a study's journal; {FORMS}")
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def _is_journal(path: Path) -> bool:
    with path.open("rb") as file:
        line = file.readline()
    try:
        return not line or "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False


def _database(url: str) -> Any:
    """A database; one process creates sqlite's tables, since several at once corrupt them."""
    if not url.startswith(SQLITE):
        return optuna.storages.RDBStorage(with_driver(url), engine_kwargs={"pool_pre_ping": True})
    file = Path(url.removeprefix(SQLITE))
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})


def with_driver(url: str) -> str:
    """Name the installed driver: SQLAlchemy 2.1 reads `postgresql://` as psycopg 3 even if only psycopg 2 is there."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgres", "postgresql"):
        return url
    drivers = [name for name in ("psycopg", "psycopg2") if importlib.util.find_spec(name)]
    if not drivers:
        raise InputError(f"storage {hidden(url)}: no driver for it; pip install 'videoblip2[postgres]'")
    return f"postgresql+{drivers[0]}://{rest}"


def _proxy(host: str, port: int) -> Any:
    with quiet():
        storage = optuna.storages.GrpcStorageProxy(host=host, port=port)
        storage.wait_server_ready(timeout=20)
    return storage


def host_and_port(text: str) -> tuple[str, int]:
    """`127.0.0.1:13000` → ("127.0.0.1", 13000)."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal():
        raise InputError(f"address {text!r}: not of the form HOST:PORT, such as 127.0.0.1:13000")
    return host, int(port)


def serve(place: str, listen: str) -> None:
    """Serve a database at `grpc://HOST:PORT` until the process ends."""
    if "://" not in place or place.startswith(GRPC):
        raise InputError(
            f"storage {place}: only a database can be served; give storage=sqlite:///FILE or postgresql://…"
        )
    host, port = host_and_port(listen)
    with quiet():
        optuna.storages.run_grpc_proxy_server(open_storage(place), host=host, port=port)
