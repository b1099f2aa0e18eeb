"""Who watches a training from outside, and may end it: a study whose trial it is."""

from typing import Protocol

from videoblip2.tracking.tracker import Tracker


class Observer(Protocol):
    """A training's run becomes a child of `parent_run_id`; `run_id` is its own from an earlier attempt, if any."""

    @property
    def parent_run_id(self) -> str | None: ...

    @property
    def run_id(self) -> str | None: ...

    def opened(self, tracker: Tracker) -> None:
        """The training's run is open."""

    def validated(self, step: int, cider: float) -> None:
        """A validation was made, and its checkpoint kept where it was the best. Raises Stopped to end the training."""
