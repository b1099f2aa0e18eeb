"""A store that does not answer: nothing stops, messages wait in order, survive the process, and arrive once."""

import errno
import os
import sqlite3
import time

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError
from tracking_store import place_store

from videoblip2.config import InputError
from videoblip2.tracking import RunSpec, open_run
from videoblip2.tracking.mlflow import outbox
from videoblip2.tracking.mlflow import store as stores
from videoblip2.tracking.mlflow.outbox import Outbox, Unsent, is_outage
from videoblip2.tracking.mlflow.run_records import list_runs

GONE = MlflowException("API request failed with exception: connection refused")


class Store:
    """Takes points, or fails with `error`."""

    def __init__(self):
        self.got, self.error, self.attempts = [], None, 0

    def log_batch(self, run_id, metrics, params, tags):
        self.attempts += 1
        if self.error:
            raise self.error
        self.got += [metric.step for metric in metrics]

    def get_metric_history(self, run_id, key):
        return []


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def box(store, tmp_path):
    return Outbox(store, "run", file=tmp_path / "run" / "unsent.jsonl")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    return place_store(tmp_path, monkeypatch)


def record(step):
    return Unsent(points=[("train/loss", 0.1 * step, 1000, step)], tags=[("note", "é, of\u2028two lines")])


def test_what_cannot_be_sent_waits_in_order_and_attempts_grow_rare(box, store, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(outbox.time, "monotonic", lambda: now[0])
    store.error = GONE
    box.put(record(1))
    box.put(record(2))
    assert store.attempts == 1  # the second one did not even try
    for wait, attempts in ((9, 1), (2, 2), (19, 2), (2, 3)):
        now[0] += wait
        box.send()
        assert store.attempts == attempts
    store.error = None
    assert not box.send()
    now[0] += outbox.LONGEST_WAIT
    box.put(record(3))
    assert store.got == [1, 2, 3]
    warnings = capsys.readouterr().err.splitlines()
    assert ["does not answer" in warnings[0], "answers again" in warnings[1], len(warnings)] == [True, True, 2]


def test_messages_survive_the_process_and_come_first(box, store):
    store.error = GONE
    box.put(record(1))
    assert box.write()
    later = Outbox(store, "run", file=box.file)
    assert later.unsent == record(1)
    store.error = None
    later.put(record(2))
    assert store.got == [1, 2]
    assert not box.file.exists()


def test_an_older_file_stays_until_the_new_one_is_whole(box, store, monkeypatch, capsys):
    store.error = GONE
    box.put(record(1))
    box.write()
    box.put(record(2))
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    assert not box.write()
    assert box.file.read_text() == record(1).model_dump_json() + "\n"
    assert "No space left); points 2, tags 2 will be lost" in capsys.readouterr().err
    assert [path.name for path in box.file.parent.iterdir()] == [box.file.name]


def test_a_mistake_is_raised_and_does_not_block(box, store):
    store.error = MlflowException("bad name", error_code=1000)
    with pytest.raises(MlflowException, match="bad name"):
        box.put(record(1))
    store.error = None
    box.put(record(2))
    assert store.got == [2]


def test_a_signal_in_the_middle_of_a_call_loses_nothing(box, store):
    store.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        box.put(record(1))
    store.error = None
    assert box.send() and store.got == [1]


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (GONE, True),
        (MlflowException("locked", error_code=3001), False),
        (OperationalError("", {}, Exception("database is locked")), True),
        (ConnectionResetError(), True),
        (OSError(errno.ENOSPC, "full"), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (ValueError(), False),
    ],
)
def test_what_counts_as_an_outage(error, outage):
    assert is_outage(error) is outage


def test_a_description_counts():
    more = Unsent(tables=[("t.json", [])], files=[("f", None), ("g", None)], data_sets=[("d", "1", "{}", "val")])
    assert str(more) == "tables 1, files 2, data sets 1"


@pytest.fixture
def short_lock_wait():
    """MLflow waits 20 s for a locked sqlite file."""

    def shorten(connection, cursor, statement, parameters, context, executemany):
        return statement.replace("busy_timeout = 20000", "busy_timeout = 50"), parameters

    event.listen(Engine, "before_cursor_execute", shorten, retval=True)
    yield
    event.remove(Engine, "before_cursor_execute", shorten)


def test_a_locked_store_holds_points_back_and_gets_them_once(runs, short_lock_wait, capsys):
    with open_run(RunSpec("ce", "n", "toy", folder=runs / "ce")) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, 1)
        tracker.flush()
        other = sqlite3.connect(runs / "mlflow.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        tracker.log_metrics({"train/loss": 2.0}, 2)
        tracker.flush()
        assert f"unsent-{tracker.run_id}.jsonl" in [path.name for path in (runs / "ce").iterdir()]
        other.rollback()
        tracker.log_metrics({"train/loss": 3.0}, 3)
    history = stores.connect().get_metric_history(tracker.run_id, "train/loss")
    assert [point.value for point in history] == [1.0, 2.0, 3.0]
    assert list((runs / "ce").iterdir()) == []
    assert "database is locked" in capsys.readouterr().err


def test_points_left_behind_are_sent_when_the_run_goes_on(runs, monkeypatch, capsys):
    """Steps 2 and 3 were kept back; the training resumes from step 2, and logs 3 again."""
    gone = {"now": False}

    def fail_when_gone(self, *arguments, **more):
        if gone["now"]:
            raise GONE
        return send(self, *arguments, **more)

    import mlflow

    send = mlflow.MlflowClient.log_batch
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fail_when_gone)
    with open_run(RunSpec("ce", "n", "toy", folder=runs / "ce")) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, 1)
        tracker.flush()
        gone["now"] = True
        for step in (2, 3):
            tracker.log_metrics({"train/loss": float(step)}, step)
    assert "not sent: points 2" in capsys.readouterr().err
    gone["now"] = False
    with open_run(RunSpec("ce", "n", "toy", resume_run_id=tracker.run_id, folder=runs / "ce")) as again:
        for step in (3, 4):
            again.log_metrics({"train/loss": float(step)}, step)
    history = stores.connect().get_metric_history(tracker.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_a_run_without_a_folder_says_what_is_lost(runs, monkeypatch, capsys):
    import mlflow

    with open_run(RunSpec("evaluate", "n", "toy")) as tracker:
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(GONE))
        tracker.log_metrics({"test/CIDEr": 1.0}, 0)
    assert f"run {tracker.run_id}: lost, since the tracking store does not answer" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_said_within_seconds(tmp_path, monkeypatch):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(InputError, match=r"no tracking server .*onnection refused.*correct MLFLOW_TRACKING_URI"):
        list_runs()
    assert time.monotonic() - started < 30


def test_a_checkpoint_is_not_tried_for_minutes_while_the_store_is_away(runs, monkeypatch):
    import mlflow

    tried = []
    monkeypatch.setattr("videoblip2.tracking.mlflow.models.log_checkpoint", lambda *_: tried.append("model"))
    with open_run(RunSpec("ce", "n", "toy", folder=runs / "ce")) as tracker:
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(GONE))
        tracker.log_best({"val/CIDEr": 0.6})
        with pytest.raises(InputError, match=f"not logged as a model.*resume={tracker.run_id} logs it"):
            tracker.log_checkpoint(runs / "ce" / "best", "ce", {"val/CIDEr": 0.6})
    assert tried == []
    assert [path.name for path in (runs / "ce").iterdir()] == [f"unsent-{tracker.run_id}.jsonl"]


# --- a data set on its way


def deliver(client):
    box = Outbox(client, "run")
    box.unsent.data_sets.append(("world/train.json", "abc", "{}", "train"))
    box.deliver()


class Client:
    """Fails as often as told, then takes the message."""

    def __init__(self, *failures: str) -> None:
        self.failures, self.taken = list(failures), []

    def log_inputs(self, run_id, inputs):
        if self.failures:
            raise MlflowException(self.failures.pop(0))
        self.taken.append((run_id, inputs[0].dataset.name))


def test_data_that_another_run_named_at_the_same_moment_is_named_again():
    client = Client("(psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint")
    deliver(client)
    assert client.taken == [("run", "world/train.json")]


@pytest.mark.parametrize("failures", [("no such run",), ("UNIQUE constraint failed", "UNIQUE constraint failed")])
def test_another_failure_is_not_hidden(failures):
    client = Client(*failures)
    with pytest.raises(MlflowException):
        deliver(client)
    assert not client.taken
