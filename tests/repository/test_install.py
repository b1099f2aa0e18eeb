"""An installed wheel works in an empty folder: sdist from the checkout, wheel from the sdist, a fresh environment."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT
from servers import free_port, running, wait_until

LEFT_OUT = (
    ".git",
    ".venv",
    "build",
    "dist",
    ".hypothesis",
    "runs",
    "compare.html",
    ".coverage",
    "mlruns",
    "mlflow.db*",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
)
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, out: Path) -> Path:
    """Build `sdist` or `wheel` of the project in `source`, without a network."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("install")


@pytest.fixture(scope="module")
def sdist(folder):
    """The unpacked source distribution of this checkout."""
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.unpack_archive(build("sdist", folder / "checkout", folder), folder / "sdist")
    (unpacked,) = (folder / "sdist").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(sdist, folder):
    return build("wheel", sdist, folder)


@pytest.fixture(scope="module")
def vb2(wheel, folder):
    """Runs `vb2` of a fresh environment in an empty folder.

    The environment sees this one's dependencies, but not this checkout: a .pth file inside a .pth folder is not read.
    """
    environment, empty = folder / "environment", folder / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    empty.mkdir()
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VB2_", "MLFLOW_T"))
    }
    variables |= {"BENTOML_HOME": str(folder / "bentoml"), "PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}
    variables["PATH"] = str(Path(sys.executable).parent)  # no Java: each METEOR takes ten seconds

    def run(*words: object) -> str:
        command = [str(environment / "bin" / "vb2"), *map(str, words)]
        done = subprocess.run(command, cwd=empty, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.popen = {"cwd": empty, "env": variables}
    run.program = environment / "bin" / "vb2"
    return run


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_source_distribution_holds_the_checkout(sdist, folder):
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in files_in(sdist) - made if ".egg-info" not in name} == {
        name for name in files_in(folder / "checkout") if ".egg-info" not in name
    }


def test_the_wheel_is_one_package_with_every_file_of_the_service_and_every_experiment(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"videoblip2"}
    serving = {f"videoblip2/serving/{name}" for name in files_in(ROOT / "serving") if "__pycache__" not in name}
    experiments = {f"videoblip2/experiments/{path.name}" for path in (ROOT / "experiments").glob("*.yaml")}
    assert (
        serving
        | experiments
        | {
            "videoblip2/py.typed",
            "videoblip2/model/model_card.md.j2",
            "videoblip2/tracking/compare.html.j2",
        }
        <= names
    )


def test_the_shipped_experiments_are_listed_shown_and_copied(vb2, tmp_path):
    import videoblip2

    assert vb2("--version") == f"vb2 {videoblip2.__version__}\n"
    listed = json.loads(vb2("experiments", "list", "--json").splitlines()[-1])["experiments"]
    assert set(listed) == {path.stem for path in (ROOT / "experiments").glob("*.yaml")}
    text = (ROOT / "experiments" / "toy_ce.yaml").read_text()
    assert vb2("experiments", "show", "toy_ce") == text
    vb2("experiments", "copy", "toy_ce", tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == text


@contextmanager
def service(vb2, log: Path, *options: object):
    """`vb2 serve`, ready to answer."""
    port = free_port()
    with (
        log.open("w") as file,
        running([vb2.program, "serve", "--port", port, *options], stdout=file, stderr=file, **vb2.popen) as p,
    ):
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{address}/readyz"), p, 120)
        yield address


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture
def checkpoint(tmp_path, tiny_model, tokenizers):
    from videoblip2.config import Config
    from videoblip2.model.checkpoint import Checkpoint, save_checkpoint

    save_checkpoint(tmp_path / "best", Checkpoint(tiny_model, tokenizers, config=Config().model_dump(mode="json")))
    return tmp_path / "best"


def test_the_installed_service_is_the_packages_own(vb2):
    code = "from videoblip2.files import SERVICE; from importlib.util import find_spec; "
    command = [vb2.program.with_name("python"), "-c", f"{code}print(find_spec(SERVICE.split(':')[0]).origin)"]
    file = subprocess.run(command, capture_output=True, text=True, check=True, **vb2.popen).stdout
    assert file.strip().endswith("site-packages/videoblip2/serving/service.py")


@pytest.mark.slow
def test_a_checkpoint_is_packaged_and_served_from_an_empty_folder(vb2, checkpoint, tmp_path):
    with service(vb2, tmp_path / "log", "--model", checkpoint) as address:
        assert b"static/page.js" in urllib.request.urlopen(address, timeout=5).read()
        assert answers(f"{address}/static/page.js")
        bento = json.loads(vb2("package", "--model", checkpoint, "--json").splitlines()[-1])
        assert (Path(bento["path"]) / "src" / "serving" / "static" / "index.html").is_file()


@pytest.mark.slow
def test_the_demo_runs_and_its_models_are_promoted_from_an_empty_folder(vb2):
    made = json.loads(vb2("demo", "--quick", "--json").splitlines()[-1])
    with_reason = ("--force", "--reason", "a test")
    champion = json.loads(vb2("lineage", "models:/videoblip2@champion", "--json").splitlines()[-1])["lineage"][0]
    other = {"ce": "scst", "scst": "ce"}[champion["name"]]
    assert "champion: videoblip2/2 (by force)" in vb2("promote", made[other]["run_id"], *with_reason)
