"""The one command for a machine with a GPU: without one it runs at small size, with no tracker, tuner or server."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

#: What a machine with torch, transformers and peft lacks.
ABSENT = ("mlflow", "optuna", "bentoml", "av", "pandas", "sqlalchemy", "ray", "pycocoevalcap")
RUN = """
import runpy, sys
sys.modules.update(dict.fromkeys(ABSENT))
sys.argv = ["gpu.py", "--dry-run"]
sys.path.insert(0, "benchmarks")
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""
DECODING = ("greedy", "greedy and 5 samples", "5 beams")
PATHS = (
    "CE, 40",
    "CE, 8",
    *(f"{path}{compiled}," for path in ("SCST step", *DECODING) for compiled in ("", ", decode.compile")),
    "CLIP",
    "service",
)


@pytest.mark.slow
def test_every_path_beside_its_plain_form_without_a_gpu():
    words = [sys.executable, "-c", RUN.replace("ABSENT", repr(ABSENT))]
    one = os.environ | {"PYTEST_ADDOPTS": "-k steps"}  # all of the tests marked gpu run by themselves, too
    done = subprocess.run(words, cwd=ROOT, env=one, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout, "the tests marked gpu"
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == [next(row[0] for row in rows if row[0].startswith(name)) for name in PATHS]
    for row in rows[1:]:
        assert len(row) == len(rows[0]) and all(float(cell.replace(",", "")) > 0 for cell in row[3:6]), row
