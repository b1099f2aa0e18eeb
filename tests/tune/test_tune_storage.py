"""Where studies live: a journal file, a database, a proxy to one; and what is said when one cannot be reached."""

import os
import socket
import sqlite3
import threading

import optuna
import pytest
from tiny_study import tiny_plan

from videoblip2.config import InputError
from videoblip2.tune import study as studies
from videoblip2.tune.study import (
    address,
    host_and_port,
    open_storage,
    open_study,
    serve,
    storage_errors,
)


def test_the_default_is_a_journal_in_the_studys_folder(tmp_path):
    plan = tiny_plan(tmp_path)
    assert address(plan) == str(tmp_path / "runs" / "study" / "study.journal")
    open_study(plan, open_storage(address(plan))).set_user_attr("a", 1)
    assert open_study(plan, open_storage(address(plan))).user_attrs["a"] == 1


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("storage=sqlite:///x.db", "sqlite:///x.db"),
        ("storage=sqlite:///~/x.db", "sqlite:////home/ann/x.db"),
        ("storage=$HOME/x #1.journal", "/home/ann/x #1.journal"),
        ("storage=postgresql://me:a$HOME@host/~", "postgresql://me:a$HOME@host/~"),
        ("out=~/runs", "/home/ann/runs/study/study.journal"),
    ],
)
def test_a_storage_is_where_a_shell_would_put_it(tmp_path, monkeypatch, given, found):
    monkeypatch.setenv("HOME", "/home/ann")
    assert address(tiny_plan(tmp_path, given)) == found


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{0}", "is a folder"),
        ("{0}/other.txt", "not a study's journal"),
        ("oracle7://nowhere/x", "oracle7"),
        ("grpc://nohost", "not of the form HOST:PORT"),
        ("sqlite:///{0}/other.txt", "file is not a database"),
    ],
)
def test_a_place_that_is_none_is_named(tmp_path, place, message):
    (tmp_path / "other.txt").write_text("notes, no journal\n")
    with pytest.raises(InputError, match=r"storage|address") as error:
        open_storage(place.format(tmp_path))
    assert (tmp_path / "other.txt").read_text() == "notes, no journal\n"
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_password_is_not_shown():
    with pytest.raises(InputError) as error:
        open_storage("postgresql://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(error.value)


def test_postgres_goes_through_the_driver_of_the_extra(monkeypatch):
    asked = []
    monkeypatch.setattr(optuna.storages, "RDBStorage", lambda url, **options: asked.append(url))
    for place in ("postgresql://me:x@host/db", "postgres://host/db", "postgresql+pg8000://host/db"):
        open_storage(place)
    assert asked == [
        "postgresql+psycopg2://me:x@host/db",
        "postgresql+psycopg2://host/db",
        "postgresql+pg8000://host/db",
    ]


@pytest.mark.parametrize("place", ["postgresql://me:x@host/db", "grpc://127.0.0.1:1"])
def test_an_extra_that_is_not_installed_is_named(monkeypatch, place):
    def missing(*arguments, **options):
        raise ModuleNotFoundError("No module named 'it'")

    for name in ("RDBStorage", "GrpcStorageProxy"):
        monkeypatch.setattr(optuna.storages, name, missing)
    with pytest.raises(
        InputError, match=r"storage .*://.* \(No module named 'it'\); pip install 'videoblip2\[postgres,grpc"
    ):
        open_storage(place)


def test_a_locked_database_is_one_line_that_says_the_study_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "LOCK_SECONDS", 0.05)
    place = f"sqlite:///{tmp_path / 'study.db'}"
    study = open_study(tiny_plan(tmp_path), open_storage(place))
    holder = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with (
        pytest.raises(InputError, match=r"database is locked.*run the same command again to resume the study"),
        storage_errors(place),
    ):
        study.set_user_attr("a", 1)
    holder.close()
    study.set_user_attr("a", 2)
    assert open_study(tiny_plan(tmp_path), open_storage(place)).user_attrs["a"] == 2


def test_the_journals_lock_of_a_killed_process_is_broken(tmp_path, monkeypatch):
    """The library waits 30 s for it by its clock; here that clock runs fast."""
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(study_name="s", storage=open_storage("runs/study.journal"))
    lock = tmp_path / "runs" / "study.journal.lock"
    lock.touch()
    os.utime(lock, (0, 0))
    from optuna.storages.journal import _file

    ticks = iter(range(0, 10**6, 20))
    monkeypatch.setattr(_file.time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(_file.time, "sleep", lambda seconds: None)
    again = optuna.load_study(study_name="s", storage=open_storage("runs/study.journal"))
    again.set_user_attr("a", 1)
    assert study.user_attrs == {"a": 1} and not os.path.lexists(lock)


@pytest.mark.parametrize("tail", [b'{"op_code":8,"worker_id":"x","tri', b"{", b"\x00" * 700])
def test_half_a_line_at_the_journals_end_is_cut_with_a_warning(tmp_path, capsys, tail):
    path = tmp_path / "study.journal"
    study = optuna.create_study(study_name="s", storage=open_storage(str(path)))
    study.tell(study.ask(), 0.5)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    again = optuna.load_study(study_name="s", storage=open_storage(str(path)))
    assert f"removed a partial line ({len(tail)} bytes)" in capsys.readouterr().err and path.read_bytes() == whole
    again.tell(again.ask(), 0.7)
    assert optuna.load_study(study_name="s", storage=open_storage(str(path))).best_value == 0.5
    assert len(again.get_trials()) == 2


def test_a_journal_cut_in_its_first_line_begins_anew(tmp_path):
    path = tmp_path / "study.journal"
    path.write_bytes(b'{"op_co')
    optuna.create_study(storage=open_storage(str(path)))
    assert path.read_bytes().startswith(b'{"op_code":')


def test_a_database_is_served_to_other_machines(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = f"sqlite:///{tmp_path / 'study.db'}"
    threading.Thread(target=serve, args=(database, f"127.0.0.1:{port}"), daemon=True).start()
    study = open_study(tiny_plan(tmp_path), open_storage(f"grpc://127.0.0.1:{port}"))
    study.tell(study.ask(), 0.5)
    assert open_study(tiny_plan(tmp_path), open_storage(database)).best_value == 0.5


@pytest.mark.parametrize("place", ["runs/study.journal", "grpc://127.0.0.1:1"])
def test_only_a_database_can_be_served(place):
    with pytest.raises(InputError, match="only a database can be served"):
        serve(place, "127.0.0.1:1")
    with pytest.raises(InputError, match="HOST:PORT"):
        host_and_port("13000")
