"""The service as BentoML serves it, in this process: fixtures for the tests of it, and what they send."""

import io
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from folders import process_folder

os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ.setdefault("BENTOML_HOME", str(process_folder("vb2-bentoml-")))  # it makes folders when imported

from _bentoml_impl.server.app import ServiceAppFactory
from bentoml._internal.service.loader import load as load_service
from prometheus_client import REGISTRY
from serving_fakes import FakeCaptioner, FakeDecoders, eventually, item
from starlette.testclient import TestClient

from videoblip2.predict import FoundModel

ROOT = Path(__file__).resolve().parents[1]


class Registry:
    """What the follower finds and loads."""

    def __init__(self):
        self.captioner = FakeCaptioner()
        self.gone = False
        self.may_load = threading.Event()
        self.may_load.set()

    def find(self, model):
        return FoundModel(Path(self.captioner.version), self.captioner.version)

    def load(self, found, model, device, before):
        assert self.may_load.wait(30)
        return self.captioner

    def promote(self, version):
        self.captioner = FakeCaptioner(version)
        return self.captioner


@pytest.fixture(scope="module")
def service():
    """The service as `bentoml serve` finds it at the repository root."""
    service = load_service(".", working_dir=str(ROOT), standalone_load=True)
    service.inject_config()
    log = sys.modules["serving.observe"].log
    before = log.handlers, log.propagate, log.level
    yield service
    log.handlers, log.propagate, log.level = before[0], before[1], before[2]


@pytest.fixture(scope="module")
def start(service):
    """A function that starts the service with a registry and environment variables."""
    patch = pytest.MonkeyPatch()
    following = sys.modules["serving.following"]
    patch.setenv("VB2_POLL_SECONDS", "0.02")

    def client(registry, **environment):
        patch.setattr(following, "model_mark", lambda model: None)
        patch.setattr(following, "find_model", registry.find)
        patch.setattr(following, "load_warm", registry.load)
        patch.setattr(sys.modules["serving.service"], "Decoders", FakeDecoders)
        for name in (name for name in os.environ if name.startswith("VB2_") and name != "VB2_POLL_SECONDS"):
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(f"VB2_{name}", value)
        app = ServiceAppFactory(service, is_main=True, enable_metrics=False)()  # metrics can be made once a process
        return TestClient(app, raise_server_exceptions=False)

    yield client
    patch.undo()


@pytest.fixture(scope="module")
def running(start):
    """A registry and a ready client."""
    registry = Registry()
    with start(registry) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        yield registry, client


@pytest.fixture
def http(running):
    return running[1]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def features(*args, **options):
    return {"video_features": npy(item(*args, **options)["video"])}


def counted(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0
