"""ASGI middleware in front of the API: one list, outermost last."""

import json
from typing import Any

from serving.service_settings import read_settings

Scope = dict[str, Any]


class Gate:
    """Lets a bounded number of POST requests in; one more gets 429 before its body is read."""

    def __init__(self, app: Any) -> None:
        self.app, self.limit, self.inside = app, read_settings().max_waiting, 0

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self.inside >= self.limit:
            await _refuse(send, 429, f"{self.limit} requests are being answered; come back in 1 s", retry_after=1)
            return
        self.inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= 1


async def _refuse(send: Any, status: int, reason: str, retry_after: int) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(retry_after).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
