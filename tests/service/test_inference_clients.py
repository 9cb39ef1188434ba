"""/v2 as the clients of Triton and KServe speak it, to a real process on a real port."""

import asyncio
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.artifacts import publish_image, publish_series, set_active
from tests.service.pictures import encode, noise
from tests.service.tensors import members_of, readings, same, scored
from tests.service.test_process import serving

PIXELS = np.stack([noise(12, 10, seed) // (1 + seed) for seed in range(3)])[..., None]
FILES = [encode(image[..., 0]) for image in PIXELS]
NAMES = ("score", "p_value", "raw_score", "decision")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a process that serves a ready model of each kind, and one that is not."""
    root = tmp_path_factory.mktemp("models")
    publish_image(root)
    publish_image(root, "waiting")
    publish_series(root)
    set_active(root, image="bright/1", timeseries="sensors/1")
    log = tmp_path_factory.mktemp("log") / "log"
    with serving(root, log) as (_, address):
        yield address
    assert "Traceback" not in log.read_text()


@pytest.fixture
def client(base: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(base.removeprefix("http://")) as found:
        yield found


@pytest.fixture
def expected(base: str) -> dict[str, np.ndarray]:
    """The scores of the pictures by POST /score."""
    with httpx.Client(base_url=base) as plain:
        return scored(plain, *FILES)  # type: ignore[arg-type]


@pytest.fixture
def windows(base: str) -> dict[str, np.ndarray]:
    """The scores of the readings by POST /score/timeseries."""
    rows = {"rows": readings(30).tolist()}
    return members_of(httpx.post(f"{base}/score/timeseries", json=rows))


def tensor(name: str, values: np.ndarray, datatype: str, *, binary: bool = True) -> Any:
    found = triton.InferInput(name, list(values.shape), datatype)
    return found.set_data_from_numpy(values, binary_data=binary)


def values_of(result: Any, names: tuple[str, ...] = NAMES) -> dict[str, np.ndarray]:
    found = {name: result.as_numpy(name) for name in names}
    texts = [t.decode() if isinstance(t, bytes) else t for t in found["decision"].tolist()]
    return found | {"decision": np.array(texts, object)}


def test_triton_asks_what_is_there(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("bright")
    assert client.is_model_ready("bright", "1")
    assert not client.is_model_ready("bright", "2")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata()["extensions"] == ["model_repository", "binary_tensor_data"]
    metadata = client.get_model_metadata("sensors", "1")
    assert metadata["platform"] == "onnx_onnxv1"
    assert [i["name"] for i in metadata["inputs"]] == ["rows"]
    index = client.get_model_repository_index()
    assert {e["name"]: e["state"] for e in index} == dict.fromkeys(
        ("bright", "sensors", "waiting"), "READY"
    )


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_triton_sends_pixels(
    client: triton.InferenceServerClient,
    expected: dict[str, np.ndarray],
    binary_in: bool,
    binary_out: bool | None,
) -> None:
    image = tensor("image", PIXELS, "UINT8", binary=binary_in)
    asked = [triton.InferRequestedOutput(n, binary_data=bool(binary_out)) for n in NAMES]
    result = client.infer(
        "bright",
        [image],
        model_version="1",
        outputs=None if binary_out is None else asked,
        request_id="part 17",
        headers={"X-Request-ID": "trace"},
    )
    response = result.get_response()
    assert (response["id"], response["model_version"]) == ("part 17", "1")
    assert ("binary_data_size" in str(response)) is (binary_out is not False)
    same(values_of(result), expected)


def test_triton_sends_files(
    client: triton.InferenceServerClient, expected: dict[str, np.ndarray]
) -> None:
    encoded = np.array([b64encode(f) for f in FILES], object)
    for values, binary in ((np.array(FILES, object), True), (encoded, False)):
        image = tensor("image", values, "BYTES", binary=binary)
        same(values_of(client.infer("bright", [image])), expected)


def test_triton_gets_maps_in_either_form(client: triton.InferenceServerClient) -> None:
    image = tensor("image", PIXELS, "UINT8")
    found = []
    for binary in (True, False):
        asked = [
            triton.InferRequestedOutput("residual_map", binary_data=binary),
            triton.InferRequestedOutput("score", binary_data=not binary),
        ]
        found.append(client.infer("bright", [image], outputs=asked).as_numpy("residual_map"))
    assert found[0].shape == (3, 12, 10)
    assert found[0].dtype == np.float32
    assert np.array_equal(*found)


def test_triton_sends_rows_with_a_missing_reading(
    client: triton.InferenceServerClient, windows: dict[str, np.ndarray]
) -> None:
    data = readings(30)
    same(values_of(client.infer("sensors", [tensor("rows", data, "FP64")])), windows)
    data[0, 0] = np.nan
    for binary in (True, False):
        rows = tensor("rows", data.astype(np.float32), "FP32", binary=binary)
        names = (*NAMES, "contributions")
        asked = [triton.InferRequestedOutput(n, binary_data=binary) for n in names]
        found = values_of(client.infer("sensors", [rows], outputs=asked), names)
        assert found["decision"][0] == "not_scorable"
        assert np.isnan(found["score"][0])
        assert np.isnan(found["contributions"][0]).all()
        assert np.allclose(found["score"][1:], windows["score"][1:], atol=0.01)


def test_triton_sends_parameters(client: triton.InferenceServerClient) -> None:
    rows = tensor("rows", readings(30), "FP64")
    parameters = {"fpr": 0.1, "stride": 6}
    result = client.infer("sensors", [rows], parameters=parameters, timeout=30_000_000)
    assert result.as_numpy("score").shape == (5,)


def test_triton_is_told_what_is_wrong(client: triton.InferenceServerClient) -> None:
    image = tensor("image", PIXELS, "UINT8")
    for status, words, call in (
        ("422", "unknown 'threshold'", {"parameters": {"threshold": 1}}),
        ("422", "unknown 'priority'", {"priority": 1}),
        ("422", "unknown 'sequence_id'", {"sequence_id": 3}),
        ("404", "known versions: 1", {"model_version": "9"}),
        ("415", "gzip", {"request_compression_algorithm": "gzip"}),
        ("422", "X-Request-Timeout", {"headers": {"X-Request-Timeout": "soon"}}),
    ):
        with pytest.raises(InferenceServerException, match=words) as caught:
            client.infer("bright", [image], **call)  # type: ignore[arg-type]
        assert caught.value.status() == status
    with pytest.raises(InferenceServerException, match="broken"):
        client.infer("bright", [tensor("image", np.array([FILES[0][:50]], object), "BYTES")])
    with pytest.raises(InferenceServerException, match="nothing at /v2/models/bright/config"):
        client.get_model_config("bright")


def test_triton_asynchronously(base: str, expected: dict[str, np.ndarray]) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(base.removeprefix("http://")) as client:
            assert await client.is_server_ready()
            assert not await client.is_model_ready("nope")
            image = tensor("image", PIXELS, "UINT8")
            results = await asyncio.gather(*(client.infer("bright", [image]) for _ in range(8)))
            for result in results:
                same(values_of(result), expected)
            with pytest.raises(InferenceServerException, match="one input"):
                await client.infer("bright", [image, image])

    asyncio.run(ask())


# KServe's package pins older versions of what this project needs (pandas, protobuf), so it is no
# dependency of the tests; where it is installed, it is asked too
def test_kserve(base: str, expected: dict[str, np.ndarray], windows: dict[str, np.ndarray]) -> None:
    kserve = pytest.importorskip("kserve", reason="pip install kserve: its client is not checked")

    async def ask() -> None:
        config = kserve.RESTConfig(protocol="v2")
        async with kserve.InferenceRESTClient(config) as client:
            assert await client.is_server_live(base)
            assert await client.is_server_ready(base)
            assert await client.is_model_ready(base, "bright")
            assert not await client.is_model_ready(base, "nope")
            for values, kind, model, scores in (
                (PIXELS, "UINT8", "bright", expected),
                (np.array(FILES, object), "BYTES", "bright", expected),
                (readings(30), "FP64", "sensors", windows),
            ):
                name = "image" if model == "bright" else "rows"
                for binary in (True, False):
                    text = kind == "BYTES" and not binary
                    elements = np.array([b64encode(f) for f in FILES], object) if text else values
                    sent = kserve.InferInput(name, list(elements.shape), kind)
                    sent.set_data_from_numpy(elements, binary_data=binary)
                    request = kserve.InferRequest(
                        model_name=model,
                        infer_inputs=[sent],
                        request_id="part 17",
                        parameters={"binary_data_output": binary},
                    )
                    answer = await client.infer(base, request, model_name=model)
                    assert (answer.id, answer.model_name) == ("part 17", model)
                    found = {o.name: o.as_numpy() for o in answer.outputs}
                    same(found, scores)
            with pytest.raises(httpx.HTTPStatusError) as caught:
                await client.infer(base, {"inputs": []}, model_name="bright")
            assert "required" in caught.value.response.json()["error"]

    asyncio.run(ask())
