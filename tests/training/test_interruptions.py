"""A full disk, a second training in the same folder, and stops, each said in a line; signals wait for whole steps."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from videoblip2.config import InputError
from videoblip2.tracking import RunSpec, Tracker, open_run
from videoblip2.tracking.mlflow.store import is_local
from videoblip2.tracking.tracker import Terminated
from videoblip2.training.interruptions import is_full, memory_for, only_one_in, signals_wait, stop_well
from videoblip2.training.state import StateFile, TrainState


class Kept(Tracker):
    run_id = "r1"
    kept = 0

    def keep_state(self):
        self.kept += 1


def test_a_full_disk_is_known_by_what_libraries_raise_on_one():
    """The text is what safetensors 0.8.0 raised on a full tmpfs."""
    words = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert is_full(SafetensorError(words))
    assert is_full(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_full(SafetensorError(words.replace("28", "13")))
    assert not is_full(OSError(errno.EACCES, "denied"))


def test_a_full_disk_ends_a_training_and_says_how_to_resume(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "model.safetensors"))
    said = pytest.raises(InputError, match=r"model.safetensors: no space left .* MB free.*resume with resume=r1")
    with said, stop_well(Kept(), tmp_path):
        raise error
    with pytest.raises(PermissionError), stop_well(Kept(), tmp_path):
        raise PermissionError(errno.EACCES, "denied")


def test_too_little_memory_is_said_with_the_phase_and_the_keys():
    """A tensor of a million gigabytes, as a batch can be too large; any other failure stays what it is."""
    with pytest.raises(InputError, match=r"out of memory in a step \(.*\); lower x"), memory_for("a step", "lower x"):
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match="shape"), memory_for("a step", "lower x"):
        torch.empty(3).view(2)


def test_a_failed_save_leaves_no_draft_that_keeps_the_disk_full(tmp_path, monkeypatch):
    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("videoblip2.training.state.save_file", half)
    trainable = {"a": torch.nn.Parameter(torch.ones(2))}
    with pytest.raises(OSError, match="full"):
        StateFile(tmp_path).save(trainable, torch.optim.AdamW(trainable.values()), TrainState())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated])
def test_a_stop_says_how_to_resume_and_keeps_the_state(tmp_path, capsys, error):
    tracker = Kept()
    with pytest.raises(error), stop_well(tracker, tmp_path):
        raise error
    assert (tracker.kept, capsys.readouterr().err) == (1, "stopped; resume=r1 resumes it\n")


def test_one_training_a_folder(tmp_path):
    refused = pytest.raises(InputError, match=r"ce: another training run is writing there .*; .*run.name")
    with only_one_in(tmp_path / "ce"), refused, only_one_in(tmp_path / "ce"):
        pass
    with only_one_in(tmp_path / "ce"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"run.out=.*file: .*set run.out"), only_one_in(tmp_path / "file" / "ce"):
        pass


def test_sigterm_is_an_exception_once_also_without_tracking():
    before = signal.getsignal(signal.SIGTERM)
    after = []
    with pytest.raises(Terminated) as caught, open_run(RunSpec("ce", "n", "toy", enabled=False)):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # does not cut off what the first one began
            after.append("whole")
    assert (caught.value.code, after) == (143, ["whole"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sigterm_after_ctrl_c_waits_for_the_step_as_well():
    """As `mlflow run` sends them on one Ctrl-C."""
    done = []
    with pytest.raises(KeyboardInterrupt), open_run(RunSpec("ce", "n", "toy", enabled=False)), signals_wait():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("step")
    assert done == ["step"]


@pytest.mark.parametrize(
    ("address", "local"),
    [("/a/mlruns/1", True), ("file:///a/mlruns/1", True), ("mlflow-artifacts:/1/a", False), ("s3://bucket/1", False)],
)
def test_artifacts_on_this_machine(address, local):
    assert is_local(address) is local
