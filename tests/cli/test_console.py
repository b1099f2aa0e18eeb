"""Tables, progress and errors as they are printed."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from videoblip2.captions.intervals import BootstrapResult
from videoblip2.cli import console, explain
from videoblip2.cli.console import interruptible, progress, table
from videoblip2.errors import first_line
from videoblip2.files import write_json, write_text


@dataclass(frozen=True)
class Gain:
    name: str
    gains: tuple[BootstrapResult, ...]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EROFS, "Read-only file system", "/nfs"), "Read-only file system"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (RuntimeError("HTTPConnection: [Errno 111] Connection refused'))"), "Connection refused"),
    ],
)
def test_the_systems_words_are_kept_whole(error, line):
    assert first_line(error) == line


def test_a_name_that_is_too_long_is_the_users(tmp_path):
    with pytest.raises(OSError, match=r"x{250}") as raised:
        write_text(tmp_path / ("x" * 250), "")
    assert ".part" not in str(raised.value)


def test_a_long_name_goes_on_in_the_next_line_and_an_id_stays_whole(monkeypatch):
    monkeypatch.setattr(console.sys, "stdout", SimpleNamespace(isatty=lambda: True))
    drawn = table("Runs", ["id", "name"], [["0123456789abcdef" * 2, "a-long-name-of-a-run-" * 10]], fold=("name",))
    assert "0123456789abcdef" * 2 in drawn
    assert "".join(line.split("│")[2].strip() for line in drawn.splitlines() if "│" in line) == (
        "a-long-name-of-a-run-" * 10
    )


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    code = """
import typer
from videoblip2.cli.console import interruptible
def talk():
    with interruptible("kept"):
        while True:
            print("a line", flush=True)
typer.run(talk)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        command.stdout.readline()
        command.stdout.close()
        assert command.wait(30) == 0 and command.stderr.read() == b""


def test_a_table_in_a_file_is_as_wide_as_it_wants(monkeypatch):
    monkeypatch.setattr(console.sys, "stdout", SimpleNamespace(isatty=lambda: False))
    names = [f"a-long-name-of-run-{number}" for number in range(20)]
    assert all(name in table("Runs", names, [names]).splitlines()[2] for name in names)


def test_without_a_terminal_progress_is_a_line_a_minute(monkeypatch, capsys):
    clock = iter([0.0, 30.0, 61.0, 90.0, 125.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    assert list(progress("abcd", 8, "features")) == list("abcd")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["features: 2 of 8, 3 min left, 0.0/s", "features: 4 of 8, 2 min left, 0.0/s"]


@pytest.mark.parametrize("odd", ["a\u2028b", "a\u2029b", "a\x85b", "a\x1eb\nc", "half\udcff.mp4"])
def test_odd_characters_stay_inside_their_line(monkeypatch, tmp_path, capsys, odd):
    monkeypatch.setattr(console, "AS_JSON", SimpleNamespace(get=lambda: True))
    console.emit({"text": odd, "path": tmp_path}, "")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["text"] == odd
    write_json(tmp_path / "f.json", {"text": odd}, indent=None)
    (line,) = (tmp_path / "f.json").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["text"] == odd


def test_records_are_printed_as_plain_data(monkeypatch, capsys):
    record = Gain("a", (BootstrapResult(1.0, float("nan"), float("inf"), 0.5),))
    monkeypatch.setattr(console, "AS_JSON", SimpleNamespace(get=lambda: True))
    console.emit(record, "told", more=Path("x"))
    told, line = capsys.readouterr().out.splitlines()
    gain = {"difference": 1.0, "low": None, "high": None, "p_value": 0.5}
    assert told == "told" and json.loads(line) == {"name": "a", "gains": [gain], "more": "x"}


def test_sigterm_ends_the_work_as_ctrl_c_does(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruptible("half of it is kept"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert capsys.readouterr().err == "half of it is kept\n" and signal.getsignal(signal.SIGTERM) is before


def test_an_error_of_the_system_names_the_place_and_a_remedy(tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        write_text(tmp_path, "to a folder")
    assert explain(caught.value).startswith(f"{tmp_path}: Is a directory; choose another place (")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/train.json")
    assert explain(full).startswith("out/train.json: No space left on device; free some space")
    assert explain(OSError("odd")) == "OSError: odd (run again with --debug to see where)"
