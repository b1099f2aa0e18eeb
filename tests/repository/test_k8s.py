"""The Kubernetes manifests: valid by the API's own schema, and true of the service that they run."""

import re

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT

from serving import guard, observe
from serving.service_settings import Settings, read_settings

FOLDER = ROOT / "serving" / "k8s"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS = {name: yaml.safe_load((FOLDER / name).read_text()) for name in KUSTOMIZATION["resources"]}
DEPLOYMENT = OBJECTS["deployment.yaml"]
POD = DEPLOYMENT["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_valid(name, version):
    kubernetes_validate.validate(OBJECTS[name], version, strict=True)


def test_the_schema_check_sees_a_mistake():
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replica": 2}}, "1.30", strict=True)


def test_every_manifest_is_applied():
    assert sorted(OBJECTS) == sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")


def test_all_of_them_select_the_pods():
    labels = POD["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["service.yaml"]["spec"]["selector"] == labels
    assert OBJECTS["disruption.yaml"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["network.yaml"]["spec"]["podSelector"]["matchLabels"] == labels
    monitor = yaml.safe_load((FOLDER / "monitoring/podmonitor.yaml").read_text())["spec"]
    assert monitor["selector"]["matchLabels"] == labels


def test_probes_and_ports_are_the_services_own():
    (port,) = CONTAINER["ports"]
    assert str(port["containerPort"]) in CONTAINER["args"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[kind]["httpGet"]["path"] in guard.PROBES
        assert CONTAINER[kind]["httpGet"]["port"] == port["name"]
    assert OBJECTS["service.yaml"]["spec"]["ports"][0]["targetPort"] == port["name"]


def test_a_gpu_is_asked_for_and_nobody_is_root():
    assert CONTAINER["resources"]["requests"]["nvidia.com/gpu"] == CONTAINER["resources"]["limits"]["nvidia.com/gpu"]
    assert POD["spec"]["securityContext"]["runAsNonRoot"] is True


def set_here():
    """The VB2_* variables that the manifest sets."""
    return {entry["name"]: entry.get("value") for entry in CONTAINER["env"] if entry["name"].startswith("VB2_")}


def test_the_settings_are_ones_that_the_service_reads_and_takes():
    assert "VB2_API_KEY" in set_here()
    assert set(set_here()) <= {f"VB2_{name.upper()}" for name in Settings.model_fields}
    read_settings({name: value for name, value in set_here().items() if value})


def test_the_autoscaler_uses_a_metric_that_exists_and_that_the_adapter_hands_on():
    (metric,) = OBJECTS["autoscaler.yaml"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    exported = {family._name for family in vars(observe.metrics()).values()}
    assert name in exported
    (rule,) = yaml.safe_load((FOLDER / "monitoring/adapter-values.yaml").read_text())["rules"]["custom"]
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert re.fullmatch(rule["name"]["matches"], name)
    target = float(metric["pods"]["target"]["averageValue"])
    assert target < float(set_here()["VB2_MAX_REQUESTS"]), "it grows before it refuses"
