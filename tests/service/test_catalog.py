"""Readiness is honest, and a model that cannot be served never stops the others."""

import json
import shutil
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.catalog import Catalog
from service.contract import store
from service.schemas import HealthBody, ModelBody, ModelsBody, ReadyBody, VersionBody
from service.settings import Settings
from tests.artifacts import publish_image, publish_series, set_active
from tests.service.conftest import Start
from tests.service.operators import eventually
from tests.service.pictures import encode, grey
from tests.service.test_score_bad_input import refused

PNG = {"Content-Type": "image/png"}


def score(client: TestClient, query: str = "") -> int:
    response = client.post(f"/score{query}", content=encode(grey(5)), headers=PNG)
    return response.status_code


def two(root: Path) -> Path:
    publish_image(root, "good")
    set_active(root, image="good/1")
    return publish_image(root, "bad")


def alter(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / name).write_bytes(bytes(data))


def redigest(folder: Path) -> None:
    """The manifest vouches for the files as they are now."""
    path = folder / store.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"] = store.digests(folder)
    path.write_text(json.dumps(manifest))


def test_with_good_models_the_service_is_ready_and_says_which(client: TestClient) -> None:
    response = client.get("/readyz")
    assert response.status_code == 200
    assert ReadyBody.model_validate(response.json()).models == ["bright/1", "sensors/1"]
    health = HealthBody.model_validate(client.get("/healthz").json())
    assert (health.status, health.ready, health.reasons) == ("ok", True, [])
    assert client.get("/livez").json() == {"live": True}


def test_without_any_model_the_service_is_never_ready_but_alive(
    start: Start, tmp_path: Path
) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        client = start(root)
        refused(client.get("/readyz"), 503, "holds no model", str(root))
        assert client.get("/readyz").headers["Retry-After"]
        assert client.get("/livez").status_code == 200
        assert client.get("/healthz").json()["status"] == "degraded"
        assert client.get("/models").json() == {"models": []}
        assert score(client) == 422


@pytest.mark.parametrize("name", ["score.onnx", "calibration.npz", "golden.npz", "manifest.json"])
@pytest.mark.parametrize("damage", ["altered", "truncated", "removed"])
def test_a_damaged_artifact_is_refused_by_file_and_others_stay_served(
    start: Start, tmp_path: Path, name: str, damage: str
) -> None:
    folder = two(tmp_path)
    if damage == "altered":
        alter(folder, name)
    elif damage == "truncated":
        (folder / name).write_bytes((folder / name).read_bytes()[:-7])
    else:
        (folder / name).unlink()
    client = start(tmp_path)
    body = refused(client.get("/readyz"), 503, f"bad/1/{name}")
    assert [reason.split(":")[0] for reason in body["reasons"]] == ["bad/1"]
    refused(post(client, "?model=bad"), 503, f"bad/1/{name}")
    assert score(client) == 200
    assert client.get("/models/bad").json()["status"] == "failed"
    assert client.get("/models/good").json()["status"] == "ready"


def post(client: TestClient, query: str):  # type: ignore[no-untyped-def]
    return client.post(f"/score{query}", content=encode(grey(5)), headers=PNG)


def test_a_graph_of_another_model_fails_the_self_test(start: Start, tmp_path: Path) -> None:
    folder = two(tmp_path)
    model = onnx.load(folder / "score.onnx")
    model.graph.node[0].op_type = "Sqrt"
    onnx.save(model, folder / "score.onnx")
    redigest(folder)
    client = start(tmp_path)
    refused(client.get("/readyz"), 503, "golden score deviates")
    refused(post(client, "?model=bad"), 503, "golden score deviates")
    assert score(client) == 200


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("score.onnx", b"not a graph", "score.onnx"),
        ("calibration.npz", b"not an archive", "calibration.npz"),
        ("golden.npz", b"", "golden.npz"),
        ("golden.npz", b"PK\x03\x04 and then nothing", "golden.npz"),
    ],
)
def test_a_foreign_file_with_a_right_digest_is_refused_by_name(
    start: Start, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    folder = two(tmp_path)
    (folder / name).write_bytes(content)
    redigest(folder)
    client = start(tmp_path)
    refused(client.get("/readyz"), 503, words)
    assert score(client) == 200


@pytest.mark.parametrize(
    ("name", "scores"),
    [("scores", []), ("scores", [2.0, 1.0]), ("scores", [1.0, 2.0]), ("other", [1.0, 2.0])],
)
def test_a_calibration_of_another_form_is_refused(
    start: Start, tmp_path: Path, name: str, scores: list[float]
) -> None:
    folder = two(tmp_path)
    with zipfile.ZipFile(folder / store.CALIBRATION, "w") as archive:
        array = BytesIO()
        np.save(array, np.array(scores))
        archive.writestr(f"{name}.npy", array.getvalue())
    redigest(folder)
    client = start(tmp_path)
    refused(client.get("/readyz"), 503, "bad/1/calibration.npz")
    assert score(client) == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "vae"}, ("'vae'", "nln")),
        ({"params": {}}, ("params",)),
        ({"format": 99}, ("format 99",)),
        ({"version": 2}, ("bad/2",)),
        ({"surprise": 1}, ("surprise",)),
    ],
)
def test_a_foreign_manifest_is_refused_by_what_is_foreign(
    start: Start, tmp_path: Path, change: dict[str, object], words: tuple[str, ...]
) -> None:
    path = two(tmp_path) / store.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    client = start(tmp_path)
    refused(client.get("/readyz"), 503, "bad/1", *words)
    assert score(client) == 200


def test_an_artifact_copied_to_another_name_is_refused(start: Start, tmp_path: Path) -> None:
    shutil.copytree(two(tmp_path), tmp_path / "copy" / "1")
    refused(start(tmp_path).get("/readyz"), 503, "copy/1", "says bad/1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"image": "nope/1"}', "nope/1, which is not there"),
        ('{"image": "good/7"}', "good/7, which is not there"),
        ('{"image": "good"}', "not name/version"),
        ('{"timeseries": "good/1"}', "scores image input"),
        ('{"images": "good/1"}', "images"),
        ("{", "active.json"),
    ],
)
def test_an_active_json_that_names_what_cannot_be_served_is_said(
    start: Start, tmp_path: Path, text: str, words: str
) -> None:
    publish_image(tmp_path, "good")
    (tmp_path / store.ACTIVE).write_text(text)
    client = start(tmp_path)
    refused(client.get("/readyz"), 503, words)
    assert score(client, "?model=good&version=1") == 200


def test_only_the_active_version_is_loaded_unless_all_are_asked_for(
    start: Start, tmp_path: Path
) -> None:
    for version in (1, 2, 3):
        publish_image(tmp_path, "good", version)
    set_active(tmp_path, image="good/2")
    client = start(tmp_path)
    assert client.get("/readyz").json()["models"] == ["good/2"]
    assert score(client) == 200
    refused(post(client, "?model=good&version=3"), 404, "not loaded", "ANOMALY_LOAD_VERSIONS=all")
    shown = VersionBody.model_validate(client.get("/models/good/versions/3").json())
    assert (shown.status, shown.active, shown.title) == ("not_loaded", False, "miniature good")
    every = start(tmp_path, load_versions="all")
    assert [score(every, f"?model=good&version={v}") for v in (1, 2, 3)] == [200] * 3


def test_a_broken_version_that_is_not_active_does_not_make_the_service_unready(
    start: Start, tmp_path: Path
) -> None:
    publish_image(tmp_path, "good", 1)
    alter(publish_image(tmp_path, "good", 2), "score.onnx")
    set_active(tmp_path, image="good/1")
    client = start(tmp_path, load_versions="all")
    assert client.get("/readyz").status_code == 200
    refused(post(client, "?model=good&version=2"), 503, "score.onnx")


def test_what_is_published_after_start_is_found_and_said_how_to_load(
    start: Start, tmp_path: Path
) -> None:
    publish_image(tmp_path, "good")
    client = start(tmp_path)
    publish_image(tmp_path, "late")
    publish_image(tmp_path, "good", 2)
    refused(post(client, "?model=late"), 404, "late")
    refused(post(client, "?model=good&version=2"), 404, "2")
    eventually(lambda: [m["name"] for m in listed(client)] == ["good", "late"])
    refused(post(client, "?model=late"), 404, "POST /models/late/versions/1/load")
    refused(post(client, "?model=good&version=2"), 404, "POST /models/good/versions/2/load")
    late = ModelBody.model_validate(client.get("/models/late").json())
    assert (late.active_version, late.status) == (None, "not_loaded")
    assert client.get("/models/good").json()["active_version"] == 1
    assert client.get("/readyz").status_code == 200
    shutil.rmtree(tmp_path / "late")
    eventually(lambda: [m["name"] for m in listed(client)] == ["good"])


def test_with_every_version_asked_for_those_published_later_are_loaded_too(
    start: Start, tmp_path: Path
) -> None:
    publish_image(tmp_path, "good")
    client = start(tmp_path, load_versions="all")
    publish_image(tmp_path, "good", 2)
    publish_image(tmp_path, "late")
    eventually(lambda: score(client, "?model=late") == 200)
    assert score(client, "?model=good&version=2") == 200
    assert client.get("/models/good").json()["active_version"] == 1


def listed(client: TestClient) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = client.get("/models").json()["models"]
    return models


def test_a_half_published_version_is_not_served(start: Start, tmp_path: Path) -> None:
    publish_image(tmp_path, "good")
    with store.staging(tmp_path, "good") as folder:
        (folder / "score.onnx").write_bytes(b"half")
        client = start(tmp_path)
        assert client.get("/readyz").json()["models"] == ["good/1"]


def test_while_models_load_the_service_says_so_and_asks_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_image(tmp_path, "good")
    set_active(tmp_path, image="good/1")
    monkeypatch.setattr(Catalog, "start", lambda self: None)
    with TestClient(create_app(Settings(models_dir=tmp_path))) as client:
        for response in (client.get("/readyz"), post(client, "")):
            refused(response, 503, "being loaded")
            assert int(response.headers["Retry-After"]) > 0
        assert client.get("/healthz").json()["status"] == "loading"
        assert client.get("/models").json()["models"][0]["status"] == "loading"


def test_models_are_listed_with_their_versions_defaults_and_status(client: TestClient) -> None:
    listed = ModelsBody.model_validate(client.get("/models").json()).models
    assert [m.name for m in listed] == ["bright", "sensors"]
    assert [m.task for m in listed] == ["image", "timeseries"]
    assert [m.default_for for m in listed] == [["image"], ["timeseries"]]
    assert [m.status for m in listed] == ["ready", "ready"]
    one = ModelBody.model_validate(client.get("/models/bright").json())
    assert one == listed[0]
    assert one.active_version == 1


def test_a_version_shows_its_input_rule_calibration_metrics_and_provenance(
    client: TestClient,
) -> None:
    body = client.get("/models/sensors/versions/1").json()
    shown = VersionBody.model_validate(body)
    assert shown.provider == "CPUExecutionProvider"
    assert shown.sha256 is not None
    assert shown.calibration is not None
    assert (shown.calibration["n"], shown.calibration["finest_fpr"]) == (199, 0.005)
    assert shown.input is not None
    assert [c["name"] for c in shown.input["columns"]] == ["power", "wind", "pitch"]
    assert shown.metrics == {"auroc": body["metrics"]["auroc"]}
    assert set(shown.files or {}) == {"score.onnx", "calibration.npz", "golden.npz"}


@pytest.mark.parametrize(
    ("path", "status"),
    [("/models/nope", 404), ("/models/bright/versions/2", 404), ("/models/bright/versions/x", 422)],
)
def test_what_is_not_there_is_a_problem(client: TestClient, path: str, status: int) -> None:
    refused(client.get(path), status)


def test_no_provider_but_a_gpu_allowed_is_not_ready_on_a_cpu(start: Start, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU runtime here")
    publish_series(tmp_path)
    refused(start(tmp_path, providers="cuda!").get("/readyz"), 503, "CUDA was demanded")
    assert start(tmp_path, providers="cuda").get("/readyz").status_code == 200
