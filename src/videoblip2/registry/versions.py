"""Versions of a registered model and the alias `champion`; MLflow's answers in the user's words."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from videoblip2.config import InputError
from videoblip2.errors import first_line
from videoblip2.tracking.mlflow.store import connect, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "videoblip2"
CHAMPION = "champion"
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # what MLflow answers for a name or alias it has not
BUSY = "TEMPORARILY_UNAVAILABLE"  # what it answers where another process holds the database


def register(model_uri: str, name: str = NAME) -> int:
    """Register a logged model (`models:/m-…`) as the next version of NAME and return the version."""
    from mlflow.exceptions import MlflowException

    client = connect()
    try:
        logged = client.get_logged_model(model_uri.removeprefix("models:/"))
    except MlflowException as error:
        raise InputError(f"{model_uri}: no logged model; give the models:/m-… that a training run printed") from error
    make_name(client, name)
    source = f"models:/{logged.model_id}"
    return int(client.create_model_version(name, source, run_id=logged.source_run_id, model_id=logged.model_id).version)


def make_name(client: "MlflowClient", name: str) -> None:
    """Make the registered model NAME, where there is none yet."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def version_of(client: "MlflowClient", name: str, model_id: str) -> int | None:
    """Return the newest version of NAME that was registered from this logged model; None where there is none."""
    versions = client.search_model_versions(f"name = '{name}'")
    own = [int(version.version) for version in versions if version.source == f"models:/{model_id}"]
    return max(own, default=None)


def set_champion(name: str, version: int) -> None:
    """Point the alias `champion` of NAME at a version, with no gate and no entry in its history."""
    from mlflow.exceptions import MlflowException

    try:
        connect().set_registered_model_alias(name, CHAMPION, str(version))
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        raise InputError(f"{name} has no version {version}; register one with `vb2 promote RUN`") from error


def replace_champion(name: str, expected: int | None, version: int) -> None:
    """Point `champion` at a version if it still points at `expected`, and read it again afterwards.

    MLflow's alias is last-writer-wins. Raises InputError where somebody changed it meanwhile, before or after us.
    """
    found = champion(name)
    if found != expected:
        raise InputError(
            f"{name}@{CHAMPION}: is {said(found)} now and was {said(expected)} when the gate looked at it; nothing was "
            "changed here, run the command again"
        )
    set_champion(name, version)
    if (found := champion(name)) != version:
        raise InputError(
            f"{name}@{CHAMPION}: was set to version {version}, and somebody set it to {said(found)} at the same time; "
            "find out who, then run the command again"
        )


def champion(name: str = NAME) -> int | None:
    """Return the version that is `champion`; None while there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return int(connect().get_model_version_by_alias(name, CHAMPION).version)
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        return None


def said(version: int | None) -> str:
    """A version as an error says it."""
    return "none" if version is None else f"version {version}"


@contextmanager
def store_in_words() -> Iterator[None]:
    """Say in one line that the store is locked or out of reach; MLflow prints a page about it."""
    from mlflow.exceptions import MlflowException

    noisy = logging.getLogger("mlflow.store.db.utils")
    level = noisy.level
    noisy.setLevel(logging.CRITICAL)
    try:
        yield
    except MlflowException as error:
        if error.error_code != BUSY:
            raise
        raise InputError(
            f"{tracking_uri()}: the store is locked by another process, or out of reach ({first_line(error)}); "
            "nothing more was written, run the command again when it is free"
        ) from error
    finally:
        noisy.setLevel(level)
