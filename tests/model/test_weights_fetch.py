"""Fetching weights from a server on this machine: checked, resumed, and one line for everything that can go wrong."""

import base64
import hashlib
import json
import shutil
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, constants, file_download
from typer.testing import CliRunner

from videoblip2.config import InputError
from videoblip2.model import weight_fetch
from videoblip2.model.weight_fetch import KNOWN, digests, fetch_file, fetch_repository, fetch_weights

BROKEN = [1_000_000] + [0] * 5  # the first answer breaks off, and every try after it


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """The client is online, and does not wait before it tries again."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # bytes: what a broken connection can lose
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))


@pytest.fixture
def content(tmp_path):
    """The bytes of a real torch file, of about 2.5 MiB."""
    torch.save({"a": torch.arange(650_000, dtype=torch.float32)}, tmp_path / "origin.pth")
    return (tmp_path / "origin.pth").read_bytes()


@dataclass
class Site:
    """What the server serves, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    etag: str = '"one"'
    cut_after: list[int] = field(default_factory=list)  # bytes of the body that each of the next answers sends
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    missing: int = 404  # the status for a file that is not there
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site(content):
    state = Site({"/w.pth": content})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self, state)

        def do_HEAD(self):
            answer(self, state)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that hangs up early is part of the tests
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def answer(request: BaseHTTPRequestHandler, site: Site) -> None:
    if request.command == "GET":
        site.asked.append((request.path, request.headers.get("Range")))
    body = site.files.get(request.path)
    if body is None:
        request.send_error(site.missing)
        return
    start, asked = 0, request.headers.get("Range")
    if asked and site.ranges and request.headers.get("If-Range") == site.etag:
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
    if start > len(body):
        request.send_error(416)
        return
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    for name, value in {"Content-Length": str(len(body) - start), "ETag": site.etag, **site.headers}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body[start:][: site.cut_after.pop(0) if site.cut_after else None])


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_fetched_recorded_and_later_only_verified(tmp_path, site, content):
    target = tmp_path / "models" / "w.pth"
    fetched = fetch_file("w", f"{site.url}/w.pth", target)
    assert target.read_bytes() == content
    assert fetched.files == {"w.pth": sha256(content)} and fetched.downloaded
    assert fetched.checked.startswith("nothing")
    assert (target.parent / "w.pth.sha256").read_text() == f"{sha256(content)}  w.pth\n"
    again = fetch_file("w", f"{site.url}/w.pth", target)
    assert not again.downloaded and again.checked == "the sha256 recorded when it was fetched"
    assert len(site.asked) == 1
    assert not list(target.parent.glob("*.part*"))


def test_a_file_that_changed_on_the_disk_is_an_error(tmp_path, site):
    target = tmp_path / "w.pth"
    fetch_file("w", f"{site.url}/w.pth", target)
    with target.open("r+b") as file:
        file.write(b"?")
    one_line("is not the sha256 recorded when it was fetched .*delete it", site, target)


def test_a_given_sha256_is_verified(tmp_path, site, content):
    target = tmp_path / "w.pth"
    one_line("is not the sha256 given .*fetch it again", site, target, sha256="0" * 64)
    assert not target.exists() and not list(tmp_path.glob("*.part*"))
    assert fetch_file("w", f"{site.url}/w.pth", target, sha256(content).upper()).checked == "the sha256 given"
    one_line("is not the sha256 given", site, target, sha256="0" * 64)
    one_line("must be 64 hexadecimal digits", site, target, sha256="abc")


def test_the_servers_md5_is_verified(tmp_path, site, content):
    md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
    site.headers["x-goog-hash"] = f"crc32c=AAAAAA==,md5={md5}"
    site.cut_after = [1_000_000]
    fetched = fetch_file("w", f"{site.url}/w.pth", tmp_path / "w.pth")
    assert fetched.checked == "the MD5 that the server sent"
    site.headers["x-goog-hash"] = "md5=" + base64.b64encode(b"0" * 16).decode()
    one_line("is not the MD5 that the server sent", site, tmp_path / "other.pth")


def test_a_broken_connection_resumes_where_it_broke(tmp_path, site, content):
    site.cut_after = [1_000_000, 5000]
    fetch_file("w", f"{site.url}/w.pth", tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == content
    assert [asked for _, asked in site.asked] == [None, "bytes=1000000-", "bytes=1005000-"]


def test_a_later_run_resumes(tmp_path, site, content):
    target = tmp_path / "w.pth"
    site.cut_after = list(BROKEN)
    one_line("1,000,000 bytes are kept, run again to resume; behind a proxy set HTTPS_PROXY", site, target)
    site.asked.clear()
    fetch_file("w", f"{site.url}/w.pth", target)
    assert target.read_bytes() == content
    assert site.asked == [("/w.pth", "bytes=1000000-")]


@pytest.mark.parametrize("changed", ["etag", "address", "too long"])
def test_the_part_of_another_version_is_never_spliced(tmp_path, site, content, changed):
    target, path = tmp_path / "w.pth", "/w.pth"
    site.cut_after = list(BROKEN)
    one_line("bytes are kept", site, target)
    (part,) = tmp_path.glob("w.pth.*.part")
    if changed == "etag":
        content = content[:100] + b"?" + content[101:]
        site.files["/w.pth"], site.etag = content, '"two"'
    elif changed == "address":
        site.files["/other/w.pth"], path = content, "/other/w.pth"
    else:
        part.write_bytes(content + b"more")
    site.asked.clear()
    fetch_file("w", f"{site.url}{path}", target)
    assert target.read_bytes() == content and site.asked == [(path, None)]
    assert not list(tmp_path.glob("*.part"))


def test_a_server_without_ranges_sends_all_again(tmp_path, site, content):
    site.ranges, site.cut_after = False, [1_000_000]
    fetch_file("w", f"{site.url}/w.pth", tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == content
    assert [asked for _, asked in site.asked] == [None, "bytes=1000000-"]


def test_without_a_strong_etag_a_later_run_begins_anew(tmp_path, site, content):
    site.etag, site.cut_after = 'W/"weak"', list(BROKEN)
    one_line("cannot be reached", site, tmp_path / "w.pth")
    site.asked.clear()
    fetch_file("w", f"{site.url}/w.pth", tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == content
    assert site.asked == [("/w.pth", None)]


def test_a_page_of_a_proxy_is_not_taken_for_weights(tmp_path, site):
    site.files["/w.pth"] = b"<html>Please sign in</html>"
    one_line("an HTML or XML page", site, tmp_path / "w.pth")
    assert not list(tmp_path.glob("w.pth*"))


def test_a_refusal_and_an_unreachable_server(tmp_path, site):
    target = tmp_path / "w.pth"
    with pytest.raises(InputError, match=r"the server answered 404 .* for /none; .*HTTPS_PROXY"):
        fetch_file("w", f"{site.url}/none", target)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/w.pth"
        with pytest.raises(InputError, match=r"127\.0\.0\.1: cannot be reached \(.*refused\); behind a proxy set"):
            fetch_file("w", url, target)


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_server_that_refuses_known_weights_gives_way_to_the_hubs_copy(tmp_path, site, monkeypatch, status):
    known = weight_fetch.KnownWeights("blip2", "a test", url=f"{site.url}/gone.pth", copy="o/copy")
    monkeypatch.setitem(KNOWN, "blip2", known)
    site.missing = status
    with pytest.raises(InputError, match=rf"answered {status} .*the hub has the same.*`vb2 weights fetch o/copy`"):
        fetch_weights("blip2", tmp_path)
    assert all(known.copy in KNOWN for known in KNOWN.values() if known.copy and known.name != "blip2")


def test_a_full_disk_is_told_before_the_download(tmp_path, site, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    one_line("1,000 bytes free, .* needed; make room", site, tmp_path / "w.pth")


def test_two_processes_do_not_write_one_file(tmp_path, site):
    from filelock import FileLock

    with FileLock(tmp_path / ".w.pth.lock"):
        one_line("another process is fetching it", site, tmp_path / "w.pth")


def test_progress_sees_every_chunk(tmp_path, site, content):
    seen = Counter()

    def progress(chunks, total, description):
        for chunk in chunks:
            seen[description, total] += 1
            yield chunk

    fetch_file("w", f"{site.url}/w.pth", tmp_path / "w.pth", progress=progress)
    assert list(seen.values()) == [3] and all(total == 3 and "checking w.pth" in text for text, total in seen)


def test_known_names(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(weight_fetch, "fetch_file", lambda *arguments: calls.append(arguments))
    fetch_weights("blip2-flant5xl", tmp_path)
    assert calls[0][1] == (
        "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/blip2_pretrained_flant5xl.pth"
    )
    assert calls[0][2] == tmp_path / "blip2_pretrained_flant5xl.pth"
    with pytest.raises(InputError, match="bert: not a known name; choose from blip2-flant5xl, "):
        fetch_weights("bert", tmp_path)
    with pytest.raises(InputError, match="--sha256 is for a single file"):
        fetch_weights("bert-base-uncased", tmp_path, sha256="0" * 64)
    assert all(bool(known.url) != bool(known.repository) for known in KNOWN.values())


WEIGHTS, CONFIG, COMMIT = b"weights" * 1000, b'{"model_type": "bert"}', "c" * 40


@pytest.fixture
def hub(site, monkeypatch):
    """huggingface_hub's own client, on a server of this machine that answers as the hub does."""
    files = {
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"other",
        "config.json": CONFIG,
        "onnx/config.json": b"x",
    }
    lfs = {"sha256": sha256(WEIGHTS), "size": len(WEIGHTS), "pointerSize": 134}
    siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
    siblings[0]["lfs"] = lfs
    tree = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
    tree[0]["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 134}
    info = {"id": "o/bert", "sha": COMMIT, "siblings": siblings}
    site.headers["X-Repo-Commit"] = COMMIT
    for path in ("/api/models/o/bert", f"/api/models/o/bert/revision/{COMMIT}"):
        for query in ("", "?blobs=True", "?blobs=true"):
            site.files[path + query] = json.dumps(info).encode()
    for query in (
        "",
        "?recursive=True",
        "?recursive=true",
        "?recursive=True&expand=False",
        "?recursive=true&expand=false",
    ):
        site.files[f"/api/models/o/bert/tree/{COMMIT}{query}"] = json.dumps(tree).encode()
    site.files |= {f"/o/bert/resolve/{COMMIT}/{name}": data for name, data in files.items()}
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: HfApi(endpoint=site.url, token=False))


def test_a_repository_is_fetched_at_one_commit_and_verified(tmp_path, site, hub):
    folder = tmp_path / "bert"
    fetched = fetch_repository("bert", "o/bert", folder)
    assert {entry.name for entry in folder.iterdir() if entry.is_file()} == {
        "config.json",
        "model.safetensors",
        "SHA256SUMS",
    }
    assert fetched.files == {"config.json": sha256(CONFIG), "model.safetensors": sha256(WEIGHTS)}
    assert fetched.revision == COMMIT
    assert fetched.checked == "the sha256 published by the hub (1 of 2 files have one)"
    site.asked.clear()
    assert not fetch_repository("bert", "o/bert", folder).downloaded
    assert site.asked == []
    (folder / "config.json").write_bytes(b"{}")
    with pytest.raises(InputError, match=r"config.json: its checksum .* is not the sha256 recorded"):
        fetch_repository("bert", "o/bert", folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"bert/config.json: missing; delete .*bert and fetch it again"):
        fetch_repository("bert", "o/bert", folder)


def test_a_repository_that_arrives_damaged_is_an_error(tmp_path, site, hub):
    damaged = f"/o/bert/resolve/{COMMIT}/model.safetensors"
    site.files[damaged] = b"Weights" + site.files[damaged][7:]
    with pytest.raises(InputError, match=r"model.safetensors: its checksum .* is not the sha256 published by the hub"):
        fetch_repository("bert", "o/bert", tmp_path / "bert")
    assert not (tmp_path / "bert" / "SHA256SUMS").exists()


def test_the_pickled_weights_are_taken_where_there_are_no_others(tmp_path, monkeypatch):
    class Fake:
        def model_info(self, repo_id, *, files_metadata):
            names = ["pytorch_model.bin", "vocab.txt", "tf_model.h5"]
            return SimpleNamespace(sha="s", siblings=[SimpleNamespace(rfilename=name, lfs=None) for name in names])

        def snapshot_download(self, repo_id, *, revision, local_dir, allow_patterns):
            local_dir.mkdir()
            for name in allow_patterns:
                (local_dir / name).write_bytes(b"x")

    monkeypatch.setattr(huggingface_hub, "HfApi", Fake)
    assert list(fetch_repository("m", "o/m", tmp_path / "m").files) == ["vocab.txt", "pytorch_model.bin"]


@pytest.mark.parametrize("offline", [True, False])
def test_an_unreachable_hub_is_one_line(tmp_path, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: HfApi(endpoint=endpoint, token=False))
        with pytest.raises(InputError, match=r"o/bert: the hub cannot be reached .*HTTPS_PROXY.*HF_ENDPOINT") as error:
            fetch_repository("bert", "o/bert", tmp_path / "bert")
    assert "\n" not in str(error.value)


def test_the_command_lists_fetches_and_reports(tmp_path, site, content, monkeypatch):
    from videoblip2.cli.setup import weights as app

    run = CliRunner().invoke
    listed = run(app, ["fetch", "--json"])
    assert [known["name"] for known in json.loads(listed.output.splitlines()[-1])["known"]] == list(KNOWN)
    known = weight_fetch.KnownWeights("tiny", "a test", url=f"{site.url}/w.pth")
    monkeypatch.setitem(KNOWN, "tiny", known)
    result = run(app, ["fetch", "tiny", "--out", str(tmp_path / "m"), "--sha256", sha256(content), "--json"])
    data = json.loads(result.output.splitlines()[-1])
    assert data["files"] == {"w.pth": sha256(content)} and data["checked"] == "the sha256 given"
    assert isinstance(run(app, ["fetch", "nothing"]).exception, InputError)


def test_digests(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert digests(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "900150983cd24fb0d6963f7d28e17f72",
    )


def one_line(message: str, site: Site, target, **options) -> None:
    with pytest.raises(InputError, match=message) as error:
        fetch_file("w", f"{site.url}/w.pth", target, **options)
    assert "\n" not in str(error.value)
