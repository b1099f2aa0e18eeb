"""The repository itself: experiment files, and the commands and targets that the README names."""

import itertools
import re

import pytest
from conftest import ROOT

from videoblip2.config import load_config
from videoblip2.registry.gate import load_gate

STUDIES = sorted((ROOT / "experiments").glob("tune_*.yaml"))
EXPERIMENTS = sorted(set((ROOT / "experiments").glob("*.yaml")) - set(STUDIES))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_an_experiment_loads_and_says_its_command(path):
    load_gate(path) if path.name.endswith("gate.yaml") else load_config(path)
    says_its_command(path)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_a_study_says_its_command(path):
    says_its_command(path)


def says_its_command(path):
    lines = path.read_text().splitlines()
    head = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert f"experiments/{path.name}" in head
    assert "vb2 " in head


def commands_of_readme():
    text = (ROOT / "README.md").read_text()
    return sorted(
        {
            match
            for match in re.findall(
                r"vb2 ([a-z]+(?: (?:toy|prepare|top5|extract|check|list|compare|gc|fetch|inspect))?)", text
            )
        }
    )


def test_readme_names_only_commands_that_exist():
    from typer.main import get_command

    from videoblip2.cli import app

    root = get_command(app)
    assert commands_of_readme()
    for command in commands_of_readme():
        node = root
        for word in command.split():
            assert word in node.commands, f"README says `vb2 {command}`"
            node = node.commands[word]


def test_readme_names_only_make_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_ci_calls_the_readmes_commands():
    script = (ROOT / ".ci" / "run").read_text()
    assert all(f"make {target}" in script for target in ("check", "test", "demo"))


def test_the_citation_names_the_version():
    import yaml

    import videoblip2

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == videoblip2.__version__
