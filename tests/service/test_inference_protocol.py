"""/v2: requests as the protocol has them; scores are those of /score and /score/timeseries."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.protocol_schemas import (
    Health,
    ModelMetadata,
    ModelReady,
    RepositoryEntry,
    ServerMetadata,
)
from tests.artifacts import IMAGE_INPUT, SERIES_INPUT, publish_image, set_active
from tests.service.conftest import Start
from tests.service.pictures import encode, grey, noise
from tests.service.tensors import (
    INFER,
    LENGTH,
    SERIES,
    behind,
    cells,
    files,
    members_of,
    outputs_of,
    pixels,
    post,
    post_binary,
    prefixed,
    readings,
    same,
    scored,
    tensor,
)
from tests.service.test_score_bad_input import refused

# what a client asks first


def test_the_server_says_what_it_is_and_that_it_is_ready(client: TestClient) -> None:
    body = client.get("/v2").json()
    ServerMetadata.model_validate(body)
    assert body["extensions"] == ["model_repository", "binary_tensor_data"]
    for path in ("/v2/health/live", "/v2/health/ready"):
        response = client.get(path)
        assert response.status_code == 200
        assert response.json() == {"ready": True, "live": True}
        Health.model_validate(response.json())


def test_a_service_without_models_lives_and_is_not_ready(start: Start, tmp_path: Path) -> None:
    client = start(tmp_path)
    assert client.get("/v2/health/live").json() == {"ready": False, "live": True}
    body = refused(client.get("/v2/health/ready"), 503, "holds no model")
    assert body["ready"] is False
    assert body["error"] == body["detail"]
    assert client.post("/v2/repository/index").json() == []


def test_a_model_says_what_it_takes_and_gives(client: TestClient) -> None:
    for path in ("/v2/models/bright", "/v2/models/bright/versions/1"):
        body = client.get(path).json()
        ModelMetadata.model_validate(body)
        assert body["versions"] == ["1"]
        assert body["inputs"] == [tensor("image", "UINT8", [-1, -1, -1, -1])]
        shapes = {o["name"]: (o["datatype"], o["shape"]) for o in body["outputs"]}
        assert shapes == {
            "score": ("FP32", [-1]),
            "p_value": ("FP32", [-1]),
            "raw_score": ("FP32", [-1]),
            "decision": ("BYTES", [-1]),
            "residual_map": ("FP32", [-1, -1, -1]),
        }
    body = client.get("/v2/models/sensors").json()
    assert body["inputs"] == [tensor("rows", "FP32", [-1, 3])]
    shapes = {o["name"]: o["shape"] for o in body["outputs"]}
    assert shapes["contributions"] == [-1, 3]
    assert shapes["residual_map"] == [-1, 4, 3]


def test_a_model_that_is_held_is_ready_and_others_are_not(start: Start, tmp_path: Path) -> None:
    publish_image(tmp_path)
    publish_image(tmp_path, version=2)
    broken = publish_image(tmp_path, "broken")
    (broken / "score.onnx").write_bytes(b"")
    set_active(tmp_path, image="bright/2")
    client = start(tmp_path)
    for path in ("/v2/models/bright/ready", "/v2/models/bright/versions/2/ready"):
        assert client.get(path).json() == {"name": "bright", "ready": True}
        ModelReady.model_validate(client.get(path).json())
    refused(client.get("/v2/models/bright/versions/1/ready"), 404, "not loaded")
    body = refused(client.get("/v2/models/broken/ready"), 503, "score.onnx")
    assert body["ready"] is False
    refused(post(client, files(encode(grey(9))), path="/v2/models/broken/infer"), 503, "score.onnx")
    refused(client.get("/v2/models/broken"), 503, "score.onnx")
    assert client.get("/v2/models/bright").json()["versions"] == ["2"]
    index = client.post("/v2/repository/index").json()
    for entry in index:
        RepositoryEntry.model_validate(entry)
    states = [(e["name"], e["version"], e["state"]) for e in index]
    assert states == [
        ("bright", "1", "UNAVAILABLE"),
        ("bright", "2", "READY"),
        ("broken", "1", "UNAVAILABLE"),
    ]
    assert index[0]["reason"] == "unloaded"
    assert "score.onnx" in index[2]["reason"]
    ready = client.post("/v2/repository/index", json={"ready": True}).json()
    assert [e["name"] for e in ready] == ["bright"]


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"[]", 422), (b'{"ready": 1}', 422), (b'{"red": true}', 422)]
)
def test_a_wrong_question_for_the_index(client: TestClient, body: bytes, status: int) -> None:
    refused(client.post("/v2/repository/index", content=body), status)


@pytest.mark.parametrize("path", ["", "/ready", "/versions/1", "/versions/1/ready"])
def test_an_unknown_model_or_version(client: TestClient, path: str) -> None:
    body = refused(client.get(f"/v2/models/nope{path}"), 404, "nope", "bright, sensors")
    assert body["error"] == body["detail"]


def test_what_this_protocol_has_not_is_an_error_in_its_form(client: TestClient) -> None:
    assert "error" in refused(client.get("/v2/models/bright/config"), 404)
    assert "error" in refused(client.get(INFER), 405)
    assert "error" in refused(client.get("/v2/models/bright/versions/one"), 422)
    refused(client.get("/v2/models/bright/versions/7"), 404, "known versions: 1")
    refused(client.get("/v2/models/bright/versions/" + "9" * 400), 404)
    refused(client.post(f"{INFER}?fpr=0.1", json={}), 422, "unknown query parameter")
    assert "error" not in refused(client.get("/nope"), 404)


# images


@pytest.mark.parametrize("shape", [(8, 8), (12, 10), (3, 40)])
def test_pixels_score_bit_for_bit_as_the_same_pixels_in_a_file(
    client: TestClient, shape: tuple[int, int]
) -> None:
    images = np.stack([noise(*shape, seed) // (1 + seed) for seed in range(3)])[..., None]
    expected = scored(client, *(encode(image[..., 0]) for image in images))
    found = outputs_of(post(client, pixels(images)))
    assert list(found) == ["score", "p_value", "raw_score", "decision"]
    same(found, expected)
    nested = tensor("image", "UINT8", list(images.shape), data=images.tolist())
    same(outputs_of(post(client, nested)), expected)
    raw = images.tobytes()
    binary = behind("image", "UINT8", list(images.shape), len(raw))
    same(outputs_of(post_binary(client, raw, binary)), expected)
    same(outputs_of(post(client, files(*(encode(i[..., 0]) for i in images)))), expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_converted_as_those_of_a_file(client: TestClient, mode: str) -> None:
    channels = len(mode)
    image = np.random.default_rng(1).integers(0, 256, (9, 9, channels), np.uint8)
    expected = scored(client, encode(Image.fromarray(image, mode)))
    same(outputs_of(post(client, pixels(image[None]))), expected)


def test_a_model_of_colours_takes_grey_as_grey(start: Start, tmp_path: Path) -> None:
    publish_image(
        tmp_path,
        spec=IMAGE_INPUT.model_copy(
            update={"channels": 3, "mean": (0.0,) * 3, "std": (1.0,) * 3, "height": 6}
        ),
    )
    set_active(tmp_path, image="bright/1")
    client = start(tmp_path)
    for image in (noise(9, 9)[..., None], np.dstack([noise(9, 9, s) for s in range(3)])):
        expected = scored(client, encode(image.squeeze()))
        same(outputs_of(post(client, pixels(image[None]))), expected)


def test_files_of_any_size_and_format_go_in_one_tensor(client: TestClient) -> None:
    contents = [encode(noise(8, 8)), encode(noise(20, 30), "JPEG"), encode(noise(5, 9), "TIFF")]
    expected = scored(client, *contents)
    same(outputs_of(post(client, files(*contents))), expected)
    raw = prefixed(*contents)
    same(outputs_of(post_binary(client, raw, behind("image", "BYTES", [3], len(raw)))), expected)
    same(outputs_of(post_binary(client, raw, behind("image", "BYTES", [3, 1], len(raw)))), expected)


def test_large_pictures_in_a_small_file_score_too(client: TestClient) -> None:
    contents = [encode(grey(level, 600, 700)) for level in (9, 99)]
    same(outputs_of(post(client, files(*contents))), scored(client, *contents))


def test_an_answer_names_the_model_and_echoes_the_id(client: TestClient) -> None:
    one = files(encode(grey(9)))
    response = post(client, one, id="part 17", model_name="bright", model_version="1")
    body = response.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("bright", "1", "part 17")
    response = post(client, one, path="/v2/models/bright/versions/1/infer", parameters=None)
    assert response.json()["id"] == response.headers["X-Request-ID"]
    assert "parameters" not in response.json()
    response = post(client, one, outputs=[], id=None)
    assert len(response.json()["outputs"]) == 4


@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream", None, "*form*"])
def test_any_content_type_that_clients_state_is_taken(client: TestClient, kind: str | None) -> None:
    body = json.dumps({"inputs": [files(encode(grey(9)))]})
    stated = "application/x-www-form-urlencoded" if kind == "*form*" else kind
    headers = {} if stated is None else {"Content-Type": stated}
    outputs_of(client.post(INFER, content=body, headers=headers))


def test_maps_lie_in_the_frame_of_the_images_and_only_where_asked_for(client: TestClient) -> None:
    images = np.stack([noise(8, 8), noise(8, 8, 1)])[..., None]
    wanted = [{"name": "residual_map"}, {"name": "score"}]
    found = outputs_of(post(client, pixels(images), outputs=wanted))
    assert list(found) == ["residual_map", "score"]
    assert np.allclose(found["residual_map"], images[..., 0] / np.float32(255), atol=1e-6)
    contents = [encode(noise(12, 10, s)) for s in range(2)]
    found = outputs_of(post(client, files(*contents), outputs=wanted))
    assert found["residual_map"].shape == (2, 12, 10)


def test_each_output_is_binary_or_not_as_asked_for(client: TestClient) -> None:
    images = noise(8, 8)[None, ..., None]
    everything = ["score", "p_value", "raw_score", "decision", "residual_map"]
    plain = outputs_of(post(client, pixels(images), outputs=[{"name": n} for n in everything]))
    asked = [{"name": n, "parameters": {"binary_data": True}} for n in everything]
    mixed = [*asked[:2], *({"name": n} for n in everything[2:])]
    for outputs, parameters, binary in (
        (asked, {}, 5),
        (mixed, {}, 2),
        (mixed, {"binary_data_output": True}, 5),
        ([{"name": n} for n in everything], {"binary_data_output": True}, 5),
        ([{**asked[0], "parameters": {"binary_data": False}}], {"binary_data_output": True}, 0),
    ):
        response = post(client, pixels(images), outputs=outputs, parameters=parameters)
        head = response.content[: int(response.headers.get(LENGTH, len(response.content)))]
        assert head.count(b"binary_data_size") == binary
        same(outputs_of(response), {n: v for n, v in plain.items() if n in str(outputs)})
    response = post(client, pixels(images), parameters={"binary_data_output": True})
    same(outputs_of(response), {n: v for n, v in plain.items() if n != "residual_map"})


def test_fpr_and_fdr_decide(client: TestClient) -> None:
    contents = [encode(grey(level)) for level in (5, 120, 126, 250)]
    for query, parameters in (("fpr=0.1", {"fpr": 0.1}), ("fdr=0.3", {"fdr": 0.3})):
        found = outputs_of(post(client, files(*contents), parameters=parameters))
        if "fpr" in query:
            same(found, scored(client, *contents, query=f"?map=none&{query}"))
        assert found["decision"].tolist() == ["normal", "anomalous", "anomalous", "anomalous"]
    refused(post(client, files(*contents), parameters={"fpr": 0.001}), 422, "0.005")
    refused(post(client, files(*contents), parameters={"fpr": 0.1, "fdr": 0.1}), 422, "exclude")


# series


def test_rows_score_as_in_the_other_route(client: TestClient) -> None:
    data = readings(30)
    response = client.post("/score/timeseries", json={"rows": data.tolist()})
    expected = members_of(response)
    found = outputs_of(post(client, cells(data), path=SERIES))
    assert list(found) == [*expected, "contributions"]
    same(found, expected)
    raw = data.astype("<f8").tobytes()
    binary = behind("rows", "FP64", [30, 3], len(raw))
    same(outputs_of(post_binary(client, raw, binary, path=SERIES)), expected)
    for i, result in enumerate(response.json()["results"]):
        shares = {c["column"]: np.float32(c["share"]) for c in result["contributions"]}
        assert found["contributions"][i].tolist() == [shares[c.name] for c in SERIES_INPUT.columns]


def test_fp32_rows_score_as_their_rounded_readings(client: TestClient) -> None:
    rounded = readings(30).astype(np.float32)
    response = client.post("/score/timeseries", json={"rows": rounded.astype(float).tolist()})
    expected = members_of(response)
    same(outputs_of(post(client, cells(readings(30), "FP32"), path=SERIES)), expected)
    raw = rounded.astype("<f4").tobytes()
    binary = behind("rows", "FP32", [30, 3], len(raw))
    same(outputs_of(post_binary(client, raw, binary, path=SERIES)), expected)


def test_a_window_that_is_not_scorable_is_nan_or_null_and_the_others_are_scored(
    client: TestClient,
) -> None:
    data = readings(12)
    whole = outputs_of(post(client, cells(data), path=SERIES))
    data[0, 0] = np.nan
    wanted = ["score", "p_value", "raw_score", "decision", "contributions", "residual_map"]
    asked = [{"name": n} for n in wanted]
    response = post(client, cells(data), path=SERIES, outputs=asked)
    assert response.json()["outputs"][0]["data"][0] is None
    binary = {"binary_data_output": True}
    as_text = json.dumps({"inputs": [cells(readings())], "outputs": asked}).replace(
        str(readings()[0, 0]), "NaN", 1
    )
    for answer in (
        response,
        post(client, cells(data), path=SERIES, outputs=asked, parameters=binary),
        client.post(SERIES, content=as_text),
    ):
        found = outputs_of(answer)
        assert found["decision"].tolist()[0] == "not_scorable"
        assert found["contributions"].shape == (4, 3)
        assert found["residual_map"].shape == (4, 4, 3)
        for name in set(wanted) - {"decision"}:
            assert np.isnan(found[name][0]).all()
            assert np.isfinite(found[name][1:]).all()
        for name in set(wanted) - {"residual_map"}:
            assert np.array_equal(found[name][1:], whole[name][1:])


def test_series_take_a_stride_and_rates(client: TestClient) -> None:
    data = readings(30) * 3
    for query, parameters in (("stride=3&fpr=0.2", {"stride": 3, "fpr": 0.2}), ("stride=50", None)):
        stride = parameters or {"stride": 50}
        expected = client.post(f"/score/timeseries?{query}", json={"rows": data.tolist()})
        found = outputs_of(post(client, cells(data), path=SERIES, parameters=stride))
        same(found, members_of(expected))
    found = outputs_of(post(client, cells(data), path=SERIES, parameters={"fdr": 0.5}))
    assert "anomalous" in found["decision"].tolist()


def test_what_was_decided_is_counted(start: Start) -> None:
    client = start()
    outputs_of(post(client, pixels(np.zeros((5, 8, 8, 1), np.uint8))))
    data = readings(12)
    data[0, 0] = np.nan
    outputs_of(post(client, cells(data), path=SERIES))
    text = client.get("/metrics").text
    assert 'anomaly_items_total{decision="normal",model="bright",version="1"} 5.0' in text
    assert 'anomaly_items_total{decision="not_scorable",model="sensors",version="1"} 1.0' in text
    assert 'anomaly_score_count{model="sensors",version="1"} 3.0' in text
    assert 'route="/v2/models/{name}/infer"' in text
