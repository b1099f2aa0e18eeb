"""The command line: fast start, one-line errors, exit codes, overrides."""

import json
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import typer
from conftest import ROOT, plug_in
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, TEMPORARILY_UNAVAILABLE
from typer.testing import CliRunner

from videoblip2.cli import app, explain, main
from videoblip2.cli.console import overrides_from
from videoblip2.config import Config, InputError
from videoblip2.errors import dotted_keys
from videoblip2.jobs.forms import Row
from videoblip2.provenance import Provenance

HEAVY = ("torch", "mlflow", "transformers", "pydantic", "numpy", "av", "bentoml")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['vb2', '--help']\n"
        "from videoblip2.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr
    assert "scst" in run.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ce", "nowhere.yaml"], "nowhere.yaml"),
        (["ce", "experiments/toy_ce.yaml", "optim.lrr=1"], "did you mean 'optim.lr'?"),
        (["ce", "experiments/toy_ce.yaml", "--optim.lr", "fast"], "optim.lr='fast'"),
        (
            ["ce", "experiments/toy_ce.yaml", "--folder", "/no/such"],
            "--folder /no/such: cannot be used (No such file or directory)",
        ),
        (["evaluate", "no-such-model"], "no-such-model"),
        (["data", "prepare", "nothing.zip", "--out", "/tmp/never"], "nothing.zip"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(monkeypatch, capsys, tmp_path, words, message):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    monkeypatch.setattr(sys, "argv", ["vb2", *words])
    with pytest.raises(SystemExit) as end:
        main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_a_plugin_that_is_not_there_is_named(monkeypatch, capsys):
    monkeypatch.setenv("VB2_PLUGINS", "json, no_such_module")
    monkeypatch.setattr(sys, "argv", ["vb2", "experiments", "list"])
    with pytest.raises(SystemExit):
        main()
    said = "error: VB2_PLUGINS: 'no_such_module' cannot be imported (No module named 'no_such_module'); install or"
    assert capsys.readouterr().err.startswith(said)


def test_a_plugin_that_ends_the_process_is_refused(tmp_path, monkeypatch):
    said = r"VB2_PLUGINS: 'script' cannot be imported \(it calls sys.exit\(0\)\); install"
    with pytest.raises(InputError, match=said):
        plug_in("script", "raise SystemExit(0)", tmp_path, monkeypatch)


def leaves(command, words=()):
    """(words, command) of every command."""
    if not hasattr(command, "commands"):
        yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from leaves(below, (*words, name))


GROUP = typer.main.get_command(app)
LEAVES = dict(leaves(GROUP))


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_command_has_examples_that_parse_and_an_uncut_summary(words):
    shown = CliRunner().invoke(app, [*words, "--help"], terminal_width=80).stdout
    examples = [line.strip() for line in shown.partition("Example")[2].splitlines()[1:]]
    assert examples
    for example in examples:
        program, *rest = shlex.split(example)
        assert program == "vb2" and tuple(rest[: len(words)]) == words
        LEAVES[words].make_context(words[-1], rest[len(words) :])
    listed = CliRunner().invoke(app, [*words[:-1], "--help"], terminal_width=80).stdout
    summary = LEAVES[words].callback.__doc__.partition("\n")[0]
    assert "".join(summary.split()) in "".join(listed.split())


@pytest.mark.parametrize("width", [60, 80, 100])
def test_help_is_as_wide_as_the_terminal(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "argv", ["vb2", "features", "check", "--help"])
    with pytest.raises(SystemExit):
        main()
    prose = capsys.readouterr().out.partition("Example")[0]
    assert width - 15 < max(map(len, prose.splitlines())) <= width


def test_an_option_has_the_name_of_its_key():
    keys = {key.rpartition(".")[2] for key in dotted_keys(Config)}
    assert "num_beams" in keys
    for command in LEAVES.values():
        assert {"beams"}.isdisjoint(parameter.name for parameter in command.params)


def test_wrong_usage_is_exit_code_2():
    run = CliRunner().invoke(app, ["ce"])
    assert run.exit_code == 2
    assert "CONFIG" in run.stderr


def test_debug_shows_where(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vb2", "ce", "nowhere.yaml", "--debug"])
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        main()


def test_a_bug_points_to_debug_and_a_mistake_does_not():
    assert explain(InputError("value x: wrong")) == "value x: wrong"
    denied = explain(MlflowException("Permission denied at http://me:secret@host", PERMISSION_DENIED))
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in denied and "secret" not in denied
    locked = explain(MlflowException("database is locked\n[SQL: …]", TEMPORARILY_UNAVAILABLE))
    assert "is locked by another process, or unreachable (database is locked); nothing more was written" in locked
    assert explain(KeyError("x")) == "KeyError: 'x' (run again with --debug to see where)"


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["a=1", "b.c=2"], ["a=1", "b.c=2"]),
        (["--optim.lr", "1e-5", "seed=3"], ["optim.lr=1e-5", "seed=3"]),
        (["--optim.lr=1e-5"], ["optim.lr=1e-5"]),
        (None, []),
    ],
)
def test_options_of_mlflow_run_are_overrides(words, overrides):
    assert overrides_from(words) == overrides


def test_home_is_replaced_in_paths_that_the_shell_leaves_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for target in ("~/a.yaml", "$HOME/b.yaml"):
        assert CliRunner().invoke(app, ["experiments", "copy", "toy_ce", target]).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.yaml", "b.yaml"}
    result = CliRunner().invoke(app, ["caption", "~/best", "a.mp4"])
    assert str(result.exception).startswith(f"{tmp_path}/best: no such file or folder")


def test_json_is_the_last_line():
    run = CliRunner().invoke(app, ["experiments", "list", "--json"])
    assert run.exit_code == 0, run.stderr
    assert isinstance(json.loads(run.stdout.splitlines()[-1]), dict)


def caption(monkeypatch, tmp_path, *found):
    """`vb2 caption` of files in place of a model that finds these rows; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").touch()
    for row in found:
        (tmp_path / row.path).touch()
    found_model = SimpleNamespace(version="1", folder=tmp_path)
    for room in ("tracking", "predict"):
        monkeypatch.setattr(f"videoblip2.{room}.find_model", lambda model: found_model)
    model = SimpleNamespace(version="1", provenance=Provenance(), load_media_encoders=lambda: None)
    monkeypatch.setattr("videoblip2.predict.load_captioner", lambda model_, **_: model)
    monkeypatch.setattr("videoblip2.jobs.caption.CaptionJob.run", lambda *_: ([row] for row in found))
    monkeypatch.setattr(sys, "argv", ["vb2", "caption", "model", *(row.path for row in found), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


def test_an_empty_caption_is_a_caption(monkeypatch, capsys, tmp_path):
    rows = [Row("a", "a", "a dog"), Row("b", "b", ""), Row("c", "c", error="broken")]
    assert caption(monkeypatch, tmp_path, *rows) == 3
    assert capsys.readouterr().out.splitlines()[:-1] == ["a: a dog", "b: (nothing)", "c: error: broken"]


@pytest.mark.parametrize(("bad", "code", "error"), [(0, 0, ""), (1, 3, ""), (2, 1, "error: all 2 items failed")])
def test_the_exit_code_says_whether_none_some_or_all_items_failed(monkeypatch, capsys, tmp_path, bad, code, error):
    rows = [Row(name, name, error="broken") if n < bad else Row(name, name, "a dog") for n, name in enumerate("ab")]
    assert caption(monkeypatch, tmp_path, *rows) == code
    out, err = capsys.readouterr()
    said = json.loads(out.splitlines()[-1])["captions"]
    assert [(row["caption"], row["error"]) for row in said] == [(row.caption, row.error) for row in rows]
    assert err.startswith(error) and len(err.splitlines()) == bool(error)


def test_a_job_whose_files_are_all_missing_ends_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr("videoblip2.tracking.find_model", lambda model: SimpleNamespace(folder=None))
    monkeypatch.setattr("videoblip2.predict.load_captioner", None)
    monkeypatch.setattr(sys, "argv", ["vb2", "caption", "model", "missing.mp4", "nothing*.mp4"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: missing.mp4: no such file")
