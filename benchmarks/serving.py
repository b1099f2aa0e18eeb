"""The service beside a plain one (one request, one `generate`), same small random model, same machine, as ratios.

    python benchmarks/serving.py [--quick] [--json] [--batched] [--only PART] [--world DIR]

1. Rounds at 1, 8 and 32 clients, features and videos, both services in turn; medians over the rounds count.
2. 10,000 requests from 32 clients with a promotion and a rollback in between: how many failed.
3. 1,000 malformed requests to all routes (serving_fuzz): each 4xx, and how the server's memory went.

--quick: 1,000 and 200 requests, fewer rounds. --batched adds BentoML's own batching in front of the same decoder.
--json ends with one object: ratio_32, latency_ratio_1, requests, failed and more. Clients run on the same cores.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import numpy as np
import psutil
from serving_fuzz import fuzz
from serving_load import Load, features_body, load, multipart, tensors_body
from serving_plain import NEW_TOKENS
from serving_world import ROOT, make_world, random_item

from videoblip2.registry.versions import set_champion

CLIENTS = (1, 8, 32)
MOVES = ("promotion", "rollback")
PARTS = ("rounds", "changes", "malformed")
START_SECONDS = 600


@dataclass
class Server:
    """One of the services in a process of its own."""

    name: str
    url: str
    process: "subprocess.Popen[bytes]"
    rounds: dict[tuple[str, int], list[Load]] = field(default_factory=dict)

    def memory(self) -> float:
        """Megabytes of the server's processes."""
        tree = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in (tree, *tree.children(recursive=True))) / 1e6


@dataclass(frozen=True)
class Sizes:
    """How much is asked."""

    rounds: int
    features: dict[int, int]
    videos: dict[int, int]
    requests: int
    malformed: int


FULL = Sizes(5, {1: 40, 8: 120, 32: 320}, {1: 10, 8: 32, 32: 64}, 10_000, 1_000)
QUICK = Sizes(2, {1: 10, 8: 16, 32: 64}, {1: 3, 8: 8, 32: 32}, 1_000, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--batched", action="store_true", help="BentoML's own batching as a third service")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part, or several; default all")
    parser.add_argument("--world", type=Path, help="folder with the models and videos, made there if it is not yet")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end with it
    sizes = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="vb2-serving-") as folder:
        world = options.world or Path(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{world / 'mlflow.db'}"
        if not (world / "mlflow.db").exists():
            make_world(world)
        parts = options.only or PARTS
        names = ["service", "plain", *(["batched"] if options.batched else [])] if "rounds" in parts else ["service"]
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(served(name, world)) for name in names]
            report = asyncio.run(measure(servers, sizes, world, parts))
    print_report(report)
    if options.json:
        print(json.dumps(report))


TARGETS = {
    "service": "serving.service:VideoBlip2Service",
    "plain": "benchmarks.serving_plain:Plain",
    "batched": "benchmarks.serving_plain:Batched",
}


@contextlib.contextmanager
def served(name: str, world: Path) -> Iterator[Server]:
    """`bentoml serve` on a free loopback port, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", TARGETS[name], "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "PLAIN_MODEL": str(world / "model0"), "BENTOML_HOME": str(world / "bentoml")}
    with (world / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_ready(url, process, Path(log.name))
            yield Server(name, url, process)
        finally:
            process.terminate()
            process.wait(60)


def wait_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return
        time.sleep(0.2)
    raise SystemExit(f"{url} did not start: {log.read_text()[-2000:]}")


async def measure(servers: list[Server], sizes: Sizes, world: Path, parts: Sequence[str]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    items = [random_item(rng) for _ in range(64)]
    videos = [path.read_bytes() for path in sorted((world / "videos").glob("*.mp4"))]
    report: dict[str, Any] = {}
    if "rounds" in parts:
        report |= await compare(servers, sizes, items, videos)
    if "changes" in parts:
        bodies = [features_body(item, max_new_tokens=str(NEW_TOKENS)) for item in items]
        report |= await change_models(servers[0], sizes.requests, bodies)
    if "malformed" in parts:
        report |= await send_malformed(servers[0], sizes.malformed, items[0])
    return report


async def compare(servers: list[Server], sizes: Sizes, items: list[Any], videos: list[bytes]) -> dict[str, Any]:
    """Rounds in turn, and their ratios."""
    for turn in range(sizes.rounds + 1):
        for clients in CLIENTS:
            for server in servers[:: 1 if turn % 2 else -1]:
                for kind, counts in (("features", sizes.features), ("videos", sizes.videos)):
                    await one_round(server, kind, clients, counts[clients] if turn else clients, items, videos, turn)
    rows = [row(servers, kind, clients) for kind in ("features", "videos") for clients in CLIENTS]
    by_name = {(one["kind"], one["clients"]): one for one in rows}
    return {
        "rows": rows,
        "ratio_32": by_name["features", 32]["ratio"],
        "ratio_32_videos": by_name["videos", 32]["ratio"],
        "latency_ratio_1": by_name["features", 1]["latency_ratio"],
        "latency_ratio_1_videos": by_name["videos", 1]["latency_ratio"],
    }


async def one_round(
    server: Server, kind: str, clients: int, count: int, items: list[Any], videos: list[bytes], turn: int
) -> None:
    """One measurement; turn 0 warms up. BentoML's batching takes one argument, so it gets no videos here."""
    if kind == "videos" and server.name == "batched":
        return
    options = {"max_new_tokens": str(NEW_TOKENS)} if server.name == "service" else {}
    path = "/caption_media" if kind == "videos" and server.name == "plain" else "/caption"
    if kind == "videos":
        bodies = [multipart({"video": video, **options}) for video in videos]
    elif server.name == "batched":
        bodies = [tensors_body(item) for item in items]
    else:
        bodies = [features_body(item, **options) for item in items]
    result = await load(server.url + path, bodies, clients, count)
    if result.failed:
        print(f"{server.name}, {kind}, {clients} clients: {dict(result.statuses)}", file=sys.stderr)
    print(f"{turn} {server.name} {kind} {clients} clients: {result.rate:.2f}/s, {result.median:.3f} s", file=sys.stderr)
    if turn:
        server.rounds.setdefault((kind, clients), []).append(result)


def row(servers: list[Server], kind: str, clients: int) -> dict[str, Any]:
    """Requests a second and median seconds of each service; ratios to the plain one by round, median and range."""
    result: dict[str, Any] = {"kind": kind, "clients": clients}
    for server in servers:
        rounds = server.rounds.get((kind, clients))
        if rounds:
            result[f"{server.name}_rate"] = statistics.median(one.rate for one in rounds)
            result[f"{server.name}_median"] = statistics.median(one.median for one in rounds)
            result[f"{server.name}_failed"] = sum(one.failed for one in rounds)
    ours, plain = (server.rounds[kind, clients] for server in servers[:2])
    ratios = [one.rate / other.rate for one, other in zip(ours, plain, strict=True)]
    latencies = [one.median / other.median for one, other in zip(ours, plain, strict=True)]
    result |= {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}
    return result | {"latency_ratio": statistics.median(latencies), "latency_range": [min(latencies), max(latencies)]}


async def change_models(server: Server, requests: int, bodies: list[bytes]) -> dict[str, Any]:
    """Load from 32 clients while version 2 becomes champion and, later, version 1 again."""
    done = threading.Event()
    seconds: dict[str, float] = {}

    def promote() -> None:
        for name, version in zip(MOVES, (2, 1), strict=True):
            if done.wait(3):
                return
            set_champion("videoblip2", version)
            start = time.perf_counter()
            while version_of(server.url) != f"videoblip2/{version}" and not done.wait(0.1):
                pass
            seconds[f"{name}_seconds"] = time.perf_counter() - start

    promoter = threading.Thread(target=promote)
    promoter.start()
    result = await load(server.url + "/caption", bodies, 32, requests)
    done.set()
    promoter.join()
    moved = {"requests": requests, "failed": result.failed, "versions": dict(result.versions), "rate": result.rate}
    return {**moved, **seconds}


def version_of(url: str) -> str:
    with urllib.request.urlopen(f"{url}/model", timeout=60) as answer:
        return str(json.load(answer)["model_version"])


async def send_malformed(server: Server, count: int, item: Any) -> dict[str, Any]:
    """Malformed requests after as many others that let memory settle, and good ones at the end."""
    await asyncio.to_thread(fuzz, server.url, count, 1)
    before = server.memory()
    result = await asyncio.to_thread(fuzz, server.url, count, 2)
    alive = await load(server.url + "/caption", [features_body(item)], 1, 5)
    return {
        "malformed": count,
        "malformed_4xx": count - len(result["not_4xx"]),
        "malformed_statuses": {str(status): number for status, number in result["by_status"].items()},
        "not_4xx": result["not_4xx"],
        "memory_mb": round(before, 1),
        "memory_growth_mb": round(server.memory() - before, 1),
        "failed_after": alive.failed,
    }


def print_report(report: dict[str, Any]) -> None:
    if "rows" in report:
        print(f"{'':24}{'requests/s':>22}{'ratio (range)':>24}{'median s':>20}{'ratio (range)':>24}")
    for one in report.get("rows", ()):
        print_row(one)
    if "failed" in report:
        moved = ", ".join(
            f"{name} served after {report[f'{name}_seconds']:.1f} s" for name in MOVES if f"{name}_seconds" in report
        )
        print(f"{report['requests']} requests, {report['failed']} failed; {moved}; {report['versions']}")
    if "malformed" in report:
        print(f"{report['malformed']} malformed, {report['malformed_4xx']} got 4xx: {report['malformed_statuses']}")
        print(f"memory {report['memory_mb']} MB, {report['memory_growth_mb']:+} MB")


def print_row(one: dict[str, Any]) -> None:
    rates = f"{one['service_rate']:.1f} : {one['plain_rate']:.1f}"
    medians = f"{one['service_median']:.3f} : {one['plain_median']:.3f}"
    print(
        f"{one['kind']:10}{one['clients']:4} clients  {rates:>22}{spread(one['ratio'], one['ratio_range']):>24}"
        f"{medians:>20}{spread(one['latency_ratio'], one['latency_range']):>24}"
    )
    if "batched_rate" in one:
        failed = one["batched_failed"]
        print(f"{'':12}BentoML's batching {one['batched_rate']:.1f}/s, {one['batched_median']:.3f} s, {failed} failed")


def spread(value: float, bounds: list[float]) -> str:
    return f"{value:.2f} ({bounds[0]:.2f}-{bounds[1]:.2f})"


if __name__ == "__main__":
    random.seed(0)
    main()
