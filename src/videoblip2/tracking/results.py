"""Results as Markdown: what runs scored, with intervals, seeds, minutes, commit and command."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from videoblip2.captions.metrics import shown, shown_interval
from videoblip2.files import write_text
from videoblip2.tracking.compare import Comparison, letter

HEAD = """# Results

Written from runs by the command below each title: edit nothing here. What was tried on the way is in the ledger
([README.md](README.md)), and so are results whose runs are gone.
"""


def results(comparison: Comparison, title: str, command: str) -> str:
    """A section of the page; the comparison may have a single side."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(letter=letter, shown_interval=shown_interval, plain=shown)
    return environment.get_template("results.md.j2").render(c=comparison, title=title, command=command)


def write_results(path: Path, title: str, section: str) -> None:
    """Put a section into the page, in the place of an earlier one with its title; the others stay as they are."""
    text = path.read_text(encoding="utf-8") if path.is_file() else HEAD
    head, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    named = {each.partition("\n")[0]: each for each in sections}
    named[f"## {title}"] = section
    write_text(path, "\n\n".join(map(str.strip, (head, *named.values()))) + "\n")
