"""ASGI middleware that checks every request: key, size, time, form, and the number in flight.

A browser asks its user for the key, then sends it automatically; so the key only counts in requests from the service's
own page. No CORS header is ever sent, so browsers let no other site's page read an answer.
"""

import asyncio
import base64
import hmac
import re
import uuid
from collections.abc import Collection
from contextlib import suppress
from urllib.parse import quote, urlsplit

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import observe
from .messages import Refusal, refusal_of
from .service_settings import MB, Settings, read_settings

PROBES = frozenset({"/livez", "/readyz", "/healthz"})
FORM = b"multipart/form-data"
MAX_BOUNDARY = 200  # bytes
REQUEST_ID = re.compile(r"[\w.:-]{1,64}")
ONCE = ("authorization", "content-type", "content-length", "transfer-encoding")


class Guard:
    """The middleware. endpoints: paths that accept only forms."""

    def __init__(self, app: ASGIApp, endpoints: Collection[str], settings: Settings | None = None) -> None:
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
        given, status = Headers(scope=scope).get("x-request-id", ""), 0
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"], headers["X-Content-Type-Options"] = request_id, "nosniff"
            await send(message)

        method, path = scope["method"], scope["path"]
        with observe.request(request_id, method, path, path in self.endpoints, lambda: status):
            try:
                await self._admitted(scope, receive, answer)
            except asyncio.CancelledError:  # BentoML answers 504 in our place
                status = status or 504
                observe.failed("timeout")
                raise
            except Exception as error:
                refusal = refusal_of(error)
                observe.failed(refusal.kind)
                if not status:  # otherwise the response has started and can only be cut off
                    await refusal.response(request_id)(scope, receive, answer)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(receive, self.settings)
        self._check_head(scope, body)
        weight = int(scope["path"] in self.endpoints)  # the page's own files do not count
        if self._in_flight + weight > self.settings.max_requests:
            raise Refusal(429, "too many requests in flight; try again later", self.settings.retry_after)
        self._in_flight += weight
        try:
            await self.app(scope, body.receive, send)
        finally:
            self._in_flight -= weight

    def _check_head(self, scope: Scope, body: "_Body") -> None:
        headers = Headers(scope=scope)
        if any(len(headers.getlist(name)) > 1 for name in ONCE):
            raise Refusal(400, "a header that may appear once appears twice")
        name = scope["path"].rstrip("/").rpartition("/")[2]
        if name and scope["path"].endswith("/"):  # else the router redirects to an address without the prefix
            raise Refusal(307, "no slash at the end of this address", headers={"Location": f"../{quote(name)}"})
        if not scope["path"]:  # the page's addresses are relative to its folder
            folder = scope["prefix"].rpartition("/")[2]
            raise Refusal(307, "a slash at the end of this address", headers={"Location": f"{quote(folder)}/"})
        given, keys = _given_key(scope), self.settings.api_keys
        if keys and not any([hmac.compare_digest(given, key.encode()) for key in keys]):
            # A browser is made to ask its user for the key; a program gets the name of the scheme.
            browser = "text/html" in headers.get("accept", "") or headers.get("sec-fetch-site") == "same-origin"
            challenge = 'Basic realm="VideoBLIP2", charset="UTF-8"' if browser else "Bearer"
            reason = "this service requires an API key: send `Authorization: Bearer KEY`"
            raise Refusal(401, reason, headers={"WWW-Authenticate": challenge})
        if (length := headers.get("content-length", "")).isdecimal():
            body.check_size(int(length))
        if scope["path"] in self.endpoints and scope["method"] == "POST":
            kind, options = parse_options_header(sent := headers.get("content-type", ""))
            if kind not in (FORM, b"") or options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
                raise Refusal(415, f"Content-Type {sent[:80]}: send {FORM.decode()} in UTF-8, as curl -F does")
            body.boundary = options.get(b"boundary", b"")
            if kind and not 0 < len(body.boundary) <= MAX_BOUNDARY:
                raise Refusal(400, "the form has no boundary in its Content-Type; let your HTTP client set that header")


class _Body:
    """A request's body as it arrives, within limits of size and time; a form must end with its boundary."""

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self.boundary = b""
        self._receive, self._settings = receive, settings
        self._deadline = asyncio.get_running_loop().time() + settings.upload_seconds
        self._size, self._end, self._whole = 0, b"", False

    def check_size(self, size: int) -> None:
        """Raise Refusal 413 if `size` bytes are too many."""
        if size > self._settings.max_upload_mb * MB:
            limit = f"{self._settings.max_upload_mb:g} MB"
            raise Refusal(413, f"the upload is larger than {limit}; cut the video or scale it down")

    async def receive(self) -> Message:
        """The next message; after the body, those of the connection."""
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


def as_client_sent_it(scope: Scope) -> Scope:
    """Undo what a proxy changed: its X-Forwarded-Host, -Port and -Proto, and a -Prefix that it left in the path."""
    headers = Headers(scope=scope)
    names = ("host", "port", "proto", "prefix")
    host, port, scheme, prefix = (headers.get(f"x-forwarded-{name}", "").partition(",")[0].strip() for name in names)
    changed = {**scope, "public_scheme": scheme}
    if port:
        host = re.sub(r":\d*$", "", host or headers.get("host", "")) + f":{port}"
    if host:
        changed["headers"] = [*((k, v) for k, v in scope["headers"] if k != b"host"), (b"host", host.encode("latin-1"))]
    # A POST to the prefix alone is for an endpoint of that name, such as /captions, with the prefix already removed.
    alone = scope["path"] == (prefix := prefix.rstrip("/"))
    if prefix and (scope["path"].startswith(f"{prefix}/") or (alone and scope.get("method") == "GET")):
        changed["path"], changed["prefix"] = scope["path"].removeprefix(prefix), prefix
    return changed


def _given_key(scope: Scope) -> bytes:
    """The key that a client sent; empty, which never matches, if it sent none."""
    scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode("latin-1")
    with suppress(ValueError):  # an Origin that is not an address, or malformed base64
        if scheme.lower() == "basic" and _of_own_page(scope):
            return base64.b64decode(given.strip()).partition(b":")[2]
    return b""


def _of_own_page(scope: Scope) -> bool:
    """False for requests from another site's page; without an Origin it is not a browser's POST."""
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if not origin or headers.get("sec-fetch-site") == "same-origin":
        return True
    theirs = urlsplit(origin)
    ours = urlsplit(f"{scope.get('public_scheme') or theirs.scheme}://{headers.get('host', '')}")
    usual = {"http": 80, "https": 443}
    pages = [(page.scheme, page.hostname, page.port or usual.get(page.scheme)) for page in (theirs, ours)]
    return bool(theirs.hostname) and pages[0] == pages[1]
