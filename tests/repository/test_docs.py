"""The generated pages say what the code says."""

import re

import pytest
from conftest import ROOT

from tools.docs import pages

PAGES = pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_generated_page_is_up_to_date(path):
    assert path.read_text() == PAGES[path], "run `make docs`"


def test_every_key_has_a_meaning():
    (config,) = [text for path, text in PAGES.items() if path.name == "config.md"]
    assert not [line for line in config.splitlines() if line.endswith("|  |")]


def test_the_messages_on_the_page_of_symptoms_are_in_the_source():
    """What stands in double quotes in a first column, between the parts that vary (…)."""
    source = "".join(path.read_text() for room in ("src", "serving") for path in (ROOT / room).rglob("*.py"))
    rows = [line.split(" | ")[0] for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines()]
    quotes = [quote for row in rows if row[:1] == "|" for quote in re.findall(r'"([^"]+)"', row)]
    parts = [part.strip(" .,;") for quote in quotes for part in quote.split("…")]
    assert len(quotes) > 20 and [part for part in parts if part not in source] == []
