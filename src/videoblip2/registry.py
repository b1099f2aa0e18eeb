"""The model registry: versions of `videoblip2` and the alias `champion` that serving follows. Aliases, never stages."""

from videoblip2.config import InputError
from videoblip2.tracking.store import connect

NAME = "videoblip2"
CHAMPION = "champion"
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # what MLflow answers for a name or alias it has not


def register(model_uri: str, name: str = NAME) -> int:
    """Register a logged model (`models:/m-…`) as the next version of NAME and return the version."""
    from mlflow.exceptions import MlflowException

    client = connect()
    try:
        logged = client.get_logged_model(model_uri.removeprefix("models:/"))
    except MlflowException as error:
        raise InputError(f"{model_uri}: no logged model; give the models:/m-… that a training run printed") from error
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{logged.model_id}"
    return int(client.create_model_version(name, source, run_id=logged.source_run_id, model_id=logged.model_id).version)


def set_champion(name: str, version: int) -> None:
    """Point the alias `champion` of NAME at a version."""
    from mlflow.exceptions import MlflowException

    try:
        connect().set_registered_model_alias(name, CHAMPION, str(version))
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        raise InputError(f"{name} has no version {version}; register one with `vb2 promote RUN`") from error


def champion(name: str = NAME) -> int | None:
    """Return the version that is `champion`; None while there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return int(connect().get_model_version_by_alias(name, CHAMPION).version)
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        return None
