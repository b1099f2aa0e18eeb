"""How to start the service (`bentoml serve`) from any folder, from a checkout as well as from an installed package."""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from videoblip2.files import shipped

SERVING = shipped("serving")
INSTALLED = SERVING.parent == Path(__file__).parent
SERVICE = f"{'videoblip2.serving' if INSTALLED else 'serving'}.service:VideoBlip2Service"


def server_command(host: str, port: int) -> list[str]:
    """The command line of the service."""
    return [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]


def server_environment(settings: Mapping[str, object]) -> dict[str, str]:
    """This process's environment with `settings`; those that are None change nothing."""
    given = {name: str(value) for name, value in settings.items() if value is not None}
    folders = [] if INSTALLED else [str(SERVING.parent)]
    path = os.pathsep.join(filter(None, [*folders, os.environ.get("PYTHONPATH")]))
    return {"BENTOML_DO_NOT_TRACK": "True", **os.environ, **({"PYTHONPATH": path} if path else {}), **given}


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
