"""What may go from a browser to Gradio, which has many more doors than the page needs.

The routes are named in `ROUTES`; whatever is not among them never reaches Gradio. Of these:
1. An event names files only as Gradio's own upload put them into the page's folder: no address, no other path.
2. `file=` gives what lies in that folder, and nothing else.
3. A POST comes from this page: another site's has another Origin. No CORS header leaves.
4. The page may fetch nothing from elsewhere (Content-Security-Policy).
"""

import json
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.responses import JSONResponse

from . import observe

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

UPLOAD, JOIN, FILE = "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/file="
TOO_MUCH = "/static/ffmpeg/"  # 30 MB for cutting a clip in the browser
ROUTES = {
    "GET": (
        "/config",
        "/theme.css",
        "/gradio_api/theme.css",
        "/favicon.ico",
        "/manifest.json",
        "/assets/{path:path}",
        "/static/{path:path}",
        "/svelte/{path:path}",
        "/gradio_api/queue/data",
        "/gradio_api/upload_progress",
        FILE + "{path:path}",
    ),
    "POST": (UPLOAD, JOIN, "/gradio_api/cancel", "/gradio_api/reset"),
}
EVENT_BYTES = 1 << 16  # of an event: a question, and where the clip lies
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'"
)
HEADERS = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]


class Gate:
    """An ASGI app in front of Gradio's.

    Args:
        folder: where uploads lie, and nothing else.
        most_bytes: of uploads at a time, and `most_seconds` of each; the oldest go first.
    """

    def __init__(self, app: App, folder: Path, most_bytes: int, most_seconds: float) -> None:
        self._app, self.folder = app, folder.resolve()
        self._most_bytes, self._most_seconds = most_bytes, most_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request to one of the `ROUTES`."""
        path, post = scope["path"], scope["method"] == "POST"
        if post and not same_origin(scope):
            await _refuse(403, "this comes from another site's page", scope, receive, send)
        elif path.startswith(TOO_MUCH):
            await _refuse(404, "not part of this page", scope, receive, send)
        elif path.startswith(FILE) and not self._ours(unquote(path[len(FILE) :])):
            await _refuse(403, "no file of this page", scope, receive, send)
        elif post and path == JOIN:
            await self._event(scope, receive, send)
        else:
            if path == UPLOAD:
                sweep(self.folder, self._most_bytes, self._most_seconds)
            await self._pass(scope, receive, send)

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            event = json.loads(await _body(receive))
            for file in _files(event):
                file.pop("url", None)
                if not (isinstance(file["path"], str) and self._ours(file["path"])):
                    raise ValueError("a clip is dropped on the page; an address or a path is not opened")
        except (ValueError, RecursionError) as error:
            reason = str(error) if type(error) is ValueError else "the event is no JSON that this page sends"
            await _refuse(400, reason, scope, receive, send)
            return
        await self._asked(scope, _said(json.dumps(event).encode(), receive), send)

    async def _asked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an event on. Gradio fails with KeyError on one that it does not know: the sender's mistake (400).

        Whatever else it fails on is ours, and left to the guard.
        """
        failed = False

        async def sent(message: Message) -> None:
            nonlocal failed
            failed = failed or (message["type"] == "http.response.start" and message["status"] == 500)
            if not failed:
                await send(message)

        try:
            await self._pass(scope, receive, sent)
        except LookupError:
            if not failed:
                raise
            observe.log.warning("event refused", exc_info=True)
            await _refuse(400, "no event of this page", scope, receive, send)
        else:
            if failed:
                raise RuntimeError("Gradio answered an event with 500 and did not say why")

    def _ours(self, path: str) -> bool:
        """Whether it is a file in the page's folder, links followed."""
        try:
            found = Path(path).resolve()
            return found.is_file() and self.folder in found.parents
        except (OSError, ValueError):
            return False

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if not pair[0].lower().startswith(b"access-control-")]
                message = {**message, "headers": [*kept, *HEADERS]}
            await send(message)

        ours = {key: value for key, value in scope.items() if key not in ("path_params", "endpoint", "router", "app")}
        await self._app(ours, receive, sent)


def same_origin(scope: Scope) -> bool:
    """False for what another site's page sends; no Origin at all is no browser's POST."""
    headers = dict(scope["headers"])
    origin = headers.get(b"origin")
    return origin is None or urlsplit(origin).netloc == headers.get(b"host")


def sweep(folder: Path, most_bytes: int, most_seconds: float) -> None:
    """Delete uploads that are too old, and the oldest of those that are too much; empty folders go, too."""
    files = sorted((file for file in folder.rglob("*") if file.is_file()), key=_age)
    total = 0
    for file in files:
        total += file.stat().st_size
        if _age(file) > most_seconds or total > most_bytes:
            file.unlink(missing_ok=True)
    for sub in [sub for sub in folder.iterdir() if sub.is_dir() and not any(sub.iterdir())]:
        if _age(sub) > most_seconds:
            sub.rmdir()


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _files(content: Any) -> Iterator[dict[str, Any]]:
    """Everything in an event that Gradio would take for a file."""
    if isinstance(content, dict):
        if "path" in content:
            yield content
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from _files(part)


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > EVENT_BYTES:
            raise ValueError("the event is longer than a question and a clip's name")
    return body


def _said(body: bytes, receive: Receive) -> Receive:
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def said() -> Message:
        return next(messages, None) or await receive()

    return said


async def _refuse(status: int, reason: str, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"error": reason, "detail": reason}, status)(scope, receive, send)
