"""How a long loop shows where it is, without knowing who watches."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

#: (items, how many, description) → the same items, behind a progress bar.
Progress = Callable[[Iterable[Any], int, str], Iterator[Any]]


def no_progress(items: Iterable[Any], total: int = 0, description: str = "") -> Iterator[Any]:
    """A Progress that shows nothing."""
    yield from items


@dataclass
class Steps:
    """Step numbers, with a note (the loss) that a progress bar shows."""

    numbers: range
    note: str = ""

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)
