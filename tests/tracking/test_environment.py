"""The lock of a checkpoint: what is installed, and what differs between two of them."""

from importlib import metadata

from videoblip2.tracking.source import environment, lock_difference, lock_digest, write_environment


def test_every_installed_package_is_pinned_once(tmp_path):
    write_environment(tmp_path / "environment.txt")
    text = (tmp_path / "environment.txt").read_text()
    assert text == environment()
    head, *lines = text.splitlines()
    assert head.startswith("# python 3.")
    assert f"numpy=={metadata.version('numpy')}" in lines
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(set(names))


def test_what_differs_is_named_from_old_to_new():
    old = "# python 3.11.7\na==1.0\nb==1.0\nc==1.0\n"
    new = "# python 3.11.9\na==1.0\nb==2.0\nd==1.0\n"
    assert lock_difference(old, new) == ["b 1.0 -> 2.0", "c 1.0 -> none", "d none -> 1.0", "python 3.11.7 -> 3.11.9"]
    assert lock_difference(old, old) == []
    assert lock_digest(old) != lock_digest(new)
