"""A server beside the demo: start it, ask it for a caption, stop it."""

import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from videoblip2.config import InputError
from videoblip2.server import free_port, server_command, server_environment

START_SECONDS = 120
BOUNDARY = "vb2demo"


@dataclass(frozen=True)
class ServedCaption:
    """What the service answered."""

    caption: str
    model_version: str


@contextmanager
def served_captions() -> Iterator[Callable[[Path], ServedCaption]]:
    """Yield a function from a media file to the service's answer; it waits until the server is ready."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as log:
        # BentoML deletes the metrics in its home, perhaps another server's, when a server starts.
        environment = server_environment({"BENTOML_HOME": home})
        server = subprocess.Popen(server_command("127.0.0.1", port), stdout=log, stderr=log, env=environment)
        try:
            yield lambda video: _ask(server, f"http://127.0.0.1:{port}", video, log)
        finally:
            server.terminate()
            server.wait(timeout=30)


def _ask(server: "subprocess.Popen[bytes]", address: str, video: Path, log: IO[bytes]) -> ServedCaption:
    deadline = time.monotonic() + START_SECONDS
    while not _ready(address):
        if server.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise InputError(f"bentoml serve did not start: {log.read().decode(errors='replace').strip()[-400:]}")
        time.sleep(0.2)
    request = urllib.request.Request(f"{address}/caption", data=_multipart(video), method="POST")
    request.add_header("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        content = json.load(answer)
    return ServedCaption(content["caption"], content["model_version"])


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _multipart(video: Path) -> bytes:
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="video"; filename="{video.name}"\r\n'
        "Content-Type: video/mp4\r\n\r\n"
    )
    return head.encode() + video.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
