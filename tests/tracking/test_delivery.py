"""One message on its way to the store."""

import pytest
from mlflow.exceptions import MlflowException

from videoblip2.tracking.mlflow.delivery import deliver
from videoblip2.tracking.outbox import DataSet

DATA = DataSet(data="world/train.json", digest="abc", source="{}", context="train")


class Store:
    """Fails as often as told, then takes the message."""

    def __init__(self, *failures: str) -> None:
        self.failures, self.taken = list(failures), []

    def log_inputs(self, run_id, inputs):
        if self.failures:
            raise MlflowException(self.failures.pop(0))
        self.taken.append((run_id, inputs[0].dataset.name))


def test_data_that_another_run_named_at_the_same_moment_is_named_again():
    store = Store("(psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint")
    deliver(store, "run", None, DATA)
    assert store.taken == [("run", "world/train.json")]


@pytest.mark.parametrize("failures", [("no such run",), ("UNIQUE constraint failed", "UNIQUE constraint failed")])
def test_another_failure_is_not_hidden(failures):
    store = Store(*failures)
    with pytest.raises(MlflowException):
        deliver(store, "run", None, DATA)
    assert not store.taken
