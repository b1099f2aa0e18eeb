"""Observability: Prometheus metrics at `/metrics`, JSON log lines, and spans.

Spans go where BentoML's tracing configuration sends them, inside its request span. prometheus_client must be
imported after BentoML has set up the worker, so all metrics are made at first use.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from opentelemetry import trace

log = logging.getLogger("videoblip2.serving")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_request_id: ContextVar[str] = ContextVar("request_id", default="")


class Metrics:
    """Every metric of the service; names are an interface for dashboards and the autoscaler."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self.requests = Counter("vb2_requests", "Requests answered.", ["path", "status"])
        self.inside = Gauge("vb2_requests_inside", "Requests in flight.", multiprocess_mode="livesum")
        self.seconds = Histogram("vb2_request_seconds", "From a request's headers to its response.", buckets=SECONDS)
        self.phase = Histogram("vb2_phase_seconds", "Latency by phase.", ["phase"], buckets=SECONDS)
        self.queue = Gauge("vb2_queue_length", "Videos waiting for the model.", multiprocess_mode="livesum")
        self.batch = Histogram("vb2_batch_size", "Videos in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
        self.captions = Counter("vb2_captions", "Captions made.", ["model_version"])
        self.errors = Counter("vb2_errors", "Requests and videos refused or failed.", ["kind"])
        self.model = Gauge("vb2_model", "1 for the version in service.", ["version"], multiprocess_mode="livemax")


#: The metrics of this process; `start` creates them before other threads run, since each can be created only once.
metrics = cache(Metrics)


def failed(kind: str) -> None:
    """Count a failed request or video; `kind` is one of a few words, such as media, malformed, overloaded, internal."""
    metrics().errors.labels(kind).inc()


def serving(version: str) -> None:
    """Record that this version is now in service."""
    for (other,) in list(metrics().model._metrics):
        metrics().model.labels(other).set(0)
    metrics().model.labels(version).set(1)
    log.info("serving", extra={"fields": {"model_version": version}})


def timed(name: str, seconds: float, ago: float = 0.0) -> None:
    """Record a phase that took `seconds` and ended `ago` seconds ago, as a metric and a span."""
    metrics().phase.labels(name).observe(seconds)
    if trace.get_current_span().is_recording():
        end = time.time() - ago
        tracer().start_span(name, start_time=int((end - seconds) * 1e9)).end(int(end * 1e9))


def request_id() -> str:
    """Id of the current request; empty outside of one."""
    return _request_id.get()


@contextmanager
def request(request_id: str, method: str, path: str, endpoint: bool, status: Callable[[], int]) -> Iterator[None]:
    """Count, time and log one request. Only an endpoint's path becomes a label: a client can invent any other."""
    token, start = _request_id.set(request_id), time.perf_counter()
    trace.get_current_span().set_attribute("request.id", request_id)
    metrics().inside.inc(endpoint)
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        metrics().inside.dec(endpoint)
        if endpoint:
            metrics().seconds.observe(seconds)
        metrics().requests.labels(path if endpoint else "other", str(status())).inc()
        fields = {"method": method, "path": path[:200], "status": status(), "seconds": round(seconds, 4)}
        log.log(logging.DEBUG if path == "/metrics" else logging.INFO, "request", extra={"fields": fields})
        _request_id.reset(token)


def tracer() -> trace.Tracer:
    """A tracer of BentoML's provider, which puts our spans inside the request's."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    provider: trace.TracerProvider = BentoMLContainer.tracer_provider.get()
    return provider.get_tracer("videoblip2")


def start(level: str = "INFO") -> None:
    """Make the metrics, and write the service's log lines as JSON to standard error."""
    metrics()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(level)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event, request_id, trace_id, the record's `fields`, an exception's trace."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        context = trace.get_current_span().get_span_context()
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "request_id": _request_id.get() or None,
            "trace_id": format(context.trace_id, "032x") if context.is_valid else None,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in line.items() if value is not None}, default=str)
