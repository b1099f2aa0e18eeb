"""How a long loop shows its progress without knowing who displays it, and how transformers is kept quiet."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

#: (items, how many, description) → the same items, behind a progress bar.
Progress = Callable[[Iterable[Any], int, str], Iterator[Any]]


def no_progress(items: Iterable[Any], total: int = 0, description: str = "") -> Iterator[Any]:
    """A Progress that shows nothing."""
    yield from items


class Steps(list[int]):
    """Step numbers, with a note (the loss) that a progress bar shows."""

    note = ""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Load through transformers without its progress bars and warnings; the caller's settings return afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
