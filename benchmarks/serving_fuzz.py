"""Malformed requests at the running service: each must be answered with 4xx, and the server's memory stay flat.

    bentoml serve                                     # in another terminal; then, with the number of its process:
    python benchmarks/serving_fuzz.py --url http://127.0.0.1:3000 --pid PID [--requests 1000] [--json]

What is sent: headers that are garbage, doubled or lie; forms that are cut, nested, or hold addresses where a file
belongs; videos cut short, play lists, and boxes of impossible sizes; .npy and safetensors of wrong shapes, with NaN,
with objects, or of petabytes; JSON without end. Endpoints and their file fields are those of /docs.json.
Exit code 1 if any answer is no 4xx. Memory is that of the process and its children, after a tenth and at the end.
"""

import argparse
import contextlib
import io
import json
import random
import re
import socket
import struct
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

BOUNDARY = "vb2fuzz"
DEAD = "http://127.0.0.1:9/video.mp4"


@dataclass(frozen=True)
class Target:
    """One endpoint: its path and its fields that take files."""

    path: str
    files: tuple[str, ...]
    texts: tuple[str, ...] = ()  # fields that must be there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument("--pid", type=int, help="process of `bentoml serve`, to measure its memory")
    parser.add_argument("--key", default="", help="bearer key, where the service asks for one")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = fuzz(arguments.url, arguments.requests, arguments.seed, arguments.pid, arguments.key)
    print(f"{result['requests']} malformed requests in {result['seconds']} s; by status: {result['by_status']}")
    for wrong in result["not_4xx"]:
        print(f"  not 4xx: {wrong}")
    if arguments.pid:
        print(f"memory of the server: {result['megabytes'][0]} MB, at the end {result['megabytes'][1]} MB")
    if arguments.json:
        print(json.dumps(result))
    sys.exit(bool(result["not_4xx"]))


def fuzz(url: str, count: int, seed: int = 0, pid: int | None = None, key: str = "") -> dict[str, Any]:
    """Send `count` malformed requests → requests, by_status, by_kind, not_4xx (what, status), megabytes, seconds."""
    place, video, rng = urlsplit(url), sample_video(), random.Random(seed)
    targets = endpoints(url, key)
    authorised = f"\r\nAuthorization: Bearer {key}\r\nHost:".encode() if key else b"\r\nHost:"
    statuses: Counter[int] = Counter()
    kinds: Counter[str] = Counter()
    wrong: list[str] = []
    memory: list[float] = []
    start = time.perf_counter()
    for number in range(count):
        make = MALFORMED[number % len(MALFORMED)]
        raw = make(rng, rng.choice(targets), video).replace(b"\r\nHost:", authorised, 1)
        status = send(str(place.hostname), int(place.port or 80), raw)
        statuses[status] += 1
        kinds[make.__name__] += 1
        if not 400 <= status < 500:
            wrong.append(f"{make.__name__} (request {number}, seed {seed}): {status}")
        if pid and number in (count // 10, count - 1):
            memory.append(megabytes(pid))
    return {
        "requests": count,
        "by_status": dict(sorted(statuses.items())),
        "by_kind": dict(kinds),
        "not_4xx": wrong,
        "megabytes": memory,
        "seconds": round(time.perf_counter() - start, 1),
    }


def endpoints(url: str, key: str = "") -> list[Target]:
    """The endpoints that take files, as /docs.json describes them."""
    request = urllib.request.Request(f"{url}/docs.json", headers={"Authorization": f"Bearer {key}"} if key else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        described = json.load(answer)
    found = []
    for path, methods in described["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if "multipart/form-data" in content:
            schema = _resolve(described, content["multipart/form-data"]["schema"])
            fields = {name: json.dumps(field) for name, field in schema["properties"].items()}
            files = tuple(name for name, field in fields.items() if "binary" in field or "octet-stream" in field)
            found.append(Target(path, files, tuple(set(schema.get("required", ())) - set(files))))
    return found


def _resolve(described: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for step in schema.get("$ref", "").removeprefix("#/").split("/") if "$ref" in schema else ():
        described = described[step]
    return described if "$ref" in schema else schema


def send(host: str, port: int, raw: bytes) -> int:
    """Send the bytes of a request → the status of the answer; 0 if there is none within a minute.

    An answer of many items, or a stream, that begins with 200: the best status that one of its items was given.
    """
    with socket.create_connection((host, port), timeout=60) as connection:
        with contextlib.suppress(OSError):  # refused before all was sent: the answer is there already
            connection.sendall(raw)
        try:
            answer = connection.recv(4096)
            while answer.startswith(b"HTTP/1.1 200") and (more := connection.recv(65536)):
                answer += more
        except OSError:
            return 0
    words = answer.split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    inner = [int(found) for found in re.findall(rb'"status": ?(\d+)', answer)]
    return min(inner) if status == 200 and inner and b'"caption"' not in answer else status


def megabytes(pid: int) -> float:
    """Resident memory of a process and all below it."""
    import psutil

    process = psutil.Process(pid)
    return round(sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20, 1)


def sample_video() -> bytes:
    """Two seconds of a real mp4 with sound, to be spoilt."""
    from videoblip2.features.media import write_video

    frames = np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), dtype=np.uint8)
    sound = np.sin(np.arange(96_000) / 20).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "video.mp4", frames, 8, sound, 48_000)
        return (Path(folder) / "video.mp4").read_bytes()


def post(path: str, body: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}", *more: str) -> bytes:
    """The bytes of a POST request; `more` are further header lines."""
    lines = [f"POST {path} HTTP/1.1", "Host: fuzz", f"Content-Type: {content_type}", "Connection: close", *more]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in more):
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def part(name: str, data: bytes, filename: str | None = "video.mp4") -> bytes:
    """One part of a form; without a file name it is text."""
    file = f'; filename="{filename}"' if filename is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def form(target: Target, data: bytes, filename: str = "video.mp4", *more: bytes) -> bytes:
    """A request that is good but for `data`, in the file field that such a file belongs into."""
    field = next((FIELDS[end] for end in FIELDS if filename.endswith(end)), "video")
    texts = [part(name, b"what is it?", None) for name in target.texts]
    name = field if field in target.files else target.files[0]
    return post(target.path, b"".join([part(name, data, filename), *texts, *more]) + END)


FIELDS = {".npy": "video_features", ".safetensors": "features"}
END = f"--{BOUNDARY}--\r\n".encode()


def garbage_header(rng: random.Random, target: Target, video: bytes) -> bytes:
    line = bytes(rng.choice(b"\x00\x01 \x7f:\xff;,\t") for _ in range(rng.randint(1, 200)))
    return f"POST {target.path} HTTP/1.1\r\nHost: fuzz\r\n".encode() + line + b"\r\nContent-Length: 0\r\n\r\n"


def lying_length(rng: random.Random, target: Target, video: bytes) -> bytes:
    value = rng.choice(["-1", "1e9", "0x10", "99999999999999999999", str(2**40), "12, 13", "", "٣"])
    try:
        return post(target.path, b"x", f"multipart/form-data; boundary={BOUNDARY}", f"Content-Length: {value}")
    except UnicodeEncodeError:
        return post(target.path, b"x", "text/plain", "Content-Length: +1")


def doubled_header(rng: random.Random, target: Target, video: bytes) -> bytes:
    name = rng.choice(["Content-Type: application/json", "Authorization: Bearer x\r\nAuthorization: Bearer y"])
    return post(target.path, part(target.files[0], video) + END, f"multipart/form-data; boundary={BOUNDARY}", name)


def wrong_content_type(rng: random.Random, target: Target, video: bytes) -> bytes:
    kinds = [
        "text/plain",
        "application/vnd.bentoml+pickle",
        "application/x-www-form-urlencoded",
        "video/mp4",
        "x" * 999,
    ]
    return post(target.path, video, rng.choice(kinds))


def no_boundary(rng: random.Random, target: Target, video: bytes) -> bytes:
    kind = rng.choice(["", "; boundary=", "; boundary=other", "; charset=utf-7; boundary=" + "b" * 5000])
    return post(target.path, part(target.files[0], video) + END, "multipart/form-data" + kind)


def address_in_file_field(rng: random.Random, target: Target, video: bytes) -> bytes:
    text = rng.choice([DEAD, f'"{DEAD}"', "file:///etc/passwd", "/etc/passwd", "http://169.254.169.254/", " " + DEAD])
    if rng.random() < 0.3:
        return post(target.path, f"{target.files[0]}={text}".encode(), "application/x-www-form-urlencoded")
    return post(target.path, part(target.files[0], text.encode(), None) + END)


def cut_form(rng: random.Random, target: Target, video: bytes) -> bytes:
    whole = part(target.files[0], video) + END
    return post(target.path, whole[: rng.randint(0, len(whole) - 8)])


def strange_part(rng: random.Random, target: Target, video: bytes) -> bytes:
    name = rng.choice(["n" * 5000, "a\x00b", "x" * 300, "\r\n: x", "../" * 60 + "passwd", "é" * 200])
    return post(target.path, part(name, video) + END)


def endless_text(rng: random.Random, target: Target, video: bytes) -> bytes:
    text = rng.choice([b"[" * 60_000, b"9" * 20_000, b"x" * 200_000, b'{"a":' * 9000])
    return form(target, video, "video.mp4", part("prompt", text, None))


def many_parts(rng: random.Random, target: Target, video: bytes) -> bytes:
    return form(target, video[:100], "v.mp4", *(part(f"f{k}", b"1", None) for k in range(rng.randint(300, 1500))))


def truncated_video(rng: random.Random, target: Target, video: bytes) -> bytes:
    return form(target, video[: rng.randint(0, int(0.9 * len(video)))])


def noise(rng: random.Random, target: Target, video: bytes) -> bytes:
    start = rng.choice([b"", b"\x00\x00\x00\x18ftypmp42", b"\x1aE\xdf\xa3", b"RIFF\xff\xff\xff\xffAVI LIST", b"OggS"])
    return form(target, start + rng.randbytes(rng.randint(0, 20_000)))


def impossible_box(rng: random.Random, target: Target, video: bytes) -> bytes:
    """A box of the mp4 that says it is as long as can be, or not at all."""
    spoilt = bytearray(video)
    for box in (b"moov", b"stsz", b"stco", b"stsd", b"trak"):
        at = video.find(box)
        spoilt[at - 4 : at] = struct.pack(">I", rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 3]))
    return form(target, bytes(spoilt))


def play_list(rng: random.Random, target: Target, video: bytes) -> bytes:
    line = rng.choice([DEAD, "/etc/passwd", "file:///etc/passwd", "concat:/etc/passwd|/etc/hostname"])
    lists = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{line}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{line}'\n",
        f"<?xml version='1.0'?><MPD><Period><BaseURL>{line}</BaseURL></Period></MPD>",
        f"v=0\nc=IN IP4 127.0.0.1\na=control:{line}\nm=video 9 RTP/AVP 96\n",
    ]
    return form(target, rng.choice(lists).encode())


def wrong_array(rng: random.Random, target: Target, video: bytes) -> bytes:
    buffer, shape = io.BytesIO(), rng.choice([(), (0, 768), (3,), (2, 3, 768), (4, 7), (1, 100_000)])
    array = np.zeros(shape, rng.choice(["f4", "i8", "c16", "S3"]))
    if rng.random() < 0.3:
        array = np.full((4, 768), np.nan, "f4")
    np.save(buffer, array)
    return form(target, buffer.getvalue(), "video.npy")


def huge_array(rng: random.Random, target: Target, video: bytes) -> bytes:
    shape = rng.choice(["(1000000000000, 768)", "(-1, 768)", "(4, 768)", "(9223372036854775807, 2)"])
    kind = rng.choice(["<f4", "|O"])
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (117 - len(head)) + b"\n"
    return form(target, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + b"12", "video.npy")


def wrong_safetensors(rng: random.Random, target: Target, video: bytes) -> bytes:
    head = rng.choice(
        [
            {"video": {"dtype": "F32", "shape": [4, 768], "data_offsets": [0, 2**40]}},
            {"video": {"dtype": "F32", "shape": [-4, 768], "data_offsets": [0, 4]}},
            {"other": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
            {"video": 3},
        ]
    )
    text = json.dumps(head).encode()
    length = rng.choice([len(text), 2**60, 0])
    return form(target, struct.pack("<Q", length) + text + b"\x00" * 4, "features.safetensors")


def wrong_option(rng: random.Random, target: Target, video: bytes) -> bytes:
    name = rng.choice(
        ["num_beams", "max_new_tokens", "seed", "temperature", "length_penalty", "beams", "segments", "explain"]
    )
    value = rng.choice([b"-99", b"1" + b"0" * 30, b"nan", b"x" * 500, b"1e999", b"\x00", b"[]"])
    return form(target, sound_features(), "video.npy", part(name, value, None))


def sound_features() -> bytes:
    """An .npy file that is as it should be."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 768), "f4"))
    return buffer.getvalue()


def wrong_json(rng: random.Random, target: Target, video: bytes) -> bytes:
    deep = "[" * 50_000
    texts = ["{", deep, '{"video": ' + deep, '{"a": NaN}', "[1,2]", '"' + DEAD + '"', "null", "\ufeff{}", "9" * 6000]
    return post(target.path, rng.choice(texts).encode(), "application/json")


def wrong_method_or_path(rng: random.Random, target: Target, video: bytes) -> bytes:
    line = rng.choice([f"DELETE {target.path}", f"PUT {target.path}", "GET /../../etc/passwd", "POST /%00", "FOO /"])
    return f"{line} HTTP/1.1\r\nHost: fuzz\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


MALFORMED: tuple[Callable[[random.Random, Target, bytes], bytes], ...] = (
    garbage_header,
    lying_length,
    doubled_header,
    wrong_content_type,
    no_boundary,
    address_in_file_field,
    cut_form,
    strange_part,
    endless_text,
    many_parts,
    truncated_video,
    noise,
    impossible_box,
    play_list,
    wrong_array,
    huge_array,
    wrong_safetensors,
    wrong_option,
    wrong_json,
    wrong_method_or_path,
)

if __name__ == "__main__":
    main()
