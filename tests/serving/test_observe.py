"""Metrics by name, log lines as JSON, spans inside the request's."""

import io
import json
import logging

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from serving import observe


def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def lines():
    """What the service logs, as the lines it writes."""
    log, text = observe.log, io.StringIO()
    before = log.handlers, log.propagate, log.level
    observe.start()
    log.handlers[0].setStream(text)
    yield lambda: [json.loads(line) for line in text.getvalue().splitlines()]
    log.handlers, log.propagate, log.level = before[0], before[1], before[2]


@pytest.fixture
def spans(monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(observe, "tracer", lambda: provider.get_tracer("videoblip2"))
    return exporter


def test_a_failure_and_a_phase_have_their_metrics(spans):
    before = value("vb2_errors_total", kind="test")
    observe.failed("test")
    observe.timed("queue", 0.3)
    assert value("vb2_errors_total", kind="test") == before + 1
    assert value("vb2_phase_seconds_sum", phase="queue") >= 0.3


def test_one_version_at_a_time_is_the_one_served(lines):
    observe.serving("v/1")
    observe.serving("v/2")
    assert (value("vb2_model", version="v/1"), value("vb2_model", version="v/2")) == (0, 1)
    assert [line["model_version"] for line in lines()] == ["v/1", "v/2"]


def test_a_phase_is_a_metric_and_a_span_inside_the_one_around_it(spans):
    before = value("vb2_phase_seconds_sum", phase="generate")
    with observe.tracer().start_as_current_span("request"):
        observe.timed("generate", 2.0, ago=1.0)
    inner, outer = spans.get_finished_spans()
    assert (inner.name, outer.name) == ("generate", "request")
    assert inner.parent.span_id == outer.context.span_id
    assert (inner.end_time - inner.start_time) / 1e9 == pytest.approx(2)
    assert value("vb2_phase_seconds_sum", phase="generate") == pytest.approx(before + 2)


def test_a_request_is_counted_timed_and_logged_with_its_id_and_trace(lines, spans):
    before = value("vb2_requests_total", path="/caption", status="200")
    with (
        observe.tracer().start_as_current_span("server"),
        observe.request("id-1", "POST", "/caption", True, lambda: 200),
    ):
        assert value("vb2_requests_inside") == 1
        observe.log.warning("within", extra={"fields": {"video": 3}})
    observe.log.info("after")
    within, request, after = lines()
    assert (within["event"], within["request_id"], within["video"], within["level"]) == ("within", "id-1", 3, "warning")
    assert (request["path"], request["status"], request["request_id"]) == ("/caption", 200, "id-1")
    assert within["trace_id"] == request["trace_id"] and len(request["trace_id"]) == 32
    assert "request_id" not in after and "trace_id" not in after
    assert value("vb2_requests_inside") == 0
    assert value("vb2_requests_total", path="/caption", status="200") == before + 1
    assert spans.get_finished_spans()[0].attributes["request.id"] == "id-1"


def test_paths_that_clients_make_up_do_not_become_labels(lines):
    before = value("vb2_requests_total", path="other", status="404")
    for number in range(5):
        with observe.request("x", "GET", f"/made-up-{number}", False, lambda: 404):
            pass
    assert value("vb2_requests_total", path="other", status="404") == before + 5
    assert not [s for m in REGISTRY.collect() for s in m.samples if "made-up" in str(s.labels)]
    assert [line["path"] for line in lines()] == [f"/made-up-{number}" for number in range(5)]


def test_scrapes_are_not_logged(lines):
    with observe.request("x", "GET", "/metrics", False, lambda: 200):
        pass
    assert lines() == []


def test_an_exceptions_trace_stays_on_one_line(lines):
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        observe.log.exception("unexpected")
    (line,) = lines()
    assert "RuntimeError: two\nlines" in line["exception"]


def test_the_level_comes_from_the_environment(monkeypatch, lines):
    observe.start("WARNING")
    assert observe.log.level == logging.WARNING


def test_spans_go_to_bentomls_provider():
    from bentoml._internal.configuration.containers import BentoMLContainer

    provider = BentoMLContainer.tracer_provider.get()
    assert observe.tracer().resource == provider.resource
