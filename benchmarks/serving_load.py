"""Clients for the serving benchmark: closed-loop load, and malformed requests."""

import asyncio
import io
import json
import random
import socket
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
from safetensors.numpy import save

BOUNDARY = "vb2benchmark"
TIMEOUT = aiohttp.ClientTimeout(total=300)
Item = tuple[Any, Any]


@dataclass
class Load:
    """What a number of clients met."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def median(self) -> float:
        return statistics.median(self.latencies)

    @property
    def failed(self) -> int:
        return sum(self.statuses.values()) - self.statuses[200]


async def load(url: str, bodies: Sequence[bytes], clients: int, count: int) -> Load:
    """`count` requests from `clients` that each send the next one when they have the answer to the last."""
    result, numbers = Load(), iter(range(count))
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            start = time.perf_counter()
            try:
                async with session.post(url, data=bodies[number % len(bodies)], headers=headers) as response:
                    content = await response.read()
            except aiohttp.ClientError:
                result.statuses[0] += 1  # no answer at all
                continue
            result.latencies.append(time.perf_counter() - start)
            result.statuses[response.status] += 1
            if response.status == 200:
                answer = json.loads(content)  # BentoML's batching answers with a list
                result.versions[answer.get("model_version", "") if isinstance(answer, dict) else ""] += 1

    start = time.perf_counter()
    async with aiohttp.ClientSession(timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    result.seconds = time.perf_counter() - start
    return result


def multipart(fields: dict[str, bytes | str]) -> bytes:
    """A form; bytes become files."""
    parts = []
    for name, value in fields.items():
        file = f'; filename="{name}.mp4"' if isinstance(value, bytes) else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        parts.append(head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def features_body(item: Item, **options: str) -> bytes:
    return multipart({"video_features": npy(item[0]), "audio_features": npy(item[1]), **options})


def tensors_body(item: Item) -> bytes:
    return multipart({"features": save({"video": item[0], "audio": item[1]})})


def malformed(rng: random.Random, item: Item, video: bytes) -> tuple[bytes, str]:
    """A request that nobody can answer: body and content type."""
    whole = npy(item[0])
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    makers: list[Callable[[], tuple[bytes, str]]] = [
        lambda: (multipart({"video": video[: rng.randrange(len(video) // 2)]}), kind),
        lambda: (multipart({"video": rng.randbytes(rng.randrange(1, 4000))}), kind),
        lambda: (multipart({"video_features": whole[: rng.randrange(len(whole))]}), kind),
        lambda: (multipart({"video_features": npy(np.ones(_shape(rng), "float32"))}), kind),
        lambda: (multipart({"video_features": npy(np.full((4, 768), rng.choice([np.nan, np.inf, -np.inf])))}), kind),
        lambda: (multipart({"video_features": _huge_header(rng)}), kind),
        lambda: (multipart({"features": rng.randbytes(8) + b"{}"}), kind),
        lambda: (multipart({"features": (10 ** rng.randrange(9, 18)).to_bytes(8, "little") + b'{"video":'}), kind),
        lambda: (multipart({"video_features": whole, rng.choice(FIELDS): rng.choice(VALUES)}), kind),
        lambda: (multipart({"video_features": whole})[: rng.randrange(60)], kind),
        lambda: (rng.randbytes(rng.randrange(200)), rng.choice(TYPES)),
        lambda: (b"", kind),
    ]
    return rng.choice(makers)()


FIELDS = ("num_beams", "max_new_tokens", "seed", "temperature", "length_penalty")
VALUES = ("-99", str(10**30), "nan", "x" * 500, "1e999", "\x00", "[]")
TYPES = (
    "multipart/form-data",
    "application/json",
    "text/plain",
    "a/b; boundary=\xe9",
    "multipart/form-data; boundary=" + "b" * 300,
)


def _shape(rng: random.Random) -> tuple[int, ...]:
    return rng.choice([(4, 767), (768,), (0, 768), (2, 3, 768), (768, 4), ()])


def _huge_header(rng: random.Random) -> bytes:
    shape = rng.choice(["(1000000000, 768)", "(-1, 768)", "(99999999999999999999, 768)", "(" * 200])
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 3072


async def send_malformed(url: str, count: int, item: Item, video: bytes, seed: int = 0) -> Counter[int]:
    """Statuses of `count` malformed requests, eight at a time; every tenth is no HTTP at all, on a bare socket."""
    rng = random.Random(seed)
    statuses: Counter[int] = Counter()
    room = asyncio.Semaphore(8)

    async def one(send: Awaitable[int]) -> None:
        async with room:
            statuses[await send] += 1

    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        sends = [
            _raw(url, rng) if number % 10 == 9 else _post(session, url, *malformed(rng, item, video))
            for number in range(count)
        ]
        await asyncio.gather(*(one(send) for send in sends))
    return statuses


async def _post(session: aiohttp.ClientSession, url: str, body: bytes, content_type: str) -> int:
    async with session.post(url, data=body, headers={"Content-Type": content_type}) as response:
        await response.read()
        return response.status


async def _raw(url: str, rng: random.Random) -> int:
    """Send a broken request line or header; 0 where the server only hangs up."""
    host, port = url.split("/")[2].split(":")
    lines = [b"POST /caption HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01" + rng.randbytes(50) + b"\r\n\r\n"]
    lines.append(b"POST /caption HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n")
    lines.append(b"POST /caption HTTP/1.1\r\nHost: x\r\n" + rng.randbytes(20).replace(b"\n", b"") + b"\r\n\r\n")
    reader, writer = await asyncio.open_connection(host, int(port), family=socket.AF_INET)
    try:
        writer.write(rng.choice(lines))
        answer = await asyncio.wait_for(reader.readline(), 60)
    finally:
        writer.close()
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0
