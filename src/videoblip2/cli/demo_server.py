"""Start `bentoml serve` beside the demo on a free loopback port, ask it for a caption, stop it."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videoblip2.config import InputError

START_SECONDS = 120


@contextmanager
def served_captions(say: Callable[[str], None]) -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Yield a function: media file → the service's answer; it waits until the server is ready."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as log:
        # A home of its own: BentoML empties the metrics there, another server's perhaps, when a server starts.
        environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": home}
        command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            yield lambda video: _ask(server, port, video, log, say)
        finally:
            server.terminate()
            server.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ask(
    server: "subprocess.Popen[bytes]", port: int, video: Path, log: Any, say: Callable[[str], None]
) -> dict[str, Any]:
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    while not _ready(address):
        if server.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise InputError(f"bentoml serve did not start: {log.read().decode(errors='replace').strip()[-400:]}")
        time.sleep(0.2)
    say(f"bentoml serve is ready; uploading {video.name}")
    request = urllib.request.Request(f"{address}/caption", data=_multipart(video), method="POST")
    request.add_header("Content-Type", "multipart/form-data; boundary=vb2demo")
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: dict[str, Any] = json.load(answer)
    return content


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _multipart(video: Path) -> bytes:
    head = (
        f'--vb2demo\r\nContent-Disposition: form-data; name="video"; filename="{video.name}"\r\n'
        "Content-Type: video/mp4\r\n\r\n"
    )
    return head.encode() + video.read_bytes() + b"\r\n--vb2demo--\r\n"
