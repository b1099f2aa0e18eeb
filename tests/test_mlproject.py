"""MLproject and conda.yaml against the command line and pyproject.toml."""

import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from packaging.specifiers import SpecifierSet

from videoblip2.cli import app

ROOT = Path(__file__).resolve().parents[1]
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
    name, command, rest = group.resolve_command(
        group.make_context("vb2", ["--help"], resilient_parsing=True), arguments
    )
    return command.make_context(name, list(rest)).params


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_every_entry_point_is_a_command_line_that_vb2_takes(project, entry_point):
    program, *arguments = words(project, entry_point)
    assert program == "vb2"
    assert arguments[0] == {"main": "demo"}.get(entry_point, entry_point)
    parse(arguments)


@pytest.mark.parametrize("entry_point", ["ce", "scst"])
def test_the_default_configuration_exists_and_undeclared_parameters_become_overrides(project, entry_point):
    parameters = parse(words(project, entry_point, **{"optim.lr": "1e-4"})[1:])
    assert (ROOT / parameters["config"]).is_file()
    assert list(parameters["overrides"]) == ["--optim.lr", "1e-4"]


def test_parameters_are_strings_with_defaults():
    for entry_point in ENTRY_POINTS.values():
        for parameter in entry_point.get("parameters", {}).values():
            assert set(parameter) == {"type", "default"}
            assert parameter["type"] == "string"
            assert isinstance(parameter["default"], str)


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
