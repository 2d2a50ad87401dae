"""What the manifests, the image and the service say about each other. `make k8s-check` asks a real API server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.bulk.options import parser
from app.metrics import Metrics
from app.settings import Settings
from app.web.api import router
from app.web.middleware import ENCODING

ROOT = Path(__file__).parent.parent.parent
OVERLAYS = sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir())
MONITORING = ROOT / "k8s" / "overlays" / "monitoring"
SERVING = ("cpu", "cpu-volume", "cpu-s3", "gpu")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def tool(*names: str) -> str:
    """The first of `names` that is installed. Without one the test is left out, but not in CI."""
    for name in names:
        if shutil.which(name):
            return name
    message = f"left out: needs {' or '.join(names)}"
    if os.environ.get("CI"):
        pytest.fail(f"{message}, which CI must install")
    pytest.skip(message)


@cache
def rendered(overlay: str) -> tuple[dict[str, Any], ...]:
    """The objects of an overlay."""
    command = ["kustomize", "build"] if tool("kustomize", "kubectl") == "kustomize" else ["kubectl", "kustomize"]
    done = subprocess.run(
        [*command, str(ROOT / "k8s" / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")  # a deprecated field is only warned about
    return tuple(yaml.safe_load_all(done.stdout))


def find(overlay: str, kind: str) -> dict[str, Any]:
    (found,) = [document for document in rendered(overlay) if document["kind"] == kind]
    return found


def pod_specs(node: object) -> Iterator[dict[str, Any]]:
    """Every pod specification in `node`, however deep."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from pod_specs(value)


def settings_of(overlay: str) -> Settings:
    """The service's settings as the overlay's ConfigMap gives them."""
    values = {
        name.removeprefix("SPARSE_ENCODER_").lower(): value
        for name, value in find(overlay, "ConfigMap")["data"].items()
    }
    return Settings(**values)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_renders_and_every_name_in_it_is_there(overlay: str) -> None:
    objects = rendered(overlay)
    names = {(document["kind"], document["metadata"]["name"]) for document in objects}
    assert len(names) == len(objects)
    for spec in (spec for document in objects for spec in pod_specs(document)):
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
        claims = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in spec["volumes"]
            if len(volume) > 1 and "persistentVolumeClaim" in volume
        ]
        assert {("PersistentVolumeClaim", claim) for claim in claims} <= names
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            maps = [
                source["configMapRef"]["name"] for source in container.get("envFrom", ()) if "configMapRef" in source
            ]
            assert {("ConfigMap", name) for name in maps} <= names


@pytest.mark.parametrize("overlay", SERVING)
def test_a_pod_has_the_time_to_answer_its_longest_request(overlay: str) -> None:
    (spec,) = pod_specs(find(overlay, "Deployment"))
    settings = settings_of(overlay)
    pre_stop = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert settings.shutdown_grace_seconds >= settings.request_timeout_seconds
    needed = pre_stop + settings.drain_seconds + settings.shutdown_grace_seconds
    assert spec["terminationGracePeriodSeconds"] > needed


@pytest.mark.parametrize("overlay", SERVING)
def test_an_update_never_has_fewer_pods_than_before(overlay: str) -> None:
    assert find(overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("overlay", SERVING)
def test_the_encoder_has_as_many_threads_as_cpus(overlay: str) -> None:
    (spec,) = pod_specs(find(overlay, "Deployment"))
    assert str(settings_of(overlay).encoder_threads) == spec["containers"][0]["resources"]["requests"]["cpu"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_environment_variable_is_a_setting_of_the_service(overlay: str) -> None:
    names: set[str] = set()
    for document in rendered(overlay):
        if document["kind"] == "ConfigMap" and document["metadata"]["name"] != "sparse-encoder-dashboard":
            names |= set(document["data"])
        for spec in pod_specs(document):
            for container in (*spec["containers"], *spec.get("initContainers", ())):
                variables = {variable["name"] for variable in container.get("env", ())}
                used = re.findall(r"\$\((\w+)\)", " ".join(container.get("args", ())))
                names |= variables - set(used)  # what the manifest itself puts into the command
    known = {f"SPARSE_ENCODER_{name.upper()}" for name in Settings.model_fields}
    assert names - known - {"HOME", "RAY_AUTH_MODE"} == set()  # which Ray reads


@pytest.mark.parametrize("overlay", SERVING)
def test_the_pod_is_what_the_image_is_made_for(overlay: str) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (spec,) = pod_specs(find(overlay, "Deployment"))
    (container,) = spec["containers"]
    context = spec["securityContext"]
    users = set(re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE))
    assert users == {f"{context['runAsUser']}:{context['runAsGroup']}"}
    assert context["fsGroup"] == context["runAsGroup"]
    assert f"\nEXPOSE {container['ports'][0]['containerPort']}\n" in dockerfile
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert f"\nVOLUME {mounts.get('store', '/models')}\n" in dockerfile
    paths = {getattr(route, "path", None) for route in router.routes}
    probes = [container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {*probes, find("monitoring", "ServiceMonitor")["spec"]["endpoints"][0]["path"]} <= paths


def exported() -> set[str]:
    """The names that a scrape of the service can hold."""
    families = text_string_to_metric_families(Metrics().render().decode())
    return {f"{family.name}{suffix}" for family in families for suffix in SUFFIXES.get(family.type, ())}


def expressions(node: object) -> Iterator[str]:
    """Every PromQL expression in `node`: of rules, dashboards and scalers."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


@pytest.mark.parametrize("place", ["dashboard.json", "PrometheusRule", "ScaledObject"])
def test_every_metric_is_one_that_the_service_exports(place: str) -> None:
    if place == "dashboard.json":
        node = json.loads((MONITORING / place).read_text(encoding="utf-8"))
    else:
        node = find("monitoring" if place == "PrometheusRule" else "gpu", place)
    named = {name for text in expressions(node) for name in re.findall(r"\b(?:sparse_encoder|process)_\w+", text)}
    assert named, "no expression names a metric: this test looks in the wrong place"
    assert named - exported() == set()


def alerts(rules: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The alerts of a PrometheusRule, by name."""
    found = [rule for group in rules["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    return {rule["alert"]: rule for rule in found}


def test_every_alert_links_to_its_heading_in_the_runbook() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\w+)$", runbook, re.MULTILINE)
    links = {
        name: rule["annotations"]["runbook_url"] for name, rule in alerts(find("monitoring", "PrometheusRule")).items()
    }
    assert links == {name: f"docs/runbook.md#{name.lower()}" for name in headings}
    assert set(re.findall(r"\]\(#(\w+)\)", runbook)) <= {name.lower() for name in headings}


@pytest.mark.parametrize("place", ["dashboard.json", "rules.yaml"])
def test_every_route_that_encodes_is_watched(place: str) -> None:
    text = (MONITORING / place).read_text(encoding="utf-8").replace("\\", "")
    patterns = set(re.findall(r'path=~"([^"]+)"', text))
    assert patterns
    others = {path for path in ENCODING if path.endswith(("/tokenize", "/explain"))}  # no search depends on them
    routes = set(ENCODING) - others
    assert len(routes) == 6
    for pattern in patterns:
        assert {path for path in routes if re.fullmatch(pattern, path)} == routes
        assert not any(re.fullmatch(pattern, path) for path in {"/metrics", *others})


def test_the_rules_are_valid_and_fire_when_they_should(tmp_path: Path) -> None:
    promtool = tool("promtool")
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    cases = Path(shutil.copy(Path(__file__).with_name("rules.test.yaml"), tmp_path))
    for command in (("check", "rules", tmp_path / "rules.yaml"), ("test", "rules", cases)):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    rules = (MONITORING / "rules.yaml").read_text(encoding="utf-8")
    cases = Path(__file__).with_name("rules.test.yaml").read_text(encoding="utf-8")
    known = set(re.findall(r"alert: (\w+)", rules))
    assert set(re.findall(r'\{labels: .*alertname="(\w+)"', cases)) == known
    quiet = cases.partition("name: all is well")[2].partition("- name:")[0]
    assert set(re.findall(r"\{alertname: (\w+), eval_time: \w+\}", quiet)) == known


def test_the_command_of_the_bulk_job_is_one() -> None:
    job = find("bulk", "RayJob")["spec"]
    words = job["entrypoint"].split()
    assert words[:3] == ["python", "-m", "app.bulk"]
    options = parser().parse_args(words[3:])
    workers = job["rayClusterSpec"]["workerGroupSpecs"][0]
    (spec,) = pod_specs(workers)
    assert str(options.threads) == spec["containers"][0]["resources"]["requests"]["cpu"]
    assert options.concurrency == workers["replicas"]
    assert (options.store, options.output[:5], options.address) == (
        "s3://models/sparse-encoder",
        "s3://",
        "$RAY_ADDRESS",
    )
    assert options.max_rejected > 0, "one rejected row would make a new cluster as often as backoffLimit says"


def test_of_other_pods_only_the_operator_of_kuberay_reaches_the_bulk_job() -> None:
    _, others = find("bulk", "NetworkPolicy")["spec"]["ingress"]
    (peer,) = others["from"]
    assert peer["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}
    (namespaces,) = peer["namespaceSelector"]["matchExpressions"]
    assert namespaces["operator"] == "In"
