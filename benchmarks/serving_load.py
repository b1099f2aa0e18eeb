"""Clients for the serving benchmark: closed-loop load, and the forms that they send."""

import asyncio
import io
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
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
