"""Requests of the Open Inference Protocol, and what their answers hold."""

import json
import struct
from base64 import b64encode
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from service.protocol_schemas import InferBody

INFER = "/v2/models/bright/infer"
SERIES = "/v2/models/sensors/infer"
LENGTH = "Inference-Header-Content-Length"
PNG = {"Content-Type": "image/png"}


def tensor(name: str, datatype: str, shape: list[int], **members: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape} | members


def pixels(images: np.ndarray) -> dict[str, Any]:
    return tensor("image", "UINT8", list(images.shape), data=images.ravel().tolist())


def files(*contents: bytes) -> dict[str, Any]:
    return tensor("image", "BYTES", [len(contents)], data=[b64encode(c).decode() for c in contents])


def cells(rows: np.ndarray, datatype: str = "FP64") -> dict[str, Any]:
    data = [None if np.isnan(v) else v for v in rows.ravel().tolist()]
    return tensor("rows", datatype, list(rows.shape), data=data)


def readings(t: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(t, 3)).round(4)


def prefixed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(e)) + e for e in elements)


def outputs_of(response: Any) -> dict[str, np.ndarray]:
    """The tensors of an answer in JSON or binary data, after its form was checked."""
    assert response.status_code == 200, response.text
    content, end = response.content, response.headers.get(LENGTH)
    is_binary = end is not None
    kind = "application/octet-stream" if is_binary else "application/json"
    assert response.headers["content-type"] == kind
    body = json.loads(content[: int(end)] if is_binary else content)
    InferBody.model_validate(body)
    behind = content[int(end) :] if is_binary else b""
    found = {}
    for output in body["outputs"]:
        if "parameters" in output:
            assert "data" not in output
            size = output["parameters"]["binary_data_size"]
            raw, behind = behind[:size], behind[size:]
            values: Any = np.frombuffer(raw, "<f4") if output["datatype"] == "FP32" else split(raw)
        else:
            dtype = np.float32 if output["datatype"] == "FP32" else object
            values = np.array(output["data"], dtype=dtype)
        found[output["name"]] = values.reshape(output["shape"])
    assert not behind
    return found


def split(raw: bytes) -> np.ndarray:
    found = []
    while raw:
        (size,) = struct.unpack("<I", raw[:4])
        found.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return np.array(found, dtype=object)


def post(client: TestClient, *inputs: dict[str, Any], path: str = INFER, **members: Any) -> Any:
    return client.post(path, json={"inputs": list(inputs)} | members)


def post_binary(
    client: TestClient,
    raw: bytes,
    *inputs: dict[str, Any],
    path: str = INFER,
    length: int | str | None = None,
    **members: Any,
) -> Any:
    head = json.dumps({"inputs": list(inputs)} | members).encode()
    stated = str(len(head) if length is None else length)
    return client.post(path, content=head + raw, headers={LENGTH: stated})


def behind(name: str, datatype: str, shape: list[int], size: Any) -> dict[str, Any]:
    return tensor(name, datatype, shape, parameters={"binary_data_size": size})


def scored(client: TestClient, *contents: bytes, query: str = "?map=none") -> dict[str, np.ndarray]:
    """The same items through /score."""
    parts = [("image", ("a.png", c, "image/png")) for c in contents]
    return members_of(client.post(f"/score{query}&model=bright", files=parts))


def members_of(response: Any) -> dict[str, np.ndarray]:
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    numbers = {
        key: np.array([r[key] for r in results], np.float64).astype(np.float32)
        for key in ("score", "p_value", "raw_score")
    }
    return numbers | {"decision": np.array([r["decision"] for r in results], object)}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Bit for bit, in FP32."""
    for name, values in expected.items():
        assert np.array_equal(found[name], values, equal_nan=name != "decision"), name
