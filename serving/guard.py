"""What every request passes on its way to the service: an ASGI middleware.

1. A request id, the client's own or a new one, goes through logs and back in `X-Request-ID`.
2. With VB2_API_KEY set (comma-separated for several keys), all but the probes require `Authorization: Bearer KEY`.
   A browser asks its user, who gives any name and the key as password; as it sends these by itself from then on, they
   count only for requests of this service's own page.
3. A body is taken in whole before anything looks at it, up to VB2_MAX_UPLOAD_MB and within VB2_UPLOAD_SECONDS; a form
   is checked (`serving.forms`), and nothing but forms reaches an endpoint.
4. More than VB2_MAX_REQUESTS at a time at the endpoints are refused with 429; each 429 and 503 says `Retry-After`.
5. An exception becomes `{"error": ..., "request_id": ...}` with status 500; its trace stays in the log.

No CORS header is ever sent, so a browser lets no other site's page read an answer.
"""

import asyncio
import base64
import binascii
import hmac
import re
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from . import observe
from .answers import Refusal
from .forms import FormWatch
from .service_settings import Settings, read_settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PROBES = frozenset({"/livez", "/readyz", "/healthz"})
FORM = "multipart/form-data"
MEMORY = 1 << 20  # bytes of a body that are kept in memory; more go to a temporary file without a name
CHUNK = 1 << 18
REQUEST_ID = re.compile(r"[\w.:-]{1,64}")
ONCE = (b"authorization", b"content-type", b"content-length", b"transfer-encoding")


class Guard:
    """The middleware.

    Args:
        endpoints: path → fields that take files (`forms.file_fields`); forms are checked on these paths only.
        settings: default: from the environment.
    """

    def __init__(self, app: App, endpoints: Mapping[str, Collection[str]], settings: Settings | None = None) -> None:
        self.app = app
        self.endpoints = endpoints
        self.settings = settings or read_settings()
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if self.settings.trust_proxy and scope["type"] != "lifespan":
            scope = as_client_sent_it(scope)
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = _header(scope, b"x-request-id")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        answer = _Answer(send, request_id, self.settings.retry_after)
        method, path = scope["method"], scope["path"]
        with observe.request(answer.request_id, method, path, path in self.endpoints, lambda: answer.status):
            try:
                await self._admitted(scope, receive, answer.send)
            except asyncio.CancelledError:  # BentoML answers 504 in our place
                answer.status = answer.status or 504
                observe.failed("timeout")
                raise
            except Refusal as refusal:
                observe.failed(refusal.kind)
                await answer.refuse(refusal, scope, receive)
            except Exception:
                observe.failed("internal")
                observe.log.exception("unexpected")
                failure = Refusal(500, "an unexpected error; the server's log has the details")
                await answer.refuse(failure, scope, receive)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_head(scope)
        weight = int(scope["path"] in self.endpoints)  # the page's own files take no place
        if self._in_flight + weight > self.settings.max_requests:
            raise Refusal(429, "too many requests in flight; try again later")
        self._in_flight += weight
        try:
            with tempfile.SpooledTemporaryFile(max_size=MEMORY) as body:
                await self._take_in(scope, receive, body)
                await self.app(scope, _replay(body, receive), send)
        finally:
            self._in_flight -= weight

    def _check_head(self, scope: Scope) -> None:
        names = [name for name, _ in scope["headers"]]
        if any(names.count(name) > 1 for name in ONCE):
            raise Refusal(400, "a header that may appear once appears twice")
        if not self._authorised(scope):
            reason = "this service requires an API key: send `Authorization: Bearer KEY`"
            raise Refusal(401, reason, headers={"WWW-Authenticate": _challenge(scope)})
        if _header(scope, b"content-length").isdigit():
            self._check_size(int(_header(scope, b"content-length")))
        if scope["path"] in self.endpoints and scope["method"] == "POST":
            kind = _header(scope, b"content-type").partition(";")[0].strip()
            if kind not in (FORM, ""):
                raise Refusal(415, f"Content-Type {kind[:80]}: send a form, {FORM}, as curl -F does")

    def _authorised(self, scope: Scope) -> bool:
        if not self.settings.api_keys:
            return True
        given = _given_key(scope)
        return any([hmac.compare_digest(given, key.encode()) for key in self.settings.api_keys])

    def _check_size(self, size: int) -> None:
        if size > self.settings.upload_bytes:
            limit = f"{self.settings.max_upload_mb:g} MB"
            raise Refusal(413, f"the upload is larger than {limit}; cut the video or scale it down")

    async def _take_in(self, scope: Scope, receive: Receive, body: Any) -> None:
        """Copy the request's body to `body` in time, checking it on the way."""
        try:
            async with asyncio.timeout(self.settings.upload_seconds):
                await self._copy(scope, receive, body)
        except TimeoutError:
            limit = f"{self.settings.upload_seconds:g} s"
            raise Refusal(408, f"the upload took longer than {limit}; send a smaller file") from None
        body.seek(0)

    async def _copy(self, scope: Scope, receive: Receive, body: Any) -> None:
        content_type, fields = _header(scope, b"content-type"), self.endpoints.get(scope["path"])
        form = fields is not None and content_type.lower().startswith(FORM)
        watch = FormWatch(content_type, fields or ()) if form else None
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the upload broke off", kind="disconnected")
            chunk = message.get("body", b"")
            size, more = size + len(chunk), message.get("more_body", False)
            self._check_size(size)
            if watch:
                watch.feed(chunk)
            body.write(chunk)
        if watch:
            watch.finish()


class _Answer:
    """The response: our headers on everything sent, and a refusal as JSON if nothing has been sent yet."""

    def __init__(self, send: Send, request_id: str, retry_after: int) -> None:
        self._send, self.request_id, self._retry_after = send, request_id, retry_after
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ())]
            if self.status in (429, 503) and b"retry-after" not in {name.lower() for name, _ in headers}:
                headers.append((b"retry-after", str(self._retry_after).encode()))
            ours = (b"x-request-id", self.request_id.encode()), (b"x-content-type-options", b"nosniff")
            message = {**message, "headers": [*headers, *ours]}
        await self._send(message)

    async def refuse(self, refusal: Refusal, scope: Scope, receive: Receive) -> None:
        if not self.status:  # otherwise the answer has begun: all that can be done is to break it off
            problem = {"error": refusal.reason, "request_id": self.request_id}
            await JSONResponse(problem, refusal.status, refusal.headers)(scope, receive, self.send)


def same_origin(scope: Scope) -> bool:
    """False for a request that another site's page sends; one without an Origin is not a browser's POST."""
    origin = urlsplit(_header(scope, b"origin"))
    if origin == urlsplit(""):
        return True
    return origin.netloc == _header(scope, b"host") and origin.scheme == scope.get("public_scheme", origin.scheme)


def as_client_sent_it(scope: Scope) -> Scope:
    """Undo what a proxy in front changed, by its X-Forwarded-Host, -Proto and -Prefix headers.

    A prefix that the proxy left in the path is removed. Nothing in the service answers with an absolute address.
    """
    host, scheme, prefix = (
        _header(scope, b"x-forwarded-" + name).partition(",")[0].strip() for name in (b"host", b"proto", b"prefix")
    )
    changed = dict(scope)
    if host:
        changed["headers"] = [*((k, v) for k, v in scope["headers"] if k != b"host"), (b"host", host.encode("latin-1"))]
    if scheme:
        changed["public_scheme"] = scheme
    if (prefix := prefix.rstrip("/")) and f"{scope['path']}/".startswith(f"{prefix}/"):
        changed["path"] = scope["path"].removeprefix(prefix) or "/"
    return changed


def _given_key(scope: Scope) -> bytes:
    """The key that a client sent; empty, which no key is, where it sent none."""
    scheme, _, given = _header(scope, b"authorization").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode("latin-1")
    if scheme.lower() == "basic" and same_origin(scope):
        with suppress(binascii.Error):
            return base64.b64decode(given.strip()).partition(b":")[2]
    return b""


def _challenge(scope: Scope) -> str:
    """Make a browser ask its user for the key; a program is told of the header only."""
    in_browser = "text/html" in _header(scope, b"accept") or _header(scope, b"sec-fetch-site") == "same-origin"
    return 'Basic realm="VideoBLIP2", charset="UTF-8"' if in_browser else "Bearer"


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _replay(body: Any, receive: Receive) -> Receive:
    """The body again, then the connection's own messages."""
    over = False

    async def replayed() -> Message:
        nonlocal over
        if over:
            return await receive()
        chunk = body.read(CHUNK)
        over = len(chunk) < CHUNK
        return {"type": "http.request", "body": chunk, "more_body": not over}

    return replayed
