"""`vb2 package`: what is laid out, the Bento that comes of it, and its Dockerfile as far as it can be checked here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from tracking_store import write_checkpoint

from videoblip2.cli import deploy
from videoblip2.cli.deploy import pinned, stage
from videoblip2.config import InputError
from videoblip2.features import encoders
from videoblip2.provenance import EncoderIdentity, Provenance
from videoblip2.tracking import find_model


def loaded(fingerprint):
    return SimpleNamespace(identity=EncoderIdentity(fingerprint=fingerprint))


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A checkpoint folder whose features were made by two encoders that lie elsewhere."""
    manifest = {"settings": {"fps": 4.0}}
    for kind in ("clip", "clap"):
        write_checkpoint(tmp_path / "enc" / kind)
        manifest[kind] = {"name": str(tmp_path / "enc" / kind), "fingerprint": f"of {kind}"}
    folder = write_checkpoint(tmp_path / "best")
    (folder / "provenance.json").write_text(json.dumps({"format": 2, "features": manifest}))
    (folder / "state").mkdir()
    for name in ("load_clip", "load_clap"):
        monkeypatch.setattr(encoders, name, lambda folder: loaded(f"of {Path(folder).name}"))
    return folder


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_laid_out(model, tmp_path):
    staged = stage(str(model), tmp_path / "out")
    assert staged == ("best", True)
    there = names(tmp_path / "out")
    wanted = {
        "serving/service.py",
        "serving/k8s/deployment.yaml",
        "videoblip2/predict.py",
        "model/VERSION",
        "model/model.safetensors",
        "model/encoders/clip/model.safetensors",
        "model/encoders/clap/config.json",
        "requirements.txt",
        "bentofile.yaml",
    }
    assert wanted <= there
    assert not [name for name in there if "__pycache__" in name or name.startswith("model/state")]


def test_a_packaged_checkpoint_keeps_its_version_and_has_its_encoders_with_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "videoblip2.tracking.find_model", lambda name: SimpleNamespace(folder=model, version="videoblip2/3")
    )
    assert stage("models:/videoblip2@champion", tmp_path / "out") == ("videoblip2/3", True)
    monkeypatch.undo()
    found = find_model(tmp_path / "out" / "model")
    assert found.version == "videoblip2/3"
    named = Provenance.read(found.folder).features
    packaged = named.stored_in(found.folder)
    assert packaged.encoders["clip"].name == str(found.folder / "encoders" / "clip")
    assert (packaged.fingerprint("clip"), packaged.settings.recorded) == ("of clip", {"fps": 4.0})
    assert named.stored_in(model) == named, "the folder has no encoders"


def test_another_encoder_than_made_the_features_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "load_clap", lambda folder: loaded("of another"))
    with pytest.raises(InputError, match="fingerprint of another, but the model's features were made with of clap"):
        stage(str(model), tmp_path / "out")


def test_an_encoder_that_is_nowhere_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    provenance = (model / "provenance.json").read_text().replace(str(tmp_path / "enc" / "clap"), "no/such-clap")
    (model / "provenance.json").write_text(provenance)
    with pytest.raises(InputError, match="no/such-clap: this model's encoder"):
        stage(str(model), tmp_path / "out")


def test_without_a_manifest_there_are_no_encoders(model, tmp_path):
    (model / "provenance.json").write_text('{"format": 2}')
    assert stage(str(model), tmp_path / "out") == ("best", False)
    assert not (tmp_path / "out" / "model" / "encoders").exists()


def test_requirements_are_exact_and_complete():
    lines = pinned(["bentoml", "transformers[torch]", "torch"])
    requirements = {Requirement(line).name: line for line in lines}
    assert {"bentoml", "torch", "starlette", "python-multipart", "prometheus-client", "numpy"} <= set(requirements)
    assert "accelerate" in requirements, "what an extra asks for"
    assert all(re.fullmatch(r"[a-z0-9.-]+==[^+]+", line) for line in lines)
    assert "pytest" not in requirements and "mlflow" not in requirements
    with pytest.raises(InputError, match="no-such-distribution: not installed"):
        pinned(["no-such-distribution"])


def test_what_serving_imports_is_among_the_requirements():
    there = {line.partition("==")[0] for line in pinned(deploy.NEEDED)}
    known = {"yaml": "pyyaml", "python_multipart": "python-multipart", "opentelemetry": "opentelemetry-api"}
    for path in (ROOT / "serving").glob("*.py"):
        for name in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE):
            if name in sys.stdlib_module_names or name in ("serving", "videoblip2"):
                continue
            assert known.get(name, name.replace("_", "-")) in there, f"{path.name} imports {name}"


def test_a_failed_build_is_one_line(tmp_path, monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="Traceback …\nError: no service there\n", stdout="")
    monkeypatch.setattr(deploy.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match=r"^bentoml build failed: Error: no service there$"):
        deploy.build(tmp_path, "1")


@pytest.fixture(scope="module")
def bento(tmp_path_factory):
    """A Bento, built as `vb2 package` builds it, offline and into a store of its own."""
    folder, patch = tmp_path_factory.mktemp("bento"), pytest.MonkeyPatch()
    checkpoint = write_checkpoint(folder / "best")
    (checkpoint / "provenance.json").write_text('{"format": 2}')
    for name, value in {"BENTOML_HOME": folder / "home", "UV_OFFLINE": "1", "PIP_NO_INDEX": "1"}.items():
        patch.setenv(name, str(value))
    stage(str(checkpoint), folder / "out")
    built = deploy.build(folder / "out", "videoblip2/3", folder / "one-file.bento")
    patch.undo()
    return SimpleNamespace(**built, export=folder / "one-file.bento")


@pytest.mark.slow
def test_the_bento_serves_its_own_code_and_model_from_any_folder(bento, tmp_path):
    """Also where another videoblip2 is installed, and there is neither a store nor the repository."""
    code = (
        "import sys, json\nfrom bentoml._internal.service.loader import load\n"
        "load(sys.argv[1], standalone_load=True)\n"
        "import videoblip2, serving.service as service\nfrom serving.service_settings import read_settings\n"
        "print(json.dumps([videoblip2.__file__, service.__file__, read_settings().address]))"
    )
    environment = {
        **os.environ,
        "BENTOML_HOME": str(Path(bento.path).parents[2]),
        "MLFLOW_TRACKING_URI": "sqlite:///no",
    }
    environment.pop("VB2_MODEL", None)
    done = subprocess.run(
        [sys.executable, "-c", code, bento.tag], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    package_file, service_file, model = json.loads(done.stdout.splitlines()[-1])
    source = Path(bento.path) / "src"
    assert Path(package_file) == source / "videoblip2" / "__init__.py"
    assert Path(service_file) == source / "serving" / "service.py"
    assert {file.name for file in (source / "serving" / "static").iterdir()} == {"index.html", "page.js", "page.css"}
    assert find_model(model).version == "best"


def test_the_bento_is_labelled_and_can_be_carried_away_as_one_file(bento):
    described = yaml.safe_load((Path(bento.path) / "bento.yaml").read_text())
    assert described["labels"] == {"model_version": "videoblip2/3"}
    assert bento.tag == f"{described['name']}:{described['version']}"
    assert bento.export.stat().st_size > 10_000


def instructions(bento):
    """The Dockerfile's instructions, continued lines joined."""
    text = (Path(bento.path) / "env" / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [line.partition(" ")[::2] for line in lines if line and not line.startswith("#")]


def test_every_instruction_of_the_dockerfile_is_one_and_what_it_copies_is_there(bento):
    known = {"FROM", "ARG", "ENV", "RUN", "COPY", "ADD", "WORKDIR", "EXPOSE", "USER", "ENTRYPOINT", "CMD", "SHELL"}
    found = instructions(bento)
    assert {word for word, _ in found} <= known
    copied = [rest.split() for word, rest in found if word in ("COPY", "ADD")]
    assert copied
    for words in copied:
        *sources, _target = [word for word in words if not word.startswith("--")]
        for source in sources:
            assert (Path(bento.path) / source).exists(), source


def test_the_image_runs_as_a_user_on_the_right_python_with_exact_requirements(bento):
    found = instructions(bento)
    assert found[0] == ("FROM", "python:3.11-slim AS base-container")
    assert [rest for word, rest in found if word == "USER"][-1] != "root"
    settings = " ".join(rest for word, rest in found if word in ("ARG", "ENV"))
    assert all(f"{name}=" in settings for name in deploy.ENVIRONMENT)
    pins = (Path(bento.path) / "env" / "python" / "requirements.txt").read_text().splitlines()
    assert set(pinned(deploy.NEEDED)) <= set(pins)
    (entry,) = [json.loads(rest) for word, rest in found if word == "ENTRYPOINT"]
    script = Path(bento.path) / Path(entry[0]).relative_to("/home/bentoml/bento")
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize(("export", "reason"), [("", "is a folder"), ("none/x.bento", "there is no folder .*none")])
def test_where_to_export_is_looked_at_before_anything_is_built(monkeypatch, model, tmp_path, export, reason):
    monkeypatch.setattr(deploy, "build", lambda *_: pytest.fail("built"))
    with pytest.raises(InputError, match=f"--export .*{reason}.*name a file"):
        deploy.package(model=str(model), export=tmp_path / export, json=True)


def test_the_command_prints_the_tag_and_what_to_do_next(monkeypatch, capsys, model):
    built = {"tag": "videoblip2-service:abc", "path": "/store/abc"}
    monkeypatch.setattr(deploy, "build", lambda folder, version, export: built)
    deploy.package(model=str(model), export=None, json=True)
    *text, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == {**built, "model_version": "best", "media": True, "export": None}
    assert any("bentoml serve videoblip2-service:abc" in line for line in text)
