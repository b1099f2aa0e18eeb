"""The guard: keys, sizes, times, how many at a time, request ids, and no word of the inside."""

import asyncio
import base64
import json
import logging

import pytest
from prometheus_client import REGISTRY

from serving.guard import Guard
from serving.service_settings import MB, Settings

ENDPOINTS = {"/caption"}
FORM = b"multipart/form-data; boundary=b"


def part(name, data, filename=None):
    file = f'; filename="{filename}"' if filename else ""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n{data}\r\n'.encode()


GOOD = part("video", "frames", "v.mp4") + b"--b--\r\n"


class Inner:
    """An application that keeps what it got and answers as it is told."""

    def __init__(self, status=200, headers=(), error=None, wait=None):
        self.status, self.headers, self.error, self.wait = status, list(headers), error, wait
        self.bodies = []

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        if self.wait:
            await self.wait.wait()
        if self.error:
            raise self.error
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"done"})


async def call(guard, path="/caption", body=GOOD, headers=(), method="POST", chunk=7, content_type=FORM, stall=False):
    """One request → (status, headers, body)."""
    pieces = [body[k : k + chunk] for k in range(0, len(body), chunk)] or [b""]
    messages = [
        {"type": "http.request", "body": piece, "more_body": stall or k + 1 < len(pieces)}
        for k, piece in enumerate(pieces)
    ]
    sent = []

    async def receive():
        if messages:
            return messages.pop(0)
        return await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    kind = [(b"content-type", content_type)] if content_type else []
    scope = {"type": "http", "method": method, "path": path, "headers": [*kind, *headers]}
    await guard(scope, receive, send)
    start = sent[0]
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, content


def run(guard, **request):
    return asyncio.run(call(guard, **request))


def guard(inner=None, **settings):
    return Guard(inner or Inner(), ENDPOINTS, Settings(**settings))


def test_a_good_request_goes_through_unchanged():
    inner = Inner()
    status, headers, body = run(guard(inner))
    assert (status, body) == (200, b"done")
    assert inner.bodies == [GOOD]
    assert len(headers["x-request-id"]) == 32
    assert headers["x-content-type-options"] == "nosniff"


def test_a_large_body_goes_through_unchanged():
    inner = Inner()
    body = part("video", "x" * 3_000_000, "v.mp4") + b"--b--\r\n"
    assert run(guard(inner), body=body, chunk=65_536)[0] == 200
    assert inner.bodies == [body]


@pytest.mark.parametrize(("given", "kept"), [(b"abc-1.2:3", True), (b"a b", False), (b"x" * 65, False), (b"\n", False)])
def test_a_request_id_is_the_clients_if_it_is_a_plain_word(given, kept):
    _, headers, _ = run(guard(), headers=[(b"x-request-id", given)])
    assert (headers["x-request-id"] == given.decode()) is kept


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        (b"Bearer wrong", 401),
        (b"Basic right", 401),
        (b"Bearer", 401),
        ("Basic ключ".encode(), 401),
        ("Bearer ключ".encode(), 401),
        (b"Bearer right", 200),
        ("Bearer clé".encode(), 200),
        (b"bearer  second", 200),
    ],
)
def test_a_key_is_asked_for_where_one_is_set(authorization, status):
    headers = [(b"authorization", authorization)] if authorization else []
    inner = Inner()
    answer = run(guard(inner, api_key="right, second,clé"), headers=headers)
    assert answer[0] == status
    assert bool(inner.bodies) is (status == 200)
    assert ("www-authenticate" in answer[1]) is (status == 401)


@pytest.mark.parametrize(
    ("login", "origin", "status"),
    [
        ("anyone:right", None, 200),
        (":right", "http://here:1", 200),
        ("anyone:right", "http://here:2", 401),
        ("anyone:right", "https://elsewhere.example", 401),
        ("anyone:right", "null", 401),
        ("anyone:right", "http://[", 401),
        ("right:wrong", None, 401),
        ("right", None, 401),
        ("anyone:", None, 401),
    ],
)
def test_a_browser_sends_the_key_as_password_and_for_our_own_page_only(login, origin, status):
    headers = [(b"authorization", b"Basic " + base64.b64encode(login.encode())), (b"host", b"here:1")]
    headers += [(b"origin", origin.encode())] if origin else []
    assert run(guard(api_key="right"), headers=headers)[0] == status


@pytest.mark.parametrize(
    ("trusted", "origin", "status"),
    [
        (True, "https://outer.example", 200),
        (True, "http://outer.example", 401),  # X-Forwarded-Proto says https
        (True, "http://inner:1", 401),
        (False, "https://outer.example", 401),
        (False, "http://inner:1", 200),
    ],
)
def test_behind_a_proxy_the_own_page_is_the_one_the_client_sees(trusted, origin, status):
    headers = [(b"authorization", b"Basic " + base64.b64encode(b":right")), (b"host", b"inner:1")]
    headers += [(b"origin", origin.encode()), (b"x-forwarded-host", b"outer.example, inner")]
    headers += [(b"x-forwarded-proto", b"https")]
    assert run(guard(api_key="right", trust_proxy=trusted), headers=headers)[0] == status


@pytest.mark.parametrize(
    ("origin", "headers", "status"),
    [
        ("http://here:8080", {"host": "here"}, 401),  # a proxy dropped the port, and nothing tells which it was
        ("http://here:8080", {"host": "here", "x-forwarded-port": "8080"}, 200),
        ("http://here:8080", {"host": "here:3000", "x-forwarded-port": "8080"}, 200),
        ("http://here:8080", {"host": "inner", "x-forwarded-host": "here:8080"}, 200),
        ("http://[::1]:8080", {"host": "[::1]", "x-forwarded-port": "8080"}, 200),
        ("https://here", {"host": "here:443", "x-forwarded-proto": "https"}, 200),
        ("https://here", {"host": "here", "x-forwarded-proto": "https", "x-forwarded-port": "443"}, 200),
        ("https://Here", {"host": "here", "x-forwarded-proto": "https"}, 200),
        (
            "https://here:8443",
            {"host": "here", "sec-fetch-site": "same-origin"},
            200,
        ),  # no script can write this header
        ("https://here:8443", {"host": "here", "sec-fetch-site": "same-site"}, 401),
        ("http://here", {"host": "here", "x-forwarded-host": "[", "x-forwarded-port": "x"}, 401),
    ],
)
def test_a_port_that_a_proxy_dropped_or_added_is_found(origin, headers, status):
    headers = [(b"authorization", b"Basic " + base64.b64encode(b":right")), (b"origin", origin.encode())] + [
        (name.encode(), value.encode()) for name, value in headers.items()
    ]
    assert run(guard(api_key="right", trust_proxy=True), headers=headers)[0] == status


@pytest.mark.parametrize(
    ("trusted", "path", "seen"),
    [
        (True, "/videos/caption", "/caption"),
        (True, "/videos/", "/"),
        (True, "/caption", "/caption"),
        (True, "/videoson", "/videoson"),
        (False, "/videos/caption", "/videos/caption"),
    ],
)
def test_a_prefix_that_a_trusted_proxy_leaves_in_the_path_is_removed(trusted, path, seen):
    paths = []

    async def inner(scope, receive, send):
        paths.append(scope["path"])
        await Inner()(scope, receive, send)

    run(guard(inner, trust_proxy=trusted), path=path, headers=[(b"x-forwarded-prefix", b"/videos/")])
    assert paths == [seen]


def test_a_prefix_may_have_the_name_of_an_endpoint_and_the_page_is_in_its_folder():
    """As under /captions/, whether or not the proxy removes the prefix before it tells it."""
    headers = [(b"x-forwarded-prefix", b"/some/caption")]
    for path in ("/caption", "/some/caption/caption"):
        inner = Inner()
        assert run(guard(inner, trust_proxy=True), path=path, headers=headers)[0] == 200
        assert inner.bodies == [GOOD]
    page = {"method": "GET", "body": b"", "content_type": None}
    status, sent, _ = run(guard(trust_proxy=True), path="/some/caption", headers=headers, **page)
    assert (status, sent["location"]) == (307, "caption/")  # from /some/caption to /some/caption/
    headers = [(b"x-forwarded-prefix", b"/caption")]
    assert run(guard(trust_proxy=True), path="/caption", headers=headers)[0] == 200


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/caption/", "../caption"),
        ("/docs//", "../docs"),
        ("//evil.example/", "../evil.example"),
        ("/a b\r\n/", "../a%20b%0D%0A"),
    ],
)
def test_a_slash_at_the_end_redirects_to_no_absolute_address(path, place):
    inner = Inner()
    status, headers, _ = run(guard(inner), path=path)
    assert (status, headers["location"], inner.bodies) == (307, place, [])


def test_a_lifespan_event_has_no_headers_and_passes():
    passed = []

    async def inner(scope, receive, send):
        passed.append(scope["type"])

    asyncio.run(guard(inner, trust_proxy=True)({"type": "lifespan"}, None, None))
    assert passed == ["lifespan"]


@pytest.mark.parametrize(
    ("headers", "scheme"),
    [
        ([(b"accept", b"text/html,*/*")], "Basic"),
        ([(b"accept", b"*/*"), (b"sec-fetch-site", b"same-origin")], "Basic"),  # the page's own script
        ([(b"accept", b"*/*"), (b"sec-fetch-site", b"cross-site")], "Bearer"),
        ([(b"accept", b"*/*")], "Bearer"),
    ],
)
def test_a_browser_is_told_to_ask_for_a_password_and_a_program_is_not(headers, scheme):
    assert run(guard(api_key="right"), headers=headers)[1]["www-authenticate"].partition(" ")[0] == scheme


@pytest.mark.parametrize(("path", "status"), [("/livez", 200), ("/readyz", 200), ("/healthz", 200), ("/metrics", 401)])
def test_only_the_probes_need_no_key(path, status):
    assert run(guard(api_key="right"), path=path, method="GET", body=b"", content_type=None)[0] == status


def test_too_large_is_refused_by_the_header_before_a_byte_is_read():
    inner = Inner()
    headers = [(b"content-length", b"101")]
    status, _, body = run(guard(inner, max_upload_mb=100 / MB, upload_seconds=5), body=b"", headers=headers, stall=True)
    assert status == 413
    assert "larger than" in json.loads(body)["error"]
    assert inner.bodies == []


def test_too_large_is_refused_on_the_way_if_no_header_told():
    inner = Inner()
    assert run(guard(inner, max_upload_mb=(len(GOOD) - 1) / MB))[0] == 413
    assert inner.bodies == []
    assert run(guard(inner, max_upload_mb=len(GOOD) / MB))[0] == 200


def test_an_upload_that_stalls_is_ended():
    status, _, body = run(guard(upload_seconds=0.05), body=GOOD[:20], stall=True)
    assert status == 408
    assert "0.05 s" in json.loads(body)["error"]


def test_one_too_many_at_a_time_is_429_with_retry_after_and_the_place_is_free_later():
    async def scene():
        done = asyncio.Event()
        watched = guard(Inner(wait=done), max_requests=1, retry_after=7)
        first = asyncio.create_task(call(watched))
        await asyncio.sleep(0)
        while not watched._in_flight:
            await asyncio.sleep(0)
        refused = await call(watched)
        elsewhere = asyncio.create_task(call(watched, path="/page", content_type=None))
        done.set()
        return refused, (await first)[0], (await elsewhere)[0], (await call(watched))[0]

    refused, *others = asyncio.run(scene())
    assert refused[0] == 429
    assert refused[1]["retry-after"] == "7"
    assert others == [200, 200, 200]


def test_an_exception_shows_nothing_internal_and_is_logged(caplog):
    logger = logging.getLogger("videoblip2.serving")
    logger.propagate = True
    status, headers, body = run(guard(Inner(error=RuntimeError("a secret"))))
    assert status == 500
    assert "secret" not in body.decode() and "Traceback" not in body.decode()
    assert json.loads(body)["request_id"] == headers["x-request-id"]
    assert "a secret" in caplog.text


@pytest.mark.parametrize(
    ("request_", "status", "word"),
    [
        ({"content_type": b"application/x-www-form-urlencoded", "body": b"video=http://x/"}, 415, "multipart"),
        ({"content_type": b"application/vnd.bentoml+pickle"}, 415, "multipart"),
        ({"content_type": b"application/json", "body": b"{}"}, 415, "multipart"),
        ({"headers": [(b"content-type", b"application/json")]}, 400, "twice"),
        ({"body": GOOD[:-6]}, 400, "last boundary"),
        ({"content_type": b"multipart/form-data"}, 400, "boundary"),
        ({"content_type": FORM + b"; charset=undefined"}, 415, "UTF-8"),
        ({"content_type": FORM + b"; charset=punycode"}, 415, "UTF-8"),
        ({"content_type": b"multipart/form-data; boundary=" + b"b" * 201}, 400, "boundary"),
    ],
)
def test_what_is_no_whole_form_never_reaches_the_service(request_, status, word):
    inner = Inner()
    answer = run(guard(inner), **request_)
    assert answer[0] == status
    assert word in json.loads(answer[2])["error"]
    assert inner.bodies == []


def test_a_request_that_is_given_up_is_counted_as_504_and_leaves_its_place():
    def counted():
        return REGISTRY.get_sample_value("vb2_requests_total", {"path": "/caption", "status": "504"}) or 0

    async def scene():
        watched = guard(Inner(wait=asyncio.Event()), max_requests=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await call(watched)
        return watched._in_flight

    before = counted()
    assert asyncio.run(scene()) == 0
    assert counted() == before + 1


def test_a_client_that_leaves_is_no_failure_of_ours():
    async def scene():
        sent = []

        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/caption", "headers": [(b"content-type", FORM)]}
        await guard()(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(scene()) == 400


def test_no_cors_header_is_sent():
    _, headers, _ = run(guard(), headers=[(b"origin", b"https://elsewhere.example")])
    assert not [name for name in headers if name.startswith("access-control")]
