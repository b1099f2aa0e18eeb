"""`vb2 serve`: `bentoml serve` with the service's usual settings as options."""

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(serve)


def serve(
    model: Annotated[
        str | None, typer.Option(help="MODEL to serve; an alias is followed. Default: models:/videoblip2@champion.")
    ] = None,
    pin: Annotated[int | None, typer.Option(min=1, help="Serve this version, whichever is the champion.")] = None,
    shadow: Annotated[
        str | None, typer.Option(help="MODEL that runs in shadow: logged and compared, never returned.")
    ] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 listens on every network of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 3000,
) -> None:
    """Serve the champion over HTTP; promotions and rollbacks take effect within seconds.

    \b
    Examples:
      vb2 serve
      vb2 serve --model runs/demo/runs/scst/best --port 8080
    """
    from videoblip2.server import server_command, server_environment

    refuse_port_in_use(host, port)
    home = os.environ.get("BENTOML_HOME") or str(Path.home() / "bentoml")
    own = os.path.join(home, "vb2-serve", str(port))  # BentoML empties its home's metrics whenever a server starts
    settings = {"VB2_MODEL": model, "VB2_PIN": pin, "VB2_SHADOW": shadow, "BENTOML_HOME": own}
    os.execve(sys.executable, server_command(host, port), server_environment(settings))


def refuse_port_in_use(host: str, port: int) -> None:
    """Raise InputError if the address cannot be bound."""
    from videoblip2.errors import InputError

    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(found[0], socket.SOCK_STREAM) as listener:
            listener.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # a server that has just stopped does not block it
            listener.bind(found[4])
    except OSError as error:
        raise InputError(f"{host}:{port}: cannot listen there ({error.strerror}); give another --port") from error
