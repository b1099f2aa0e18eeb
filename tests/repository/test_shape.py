"""The shape of the code, as `make stats` measures it."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from stats import MAX_PARAMETERS, measure


@pytest.fixture(scope="module")
def stats():
    return measure()


def test_no_modules_import_each_other_in_a_circle(stats):
    """Imports inside functions and for types only count too."""
    assert stats.circles == []


def test_functions_take_few_parameters(stats):
    """What belongs together crosses a room as one record."""
    assert stats.many_parameters == [], f"more than {MAX_PARAMETERS} parameters"


def test_records_are_typed(stats):
    """`dict[str, Any]` is for the lines where JSON enters or leaves."""
    assert stats.untyped_dicts <= 25


def test_a_file_has_one_idea(stats):
    assert stats.long_files == []
