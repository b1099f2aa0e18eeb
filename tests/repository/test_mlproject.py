"""MLproject and conda.yaml against the command line and pyproject.toml."""

import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from videoblip2.cli import app
from videoblip2.config import Config, parse_config
from videoblip2.errors import dotted_keys

ROOT = Path(__file__).resolve().parents[2]
MLPROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
CONDA = yaml.safe_load((ROOT / "conda.yaml").read_text())
ENTRY_POINTS = MLPROJECT["entry_points"]


@pytest.fixture(scope="module")
def project():
    """The project as MLflow reads it."""
    from mlflow.projects.utils import load_project

    return load_project(str(ROOT))


def words(project, entry_point, **parameters):
    """The command that `mlflow run` makes of an entry point and its parameters."""
    return shlex.split(project.get_entry_point(entry_point).compute_command(parameters, None))


def parse(arguments):
    """Parse a `vb2` command line without running it."""
    group = typer.main.get_command(app)
    context = group.make_context("vb2", ["--help"], resilient_parsing=True)
    if arguments[0] not in group.commands:
        pytest.skip(f"there is no `vb2 {arguments[0]}` yet")
    name, command, rest = group.resolve_command(context, arguments)
    if hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, rest)
    return command.make_context(name, list(rest)).params


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_every_entry_point_is_a_command_line_that_vb2_takes(project, entry_point):
    required = {"promote": {"run": "0" * 32}}.get(entry_point, {})
    line = words(project, entry_point, **required)
    first = line.index("&&") if "&&" in line else len(line)
    assert line[0] == "vb2"
    assert line[1] == {"main": "demo", "prepare": "data"}.get(entry_point, entry_point)
    parse(line[1:first])
    parse(line[first + 2 :] or ["demo"])


@pytest.mark.parametrize("entry_point", ["ce", "scst"])
def test_the_default_configuration_exists_and_undeclared_parameters_become_overrides(project, entry_point):
    parameters = parse(words(project, entry_point, **{"optim.lr": "1e-4"})[1:])
    assert (ROOT / parameters["config"]).is_file()
    assert parameters["overrides"] == ["optim.lr=1e-4"]


@pytest.mark.parametrize("entry_point", ["ce", "scst", "evaluate"])
def test_every_configuration_key_can_be_a_parameter(project, entry_point):
    keys = {key: "1" for key in dotted_keys(Config)}
    parameters = parse(words(project, entry_point, **keys)[1:])
    assert parameters["overrides"] == [f"{key}=1" for key in keys]


def test_a_run_id_is_a_parameter_of_resume(project):
    parameters = parse(words(project, "ce", resume="12e3" * 8)[1:])
    assert parse_config({}, parameters["overrides"]).train.resume == "12e3" * 8


def test_parameters_are_strings_with_defaults():
    for entry_point in ENTRY_POINTS.values():
        for parameter in entry_point.get("parameters", {}).values():
            assert parameter["type"] == "string"
            assert isinstance(parameter.get("default", ""), str)
    required = [
        (e, p) for e, point in ENTRY_POINTS.items() for p, v in point.get("parameters", {}).items() if len(v) == 1
    ]
    assert required == [("promote", "run")]  # there is no run that could be meant by default


def test_the_conda_environment_is_the_projects_own():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert MLPROJECT["conda_env"] == "conda.yaml"
    assert "python_env" not in MLPROJECT  # MLflow refuses a project with both
    python, pip, rest = CONDA["dependencies"]
    name, _, version = python.partition("=")
    assert (name, pip) == ("python", "pip")
    assert SpecifierSet(project["requires-python"]).contains(version)
    assert rest == {"pip": ["-e .", "-c constraints.txt"]}
    assert (ROOT / "constraints.txt").is_file()
    assert MLPROJECT["name"] == project["name"] == CONDA["name"]


def test_without_conda_mlflow_makes_the_same_environment():
    """What `--env-manager uv` and `virtualenv` make of conda.yaml; nothing of it is passed over."""
    from mlflow.utils.environment import _PythonEnv

    converted = _PythonEnv.from_conda_yaml(str(ROOT / "conda.yaml"))
    python, pip, rest = CONDA["dependencies"]
    assert (converted.python, converted.build_dependencies) == (python.removeprefix("python="), [pip])
    assert converted.dependencies == rest["pip"]


def test_the_constraints_pin_every_dependency_within_its_range():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split(";")[0].strip().split("==") for line in lines if "==" in line.partition("#")[0]]
    pins = {canonicalize_name(name): version for name, version in pairs}
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text
