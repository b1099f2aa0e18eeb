"""`vb2 serve`: `bentoml serve` with the service's usual settings as options."""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(serve)


def serve(
    model: Annotated[
        str | None, typer.Option(help="MODEL to serve and follow; default models:/videoblip2@champion.")
    ] = None,
    pin: Annotated[int | None, typer.Option(min=1, help="A fixed version, whatever is champion.")] = None,
    shadow: Annotated[
        str | None, typer.Option(help="A MODEL that captions along: logged and compared, never answered.")
    ] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 = every network of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 3000,
) -> None:
    """Serve the champion over HTTP; a promotion or rollback is followed within seconds."""
    from videoblip2.config import InputError

    if not Path("bentofile.yaml").is_file():
        raise InputError(f"{Path.cwd()}: holds no bentofile.yaml; run `vb2 serve` in the root of the repository")
    refuse_port_in_use(host, port)
    home = os.environ.get("BENTOML_HOME") or str(Path.home() / "bentoml")
    own = os.path.join(home, "vb2-serve", str(port))  # BentoML empties its home's metrics whenever a server starts
    settings = {"VB2_MODEL": model, "VB2_PIN": pin, "VB2_SHADOW": shadow, "BENTOML_HOME": own}
    os.execve(sys.executable, server_command(host, port), with_settings(os.environ, settings))


def refuse_port_in_use(host: str, port: int) -> None:
    """Raise InputError where nobody can listen at this address."""
    from videoblip2.config import InputError

    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(found[0], socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just ended is no obstacle
            listener.bind(found[4])
    except OSError as error:
        raise InputError(f"{host}:{port}: cannot be listened at ({error.strerror}); give another --port") from error


def server_command(host: str, port: int) -> list[str]:
    """The command line that takes this process's place."""
    return [sys.executable, "-m", "bentoml", "serve", "--host", host, "--port", str(port)]


def with_settings(environment: Mapping[str, str], settings: Mapping[str, object]) -> dict[str, str]:
    """The environment with what was given; an option goes before a variable, one left out changes nothing."""
    given = {name: str(value) for name, value in settings.items() if value is not None}
    return {"BENTOML_DO_NOT_TRACK": "True", **environment, **given}
