"""A process is known by host, namespace, pid and start; only one of this machine can be looked at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from videoblip2.tracking.source import ProcessRecord


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_a_record_survives_storage_and_knows_its_process(child):
    record = ProcessRecord.current(child.pid)
    assert ProcessRecord.read(record.fields()) == record
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() in record.pid_namespace
    assert record.is_local()
    assert record.is_running()


def test_a_reused_pid_is_another_process_and_a_zombie_is_none(child):
    record = ProcessRecord.current(child.pid)
    assert not record.model_copy(update={"pid_started": "1.00"}).is_running()
    assert record.model_copy(update={"pid_started": ""}).is_running(), "older records hold no start"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie until it is reaped
    assert not record.is_running()
    child.wait()
    assert not record.is_running()


@pytest.mark.parametrize("changes", [{"host": "far"}, {"pid_namespace": "pid:[1] 0-0-0"}, {"pid_namespace": ""}])
def test_another_or_an_unknown_machine_or_container_cannot_be_looked_at(changes):
    assert not ProcessRecord.current().model_copy(update=changes).is_local()


@pytest.mark.parametrize("fields", [{}, {"host": "here"}, {"host": "here", "pid": "none"}])
def test_a_malformed_record_is_no_record(fields):
    assert ProcessRecord.read(fields) is None
