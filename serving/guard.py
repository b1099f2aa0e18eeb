"""What every request passes on its way to the service: an ASGI middleware.

1. A request id, the client's own or a new one, goes through logs and back in `X-Request-ID`.
2. With VB2_API_KEY set (comma-separated for several keys), all but the probes require `Authorization: Bearer KEY`.
   A browser asks its user, who gives any name and the key as password; since it then sends these automatically, they
   count only for requests from this service's own page.
3. A body is read up to VB2_MAX_UPLOAD_MB and within VB2_UPLOAD_SECONDS; nothing but whole forms reaches an endpoint.
4. Requests beyond VB2_MAX_REQUESTS in flight are refused with 429 and a `Retry-After`.
5. An exception becomes `{"error": ..., "request_id": ...}` with status 500; its trace stays in the log.

No CORS header is ever sent, so a browser lets no other site's page read an answer.
"""

import asyncio
import base64
import hmac
import re
import uuid
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlsplit

from python_multipart.multipart import parse_options_header

from . import observe
from .messages import Refusal
from .service_settings import MB, Settings, read_settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PROBES = frozenset({"/livez", "/readyz", "/healthz"})
FORM = b"multipart/form-data"
MAX_BOUNDARY = 200  # bytes
REQUEST_ID = re.compile(r"[\w.:-]{1,64}")
ONCE = (b"authorization", b"content-type", b"content-length", b"transfer-encoding")


class Guard:
    """The middleware. endpoints: paths that take forms, and nothing else."""

    def __init__(self, app: App, endpoints: Collection[str], settings: Settings | None = None) -> None:
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
            return
        given = _header(scope, b"x-request-id")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        answer = _Answer(send, request_id)
        method, path = scope["method"], scope["path"]
        with observe.request(request_id, method, path, path in self.endpoints, lambda: answer.status):
            try:
                await self._admitted(scope, receive, answer.send)
            except asyncio.CancelledError:  # BentoML answers 504 in our place
                answer.status = answer.status or 504
                observe.failed("timeout")
                raise
            except Exception as error:
                refusal = error
                if not isinstance(refusal, Refusal):
                    observe.log.exception("unexpected")
                    refusal = Refusal(500, "an unexpected error; the server's log has the details")
                observe.failed(refusal.kind)
                if not answer.status:  # otherwise the answer has begun and can only be cut off
                    await refusal.response(request_id)(scope, receive, answer.send)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(receive, self.settings)
        self._check_head(scope, body)
        weight = int(scope["path"] in self.endpoints)  # the page's own files take no place
        if self._in_flight + weight > self.settings.max_requests:
            raise Refusal(429, "too many requests in flight; try again later", self.settings.retry_after)
        self._in_flight += weight
        try:
            await self.app(scope, body.receive, send)
        finally:
            self._in_flight -= weight

    def _check_head(self, scope: Scope, body: "_Body") -> None:
        names = [name for name, _ in scope["headers"]]
        if any(names.count(name) > 1 for name in ONCE):
            raise Refusal(400, "a header that may appear once appears twice")
        name = scope["path"].rstrip("/").rpartition("/")[2]
        if name and scope["path"].endswith("/"):  # otherwise the router redirects, to an address without the prefix
            raise Refusal(307, "no slash at the end of this address", headers={"Location": f"../{quote(name)}"})
        if not scope["path"]:  # the page's addresses are relative to its folder
            folder = scope["prefix"].rpartition("/")[2]
            raise Refusal(307, "a slash at the end of this address", headers={"Location": f"{quote(folder)}/"})
        given, keys = _given_key(scope), self.settings.api_keys
        if keys and not any([hmac.compare_digest(given, key.encode()) for key in keys]):
            # A browser is prompted to ask its user for the key; a program is only told about the header.
            browser = "text/html" in _header(scope, b"accept") or _header(scope, b"sec-fetch-site") == "same-origin"
            challenge = 'Basic realm="VideoBLIP2", charset="UTF-8"' if browser else "Bearer"
            reason = "this service requires an API key: send `Authorization: Bearer KEY`"
            raise Refusal(401, reason, headers={"WWW-Authenticate": challenge})
        if (length := _header(scope, b"content-length")).isdecimal():
            body.check_size(int(length))
        if scope["path"] in self.endpoints and scope["method"] == "POST":
            kind, options = parse_options_header(_header(scope, b"content-type"))
            if kind not in (FORM, b"") or options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
                sent = _header(scope, b"content-type")[:80]
                raise Refusal(415, f"Content-Type {sent}: send {FORM.decode()} in UTF-8, as curl -F does")
            body.boundary = options.get(b"boundary", b"")
            if kind and not 0 < len(body.boundary) <= MAX_BOUNDARY:
                raise Refusal(400, "the form has no boundary in its Content-Type; let your HTTP client set that header")


class _Body:
    """A request's body as it comes in, up to its limits of size and time.

    boundary: of a form, which has to end with it.
    """

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self.boundary = b""
        self._receive, self._settings = receive, settings
        self._deadline = asyncio.get_running_loop().time() + settings.upload_seconds
        self._size, self._end, self._whole = 0, b"", False

    def check_size(self, size: int) -> None:
        """Raise Refusal 413 if this many bytes are too many."""
        if size > self._settings.max_upload_mb * MB:
            limit = f"{self._settings.max_upload_mb:g} MB"
            raise Refusal(413, f"the upload is larger than {limit}; cut the video or scale it down")

    async def receive(self) -> Message:
        """The next message; after the body, the connection's own."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            limit = f"{self._settings.upload_seconds:g} s"
            raise Refusal(408, f"the upload took longer than {limit}; send a smaller file") from None
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the upload was interrupted", kind="disconnected")
        chunk = message.get("body", b"")
        self._size += len(chunk)
        self.check_size(self._size)
        self._end = (self._end + chunk)[-MAX_BOUNDARY - 8 :]
        self._whole = not message.get("more_body", False)
        if self._whole and self.boundary and not self._end.rstrip().endswith(b"--" + self.boundary + b"--"):
            raise Refusal(400, "the form ends before its last boundary; send it again")
        return message


class _Answer:
    """The response, with our headers on everything sent. status: 0 until it begins."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id = send, request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            ours = (b"x-request-id", self._request_id.encode()), (b"x-content-type-options", b"nosniff")
            message = {**message, "headers": [*message.get("headers", ()), *ours]}
        await self._send(message)


def as_client_sent_it(scope: Scope) -> Scope:
    """Undo what a proxy changed: its X-Forwarded-Host, -Port and -Proto, and a -Prefix that it left in the path."""
    names = (b"host", b"port", b"proto", b"prefix")
    host, port, scheme, prefix = (_header(scope, b"x-forwarded-" + name).partition(",")[0].strip() for name in names)
    changed = {**scope, "public_scheme": scheme}
    if port:
        host = re.sub(r":\d*$", "", host or _header(scope, b"host")) + f":{port}"
    if host:
        changed["headers"] = [*((k, v) for k, v in scope["headers"] if k != b"host"), (b"host", host.encode("latin-1"))]
    # A POST to the prefix alone is one to an endpoint of that name, such as /captions, whose prefix is removed already.
    alone = scope["path"] == (prefix := prefix.rstrip("/"))
    if prefix and (scope["path"].startswith(f"{prefix}/") or (alone and scope.get("method") == "GET")):
        changed["path"], changed["prefix"] = scope["path"].removeprefix(prefix), prefix
    return changed


def _given_key(scope: Scope) -> bytes:
    """The key that a client sent; empty, which no key is, where it sent none."""
    scheme, _, given = _header(scope, b"authorization").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode("latin-1")
    with suppress(ValueError):  # an Origin that is no address, or what is not base64
        if scheme.lower() == "basic" and _of_own_page(scope):
            return base64.b64decode(given.strip()).partition(b":")[2]
    return b""


def _of_own_page(scope: Scope) -> bool:
    """False for what another site's page sends; what has no Origin is not a browser's POST."""
    origin = _header(scope, b"origin")
    if not origin or _header(scope, b"sec-fetch-site") == "same-origin":
        return True
    theirs = urlsplit(origin)
    ours = urlsplit(f"{scope.get('public_scheme') or theirs.scheme}://{_header(scope, b'host')}")
    pages = [
        (page.scheme, page.hostname, page.port or {"http": 80, "https": 443}.get(page.scheme))
        for page in (theirs, ours)
    ]
    return bool(theirs.hostname) and pages[0] == pages[1]


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")
