"""The generated pages say what the code says."""

import pytest

from tools.docs import pages

PAGES = pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_generated_page_is_up_to_date(path):
    assert path.read_text() == PAGES[path], "run `make docs`"


def test_every_key_has_a_meaning():
    (config,) = [text for path, text in PAGES.items() if path.name == "config.md"]
    assert not [line for line in config.splitlines() if line.endswith("|  |")]
