"""Vectors by the Open Inference Protocol and by the Python clients: as POST /score/vectors."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.client import AsyncClient, Client, FeatureShare, ServiceProblem
from service.contract.preprocess import prepare_vectors
from service.protocol_schemas import ModelMetadata
from tests.artifacts import VECTOR_INPUT, publish_vectors, set_active
from tests.service.conftest import wait_until_loaded
from tests.service.operators import operated
from tests.service.tensors import behind, members_of, outputs_of, post_binary, same, tensor
from tests.service.tensors import post as infer
from tests.service.test_process import serving
from tests.service.test_score_bad_input import refused

PATH = "/v2/models/part/infer"
# FP32 holds them exactly
DATA = np.random.default_rng(3).integers(-64, 64, (5, 3)) / 8 * (1, 2, 16)
NAMES = list(VECTOR_INPUT.names)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vectors")
    publish_vectors(root)
    set_active(root, vectors="part/1")
    return root


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[TestClient]:
    with operated(models) as client:
        yield wait_until_loaded(client)


def sent(data: np.ndarray = DATA, datatype: str = "FP32") -> dict[str, Any]:
    return tensor("vectors", datatype, list(data.shape), data=data.tolist())


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_tensors_score_as_the_route_does(client: TestClient, datatype: str) -> None:
    expected = members_of(client.post("/score/vectors", json={"vectors": DATA.tolist()}))
    found = outputs_of(infer(client, sent(datatype=datatype), path=PATH))
    same(found, expected)
    magnitudes = np.abs(prepare_vectors(VECTOR_INPUT, DATA))
    shares = magnitudes / magnitudes.sum(axis=1, keepdims=True)
    assert found["contributions"] == pytest.approx(shares, rel=1e-5)
    size = {"FP32": "<f4", "FP64": "<f8"}[datatype]
    raw = DATA.astype(size).tobytes()
    one = behind("vectors", datatype, [5, 3], len(raw))
    outputs = [{"name": "score", "parameters": {"binary_data": True}}]
    binary = outputs_of(post_binary(client, raw, one, path=PATH, outputs=outputs))
    assert set(binary) == {"score"}
    assert np.array_equal(binary["score"], expected["score"])


def test_the_metadata_name_the_tensors(client: TestClient) -> None:
    found = ModelMetadata.model_validate(client.get("/v2/models/part").json())
    assert [(t.name, t.datatype, t.shape) for t in found.inputs] == [("vectors", "FP32", [-1, 3])]
    assert {t.name: t.shape for t in found.outputs} == {
        "score": [-1], "p_value": [-1], "raw_score": [-1], "decision": [-1],
        "contributions": [-1, 3],
    }  # fmt: skip


def test_wrong_tensors_are_refused(client: TestClient) -> None:
    missing = DATA.copy()
    missing[1, 2] = np.inf
    holed: list[list[float | None]] = DATA.tolist()
    holed[1][2] = None
    for wrong, detail in (
        (sent() | {"data": holed}, "vector 1: feature 'heat' is missing"),
        (sent(DATA[:, :2]), "D is 2; the model has 3 features"),
        (sent(DATA[0]), "must be [N, D]"),
        (tensor("rows", "FP32", [5, 3], data=DATA.tolist()), "one input, 'vectors'"),
        (sent(datatype="UINT8"), "UINT8 is not one of"),
    ):
        answer = infer(client, wrong, path=PATH)
        assert detail in refused(answer, 422, "invalid-input")["detail"]
    raw = missing.astype("<f4").tobytes()
    answer = post_binary(client, raw, behind("vectors", "FP32", [5, 3], len(raw)), path=PATH)
    assert "feature 'heat' is infinite" in refused(answer, 422, "invalid-input")["detail"]
    answer = infer(client, sent(), path=PATH, parameters={"stride": 2})
    assert "unknown 'stride'" in refused(answer, 422, "invalid-input")["detail"]
    answer = infer(client, sent(), path=PATH, outputs=[{"name": "residual_map"}])
    assert "unknown; part gives" in refused(answer, 422, "invalid-input")["detail"]


def test_an_inference_can_get_feedback(client: TestClient) -> None:
    answer = infer(client, sent(), path=PATH, parameters={"fpr": 0.05, "source": "press-1"})
    label = {"request_id": answer.headers["X-Request-ID"], "index": 4, "label": "normal"}
    recorded = client.post("/feedback", json=label).json()
    raw = np.float32(recorded["raw_score"])
    assert raw == outputs_of(answer)["raw_score"][4]


@pytest.fixture(scope="module")
def url(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(models, tmp_path_factory.mktemp("server") / "log") as (_, base):
        yield base


def test_both_clients_score_vectors(url: str) -> None:
    async def of_the_other() -> Any:
        async with AsyncClient(url) as client:
            return await client.score_vectors(DATA[:, ::-1], NAMES[::-1], contributions=1)

    with Client(url) as client:
        found = client.score_vectors(DATA)
        other = asyncio.run(of_the_other())
        assert (found.answer.model, found.answer.version) == ("part", 1)
        x = prepare_vectors(VECTOR_INPUT, DATA)
        raw = [v.raw_score for v in found.vectors]
        assert raw == pytest.approx(np.abs(x).mean(axis=1), rel=1e-5)
        assert raw == [v.raw_score for v in other.vectors]
        for i, (mine, its) in enumerate(zip(found.vectors, other.vectors, strict=True)):
            first = mine.contributions[0]
            assert isinstance(first, FeatureShare)
            assert first.value == DATA[i, NAMES.index(str(first.feature))]
            assert sum(c.share for c in mine.contributions) == pytest.approx(1)
            assert its.contributions == (first,)
        with pytest.raises(ServiceProblem, match="vector 0: feature 'heat' is missing"):
            client.score_vectors([[1.0, 2.0, float("nan")]])
        with pytest.raises(ValueError, match="shape"):
            client.score_vectors(DATA[0])
        with pytest.raises(TypeError, match="unknown option stride"):
            client.score_vectors(DATA, stride=2)  # type: ignore[call-arg]
        (model,) = client.models()
        assert (model.task, model.default_for) == ("vectors", ("vectors",))
