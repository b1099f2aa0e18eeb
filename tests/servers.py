"""Real servers on this machine for tests: PostgreSQL, an MLflow server on it, and a wire between that can be cut."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path


def postgres_program(name: str) -> str | None:
    """`postgres` or `initdb`: on PATH, or where Debian's package puts it."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(places[-1]) if places else None)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def postgres(port: int) -> Iterator[None]:
    """An empty database in a temporary folder. As root, which PostgreSQL refuses, `nobody` runs it."""
    user = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="vb2-postgres-", dir="/tmp"))
    if user:
        shutil.chown(folder, "nobody")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
    make = [postgres_program("initdb"), "-D", folder / "data", "-U", "vb2", "-A", "trust", "--no-sync", "-E", "UTF8"]
    settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"]
    serve = [postgres_program("postgres"), "-D", folder / "data", *(word for s in settings for word in ("-c", s))]
    try:
        subprocess.run(make, check=True, **quiet)
        with running(serve, **quiet) as process:
            wait_until(lambda: _accepts(port), process, 120)
            yield
    finally:
        shutil.rmtree(folder)


@contextmanager
def mlflow_server(artifacts: Path, log: Path) -> Iterator[int]:
    """MLflow's server on a database, which hands artifacts through to a folder; its port.

    As `mlflow server` starts it, but for the command, which imports everything once more first; meanwhile the database
    starts, too.
    """
    port, database_port = free_port(), free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "mlflow.server.fastapi_app:app",
    ]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "_MLFLOW_SERVER_FILE_STORE": f"postgresql+psycopg2://vb2@127.0.0.1:{database_port}/postgres",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(artifacts),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (
        log.open("w") as file,
        running(command, stdout=file, stderr=file, cwd=artifacts, env=environment) as process,
        postgres(database_port),
    ):
        wait_until(lambda: _healthy(port), process, 300)
        yield port


@contextmanager
def running(command: list[object], **options: object) -> Iterator[subprocess.Popen]:
    """A process in its own group, which ends with the block."""
    process = subprocess.Popen([str(word) for word in command], start_new_session=True, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9 if "uvicorn" in command else 2)  # for PostgreSQL 2 is a fast shutdown
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


class Wire:
    """Passes connections on to a port on this machine; while it is cut, it refuses and drops them."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def join(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        for end in (self._listener, *self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open = []

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self._open += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=_pour, args=ends, daemon=True).start()


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline, f"not ready after {seconds} s"
        time.sleep(0.1)


def _accepts(port: int) -> bool:
    import psycopg2

    try:
        psycopg2.connect(host="127.0.0.1", port=port, user="vb2", dbname="postgres").close()
    except psycopg2.OperationalError:
        return False
    return True


def _healthy(port: int) -> bool:
    """The first question that is answered makes the tables."""
    try:
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
        with urllib.request.urlopen(address, timeout=200) as answer:
            return answer.status == 200
    except OSError:
        return False
