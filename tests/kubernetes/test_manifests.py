"""docker/kubernetes, built by kustomize: objects that a cluster takes, and that fit the service."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from starlette.testclient import TestClient

from service.__main__ import _GRACE_S
from service.app import create_app
from service.settings import Settings
from service.telemetry import Telemetry

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "kubernetes"
COPY = FOLDER / "copy-models.yaml"
BUILT = ("base", "overlays/keys", "overlays/gpu", "overlays/production", "kserve")
OLDEST, NEWEST = "1.30", kubernetes_validate.latest_version()
OWN_KINDS = {"ServiceMonitor", "PrometheusRule", "ServingRuntime", "InferenceService"}
SECRETS = {"anomaly-redis", "anomaly-keys", "anomaly-metrics-key"}
"""What docs/kubernetes.md tells to create."""

Object = dict[str, Any]


@cache
def built(name: str) -> tuple[Object, ...]:
    """The objects of an overlay."""
    tools = (["kubectl", "kustomize"], ["kustomize", "build"])
    tool = next((t for t in tools if shutil.which(t[0])), None)
    if tool is None:
        pytest.skip(
            "neither kubectl nor kustomize is on PATH; one of them (5 or newer) builds this"
        )
    run = subprocess.run([*tool, FOLDER / name], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "deprecated" not in run.stderr
    return tuple(yaml.safe_load_all(run.stdout))


def one(name: str, kind: str) -> Object:
    """The only object of a kind."""
    (found,) = (o for o in built(name) if o["kind"] == kind)
    return found


def pod(name: str) -> Object:
    """The pod that an overlay runs."""
    if name == "kserve":
        return one(name, "ServingRuntime")["spec"]  # type: ignore[no-any-return]
    return one(name, "Deployment")["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def container(name: str) -> Object:
    (found,) = pod(name)["containers"]
    return found  # type: ignore[no-any-return]


def environment(name: str) -> dict[str, str]:
    """What the container of an overlay finds in its environment."""
    if name == "kserve":
        return {e["name"]: e["value"] for e in container(name)["env"]}
    config = one(name, "ConfigMap")
    assert container(name)["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    return config["data"]  # type: ignore[no-any-return]


def probes(name: str) -> Iterator[Object]:
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        if kind in container(name):
            yield container(name)[kind]["httpGet"]


def test_every_file_of_the_folder_is_part_of_something_that_is_built_here() -> None:
    used: set[Path] = set()

    def visit(folder: Path) -> None:
        path = folder / "kustomization.yaml"
        used.add(path.resolve())
        text = yaml.safe_load(path.read_text())
        for entry in [*text.get("resources", []), *text.get("components", [])]:
            target = folder / entry
            visit(target) if target.is_dir() else used.add(target.resolve())
        used.update((folder / patch["path"]).resolve() for patch in text.get("patches", []))

    for name in BUILT:
        visit(FOLDER / name)
    assert used | {COPY} == {p.resolve() for p in FOLDER.rglob("*.yaml")}


@pytest.mark.parametrize("name", BUILT)
def test_kubernetes_takes_every_object_of_its_own_kinds(name: str) -> None:
    for found in built(name):
        if found["kind"] in OWN_KINDS:
            continue
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(found, version, strict=True)


def test_models_are_copied_by_a_pod_that_writes_as_the_service_reads() -> None:
    copy, spec = yaml.safe_load(COPY.read_text()), pod("base")
    kubernetes_validate.validate(copy, OLDEST, strict=True)
    for member in ("runAsUser", "fsGroup", "runAsNonRoot"):
        assert copy["spec"]["securityContext"][member] == spec["securityContext"][member]
    (volume,) = copy["spec"]["volumes"]
    claims = [v.get("persistentVolumeClaim", {}).get("claimName") for v in spec["volumes"]]
    assert volume["persistentVolumeClaim"]["claimName"] in claims


@pytest.mark.parametrize("name", BUILT)
def test_every_variable_is_a_setting_and_its_value_one_that_the_service_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [v for v in os.environ if v.startswith("ANOMALY_")]:
        monkeypatch.delenv(variable)
    known = {f"ANOMALY_{field.upper()}" for field in Settings.model_fields}
    assert set(environment(name)) <= known
    for variable, value in environment(name).items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    assert settings.host == "0.0.0.0"
    (port,) = container(name)["ports"]
    assert port["containerPort"] == settings.port
    mounts = [Path(m["mountPath"]) for m in container(name)["volumeMounts"]]
    files = (settings.models_dir, settings.state_file, settings.redis_url_file)
    for path in (*files, settings.api_keys_file):
        if path is not None and not path.is_relative_to("/mnt/models"):  # KServe mounts that one
            assert any(path.is_relative_to(mount) for mount in mounts), path


@pytest.mark.parametrize("name", BUILT)
def test_probes_ask_for_what_the_service_answers_without_a_key(name: str, tmp_path: Path) -> None:
    keys = "reader:infer:0123456789abcdef"
    ports = {p["name"]: p["containerPort"] for p in container(name)["ports"]}
    asked = list(probes(name))
    assert {"/livez", "/v2/health/live"} & {probe["path"] for probe in asked}
    with TestClient(create_app(Settings(models_dir=tmp_path, api_keys=keys))) as client:
        for probe in asked:
            ready = probe["path"].endswith(("/readyz", "/ready"))
            assert client.get(probe["path"]).status_code == (503 if ready else 200)
            assert probe["port"] in (*ports, *ports.values())


@pytest.mark.parametrize("name", BUILT)
def test_a_pod_may_do_no_more_than_it_must(name: str) -> None:
    allowed = container(name)["securityContext"]
    assert allowed["readOnlyRootFilesystem"]
    assert not allowed["allowPrivilegeEscalation"]
    assert allowed["capabilities"] == {"drop": ["ALL"]}
    assert {**pod(name).get("securityContext", {}), **allowed}["runAsNonRoot"]
    assert "memory" in container(name)["resources"]["limits"]
    writable = [m for m in container(name)["volumeMounts"] if not m.get("readOnly")]
    assert "/tmp" in [m["mountPath"] for m in writable]


@pytest.mark.parametrize("name", BUILT)
def test_a_replica_uses_as_many_cores_as_it_asks_for(name: str) -> None:
    asked = container(name)["resources"]["requests"]["cpu"]
    assert environment(name)["ANOMALY_THREADS"] == asked
    assert environment(name)["ANOMALY_CONCURRENCY"] == asked


@pytest.mark.parametrize("name", BUILT)
def test_image_and_user_are_those_of_the_compose_file(name: str) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    image, _, tag = container(name)["image"].partition(":")
    service = compose["service-gpu" if name == "overlays/gpu" else "service"]
    assert service["image"] == f"{image}:${{STACK_VERSION:-{tag}}}"
    build = (ROOT / service["build"]["dockerfile"]).read_text()
    context = {**pod(name).get("securityContext", {}), **container(name)["securityContext"]}
    assert f"USER {context['runAsUser']}:" in build


@pytest.mark.parametrize("name", BUILT[:4])
def test_everything_that_selects_pods_selects_these(name: str) -> None:
    labels = one(name, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        one(name, "Deployment")["spec"]["selector"]["matchLabels"],
        one(name, "Service")["spec"]["selector"],
        one(name, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(name, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(s["labelSelector"]["matchLabels"] for s in pod(name)["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    target = one(name, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == one(name, "Deployment")["metadata"]["name"]
    (port,) = one(name, "Service")["spec"]["ports"]
    (open_port,) = one(name, "NetworkPolicy")["spec"]["ingress"][0]["ports"]
    names = [p["name"] for p in container(name)["ports"]]
    assert port["targetPort"] in names
    assert open_port["port"] in names


@pytest.mark.parametrize("name", BUILT)
def test_volumes_are_mounted_and_come_from_what_is_there_or_documented(name: str) -> None:
    volumes = {v["name"]: v for v in pod(name)["volumes"]}
    assert set(volumes) == {m["name"] for m in container(name)["volumeMounts"]}
    claims = {o["metadata"]["name"] for o in built(name) if o["kind"] == "PersistentVolumeClaim"}
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in claims
        if "secret" in volume:
            assert volume["secret"]["secretName"] in SECRETS


def test_the_pause_and_the_drain_fit_into_the_grace_period() -> None:
    spec = pod("base")
    pause = container("base")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > pause + 8 + _GRACE_S


def test_keys_and_gpu_change_what_they_are_for() -> None:
    assert environment("overlays/keys").keys() - environment("base").keys() == {
        "ANOMALY_API_KEYS_FILE"
    }
    assert environment("overlays/gpu")["ANOMALY_PROVIDERS"] == "cuda!"
    assert container("overlays/gpu")["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_prometheus_finds_the_metrics_and_has_a_key_for_them() -> None:
    monitor, service = one("overlays/production", "ServiceMonitor"), one("base", "Service")
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    )
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    assert endpoint["path"] == "/metrics"
    assert endpoint["authorization"]["credentials"] == {"name": "anomaly-metrics-key", "key": "key"}
    assert endpoint.keys() <= {
        "port", "path", "interval", "scrapeTimeout", "authorization", "scheme",
    }  # fmt: skip
    # rules and dashboard select by job, which is the name of the service
    assert service["metadata"]["name"] == "anomaly-scoring"


def test_the_queue_scales_before_requests_are_refused_and_cpu_stays_as_the_way_without_it() -> None:
    metrics = one("overlays/production", "HorizontalPodAutoscaler")["spec"]["metrics"]
    queue, cpu = metrics[0]["pods"], metrics[1]["resource"]
    assert cpu["name"] == "cpu"
    telemetry = Telemetry()
    telemetry.queue_depth("m", 1)
    exposed, _ = telemetry.exposition("")
    assert f"\n{queue['metric']['name']}{{" in exposed.decode()
    assert 0 < int(queue["target"]["averageValue"]) < Settings().queue_max_items


def test_the_rules_are_those_of_prometheus() -> None:
    (rules,) = (o for o in built("overlays/production") if o["kind"] == "PrometheusRule")
    files = sorted((ROOT / "docker" / "prometheus" / "rules").glob("*.yml"))
    groups = [g for file in files for g in yaml.safe_load(file.read_text())["groups"]]
    assert rules["spec"] == {"groups": groups}


def test_kserve_gets_a_runtime_that_speaks_what_its_service_asks_for(tmp_path: Path) -> None:
    runtime, service = one("kserve", "ServingRuntime"), one("kserve", "InferenceService")
    assert runtime["apiVersion"] == "serving.kserve.io/v1alpha1"
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    # the members that these two kinds have, of those used here
    assert runtime["spec"].keys() == {
        "containers", "protocolVersions", "supportedModelFormats", "volumes",
    }  # fmt: skip
    predictor = service["spec"]["predictor"]
    assert predictor.keys() == {"minReplicas", "maxReplicas", "model"}
    model = predictor["model"]
    assert model.keys() == {"modelFormat", "runtime", "protocolVersion", "storageUri"}
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (offered,) = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"].items() <= offered.items()
    assert container("kserve")["name"] == "kserve-container"
    assert environment("kserve")["ANOMALY_MODELS_DIR"] == "/mnt/models"
    app = create_app(Settings(models_dir=tmp_path))
    assert f"/{model['protocolVersion']}/models/{{name}}/infer" in app.openapi()["paths"]
