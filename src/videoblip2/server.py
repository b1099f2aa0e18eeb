"""How to start the service (`bentoml serve`) from any folder, from a checkout as well as from an installed package."""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from videoblip2.files import shipped


def server_command(host: str, port: int) -> list[str]:
    """The command line of the service."""
    return [sys.executable, "-m", "bentoml", "serve", _service()[0], "--host", host, "--port", str(port)]


def server_environment(settings: Mapping[str, object]) -> dict[str, str]:
    """This process's environment with `settings`; those that are None change nothing."""
    given = {name: str(value) for name, value in settings.items() if value is not None}
    path = os.pathsep.join(filter(None, [_service()[1], os.environ.get("PYTHONPATH")]))
    return {"BENTOML_DO_NOT_TRACK": "True", **os.environ, **({"PYTHONPATH": path} if path else {}), **given}


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _service() -> tuple[str, str]:
    """Import path of the service, and the folder to import it from: a checkout's root, "" where it is installed."""
    folder = shipped("serving")
    installed = folder.parent == Path(__file__).parent
    name = "videoblip2.serving" if installed else "serving"
    return f"{name}.service:VideoBlip2Service", "" if installed else str(folder.parent)
