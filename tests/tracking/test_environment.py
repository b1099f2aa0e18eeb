"""What made a run: its command without secrets, and what is installed."""

import sys
from importlib import metadata

import pytest
from tracking_store import place_store

from videoblip2.config import InputError
from videoblip2.errors import masked
from videoblip2.tracking import RunSpec, open_run
from videoblip2.tracking.mlflow.store import connect
from videoblip2.tracking.source import command_line, environment, lock_difference, short_digest

SECRET = "s3cr:et@/#"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            f"vb2 tune x 'storage=postgresql://me:{SECRET}@db/optuna'",
            "vb2 tune x 'storage=postgresql://me:***@db/optuna'",
        ),
        (f"http://:{SECRET}@host:5000, and then more", "http://:***@host:5000, and then more"),
        ("https://token-1234@tracking.example/x", "https://***@tracking.example/x"),
        (
            "postgresql://host/db?user=me&password=s3cret&sslmode=require",
            "postgresql://host/db?user=me&password=***&sslmode=require",
        ),
        ("s3://bucket/x?AWS_SECRET_ACCESS_KEY=abc", "s3://bucket/x?AWS_SECRET_ACCESS_KEY=***"),
        ("http://127.0.0.1:5000: models:/videoblip2@champion", "http://127.0.0.1:5000: models:/videoblip2@champion"),
        (
            "runs/study.journal seed=3 data.prompt='who @ what: ?'",
            "runs/study.journal seed=3 data.prompt='who @ what: ?'",
        ),
    ],
)
def test_passwords_and_tokens_of_addresses_are_masked_and_nothing_else(text, shown):
    assert masked(text) == str(InputError(text)) == shown


def test_no_secret_reaches_a_run_or_a_message(tmp_path, monkeypatch, capsys):
    place_store(tmp_path, monkeypatch)
    address = f"postgresql://me:{SECRET}@db/x"
    monkeypatch.setattr(sys, "argv", ["/bin/vb2", "tune", "study", f"storage={address}"])
    with open_run(RunSpec("tune", "trial", "toy")) as tracker:
        tracker.set_tags({"command": command_line(), "optuna.storage": address})
        tracker.log_config({"storage": address})
        tracker.note(f"`{command_line()}` of {address}")
    run = connect().get_run(tracker.run_id)
    assert SECRET not in str(run.data.tags) + str(run.data.params)
    assert run.data.tags["command"] == "vb2 tune study 'storage=postgresql://me:***@db/x'"


def test_every_installed_package_is_pinned_once():
    head, *lines = environment().splitlines()
    assert head.startswith("# python 3.")
    assert f"numpy=={metadata.version('numpy')}" in lines
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(set(names))


def test_what_differs_is_named_from_old_to_new():
    old = "# python 3.11.7\na==1.0\nb==1.0\nc==1.0\n"
    new = "# python 3.11.9\na==1.0\nb==2.0\nd==1.0\n"
    assert lock_difference(old, new) == ["b 1.0 -> 2.0", "c 1.0 -> none", "d none -> 1.0", "python 3.11.7 -> 3.11.9"]
    assert lock_difference(old, old) == []
    assert short_digest(old) != short_digest(new)
