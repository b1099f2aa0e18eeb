"""Log a checkpoint as an MLflow model, and find the checkpoint folder of a model's name.

The model is a pyfunc from code: MLflow stores the folder (safetensors, JSON) and `pyfunc_model.py`, no pickle.
"""

import os
import re
import warnings
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
from filelock import FileLock
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from videoblip2.config import InputError
from videoblip2.errors import refused
from videoblip2.modality import MODALITIES
from videoblip2.tracking.mlflow import store
from videoblip2.tracking.mlflow.run_records import HOW_TO_FIND, RunRecord, find_run

#: A path, not an import: it depends on all other rooms, and runs in the process that loads the model.
CODE = Path(__file__).parents[2] / "registry" / "pyfunc_model.py"
CHECKPOINT = "checkpoint"
REQUIREMENTS = (
    *("videoblip2", "av", "mlflow", "numpy", "peft", "pydantic", "pyyaml", "safetensors", "tokenizers", "torch"),
    "transformers",
)
FORMS = "give models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-…, a run (`vb2 runs list`) or a checkpoint folder"
ALIASED = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
ADDRESS = re.compile(r"models:/((?P<id>m-[0-9a-f]+)|(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+)))")


def log_checkpoint(client: mlflow.MlflowClient, run_id: str, folder: Path, name: str) -> str:
    """Log a checkpoint folder as a model of a run; return the model id (`m-…`)."""
    inputs = [ColSpec("string", name, required=modality.required) for name, modality in MODALITIES.items()]
    outputs = [ColSpec("string", "caption"), ColSpec("double", "score")]
    options = [ParamSpec("prompt", "string", ""), ParamSpec("num_beams", "integer", 0)]
    # Installed versions, without local labels (`+cpu`) that no index knows.
    pins = [f"{package}=={metadata.version(package).partition('+')[0]}" for package in REQUIREMENTS]
    run, plain = client.get_run(run_id), re.sub(r"[^\w-]", "_", name)  # a model's name has no dot, as in learning rates
    model = client.create_logged_model(run.info.experiment_id, plain, run_id, resolve_tags(), dict(run.data.params))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example was not provided")  # it would need feature files
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            model_id=model.model_id,
            run_id=run_id,
            python_model=str(CODE),
            artifacts={CHECKPOINT: str(folder)},
            pip_requirements=pins,
            signature=ModelSignature(Schema(inputs), Schema(outputs), ParamSchema(options)),
        )
    return str(model.model_id)


def find_checkpoint(model: str) -> tuple[Path, str]:
    """Return the checkpoint folder (the artifact store's own, or a download) and the version behind a MODEL."""
    logged, version = logged_model(model)
    folder = _folder(logged)
    if not (folder / "MLmodel").is_file():
        raise InputError(f"{model}: its files are gone from {folder}; restore that folder or train again")
    if (path := _checkpoint_path(folder)) is None:
        raise InputError(f"{model}: an MLflow model, but no checkpoint of this project; {HOW_TO_FIND}")
    return folder / path, version


def logged_model(model: str) -> tuple[Any, str]:
    """Return MLflow's LoggedModel and the version behind a run or a `models:/` address."""
    try:
        client = store.connect()
    except InputError as error:
        raise InputError(f"{model}: no folder of that name, and {error}") from error
    if not model.startswith("models:"):
        logged = _newest_model(client, find_run(model, "no such folder, and "))
        return logged, str(logged.model_id)
    address = ADDRESS.fullmatch(model)
    if address is None:
        raise InputError(f"{model}: not the address of a model; {FORMS}")
    remedy = "`mlflow ui` shows models, `vb2 promote RUN` and `vb2 demo` make them"
    with refused(f"{model}: unknown to {store.tracking_uri()}", remedy, MlflowException, when=store.is_unknown):
        if model_id := address["id"]:
            return client.get_logged_model(model_id), model_id
        if address["alias"]:
            version = client.get_model_version_by_alias(address["name"], address["alias"])
        else:
            version = client.get_model_version(address["name"], address["version"])
        source = re.search(r"models:/(m-[0-9a-f]+)$", version.source or "")  # the version's own `model_id` is empty
        if source is None:
            reason = f"version {version.version} was not registered from a checkpoint ({version.source})"
            raise InputError(f"{model}: {reason}; register one with `vb2 promote RUN`")
        return client.get_logged_model(source[1]), f"{version.name}/{version.version}"


def alias_version(address: str) -> str:
    """The version behind `models:/NAME@ALIAS`, by one request to a server or with a cached client."""
    uri, (name, alias) = store.tracking_uri(), address.removeprefix("models:/").split("@")
    if uri.startswith("http"):  # the client would retry a dead server for minutes
        answer = store.get(uri, "/api/2.0/mlflow/registered-models/alias", params={"name": name, "alias": alias})
        return str(answer.json()["model_version"]["version"])
    if database := store.sqlite_file(uri):  # the client would take 6 ms
        return str(store.ask(database, ALIASED, name, alias)[0][0])
    return str(store.connect().get_model_version_by_alias(name, alias).version)


def _newest_model(client: mlflow.MlflowClient, run: RunRecord) -> Any:
    newest_first = [{"field_name": "creation_timestamp", "ascending": False}]
    found = client.search_logged_models([run.experiment_id], f"source_run_id = '{run.run_id}'", order_by=newest_first)
    for logged in found:
        if logged.status == LoggedModelStatus.READY:
            return logged
    raise InputError(f"run {run.name} ({run.run_id}, {run.status}) logged no checkpoint; {HOW_TO_FIND}")


def _folder(logged: Any) -> Path:
    """Return the model's folder: the store's own if it is local, else a download cached by model id."""
    if store.is_local(logged.artifact_location):
        return Path(unquote(urlparse(logged.artifact_location).path))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videoblip2"
    target = cache / str(logged.model_id)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            part = cache / f"{logged.model_id}.part"
            part.mkdir(exist_ok=True)
            get_artifact_repository(logged.artifact_location).download_artifacts("", str(part))
            part.rename(target)
    return target


@cache  # a logged model never changes, and a service polls every second
def _checkpoint_path(folder: Path) -> str | None:
    flavor = Model.load(str(folder)).flavors.get("python_function", {})
    artifact = flavor.get("artifacts", {}).get(CHECKPOINT)
    return None if artifact is None else str(artifact["path"])
