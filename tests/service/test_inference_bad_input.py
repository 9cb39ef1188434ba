"""/v2: whatever is wrong is an error that says what, before anything is made of its size."""

import json
import struct
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.contract.errors import Overloaded
from tests.service.conftest import Start
from tests.service.pictures import encode, grey, noise
from tests.service.tensors import (
    INFER,
    LENGTH,
    PNG,
    SERIES,
    behind,
    cells,
    files,
    outputs_of,
    pixels,
    post,
    post_binary,
    prefixed,
    readings,
    tensor,
)
from tests.service.test_score_bad_input import refused


def error_of(response: Any, status: int, *words: str) -> None:
    body = refused(response, status, *words)
    assert body["error"] == body["detail"]


GREY = pixels(grey(51)[None, ..., None])
ROWS = cells(readings())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "picture"}, ("'picture'", "'image'", "UINT8 [N, H, W, C] or BYTES [N]")),
        ({"name": 7}, ("/inputs/0/name",)),
        ({"name": None}, ("/inputs/0/name",)),
        ({"datatype": "FP32"}, ("FP32", "UINT8 [N, H, W, C] or BYTES [N]")),
        ({"datatype": "INT4"}, ("'INT4'", "UINT8, FP32, FP64, BYTES")),
        ({"datatype": None}, ("/inputs/0/datatype",)),
        ({"shape": None}, ("/inputs/0/shape",)),
        ({"shape": []}, ("/inputs/0/shape",)),
        ({"shape": [64]}, ("[N, H, W, C]",)),
        ({"shape": [8, 8, 1]}, ("[N, H, W, C]",)),
        ({"shape": [1] * 9}, ("1 to 8",)),
        ({"shape": [1] * 500_000}, ("1 to 8",)),
        ({"shape": [1, 8, 8, 2]}, ("C must be 1 (grey), 3 (RGB) or 4 (RGBA)",)),
        ({"shape": [1, 8, 9, 1]}, ("72 elements", "data has 64")),
        ({"shape": [1, 8, -8, 1]}, ("at least 1",)),
        ({"shape": [0, 8, 8, 1]}, ("at least 1",)),
        ({"shape": [1, 8, 8.0, 1]}, ("integers",)),
        ({"shape": [True, 8, 8, 1]}, ("integers",)),
        ({"shape": [1, 8, "8", 1]}, ("integers",)),
        ({"shape": [1, 8, 2**70, 1]}, ("integers",)),
        ({"data": None}, ("binary_data_size is required",)),
        ({"data": "AAAA"}, ("must be a list",)),
        ({"data": {}}, ("must be a list",)),
        ({"data": []}, ("64 elements", "data has 0")),
        ({"data": [0] * 63 + [256]}, ("element 63", "0 to 255")),
        ({"data": [0] * 63 + [-1]}, ("element 63",)),
        ({"data": [0] * 63 + [2**70]}, ("element 63",)),
        ({"data": [0.5] * 64}, ("element 0",)),
        ({"data": [True] * 64}, ("element 0",)),
        ({"data": [None] * 64}, ("element 0",)),
        ({"data": ["1"] * 64}, ("element 0",)),
        ({"data": [{}] * 64}, ("element 0",)),
        ({"data": [[0] * 64]}, ("lists of 8 at depth 1",)),
        ({"data": [[[[0]] * 8] * 7 + [[[0]] * 7]]}, ("lists of 8 at depth 2", "has 7")),
        ({"data": [[[[0]] * 8] * 7 + [3]]}, ("lists of 8 at depth 2", "no list")),
        ({"data": [[[[[0]]] * 8] * 8]}, ("element 0",)),
        ({"extra": 1}, ("'extra'", "name, shape, datatype, parameters, data")),
        ({"parameters": {"binary_data_size": 64}}, ("one of data",)),
        ({"parameters": {"shared_memory_region": "x"}}, ("shared_memory_region",)),
        ({"parameters": []}, ("/inputs/0/parameters",)),
        ({"datatype": "BYTES"}, ("[N]",)),
        ({"datatype": "BYTES", "shape": [1], "data": [1]}, ("element 0 is not a string",)),
        ({"datatype": "BYTES", "shape": [2], "data": ["AAAA"]}, ("2 elements",)),
    ],
)
def test_a_wrong_input(client: TestClient, change: dict[str, Any], words: tuple[str, ...]) -> None:
    error_of(post(client, GREY | change), 422, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "image"}, ("'rows'", "FP32 [T, D] or FP64 [T, D]")),
        ({"datatype": "UINT8"}, ("FP32 [T, D] or FP64 [T, D]",)),
        ({"shape": [36]}, ("[T, D]",)),
        ({"shape": [18, 2]}, ("D is 2", "power, wind, pitch")),
        ({"shape": [1, 3], "data": [1, 2, 3]}, ("1 rows were sent; one window needs 6",)),
        ({"data": [0] * 35 + ["x"]}, ("element 35", "null for a missing one")),
        ({"data": [0] * 35 + [True]}, ("element 35",)),
    ],
)
def test_wrong_rows(client: TestClient, change: dict[str, Any], words: tuple[str, ...]) -> None:
    error_of(post(client, ROWS | change, path=SERIES), 422, *words)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"inputs": None}, ("/inputs", "required")),
        ({"inputs": []}, ("/inputs", "required")),
        ({"inputs": {}}, ("/inputs",)),
        ({"inputs": [1]}, ("/inputs/0",)),
        ({"inputs": [GREY] * 2}, ("one input",)),
        ({"inputs": [GREY] * 65}, ("at most 64",)),
        ({"inputs": [GREY, ROWS]}, ("one input", "/inputs/1")),
        ({"id": 7}, ("/id",)),
        ({"model_name": "sensors"}, ("the path names 'bright'",)),
        ({"model_version": "2"}, ("the path names '1'",)),
        ({"input": []}, ("'input'", "inputs, outputs")),
        ({"parameters": 3}, ("/parameters",)),
        ({"parameters": {"fpr": "0.1"}}, ("/parameters/fpr",)),
        ({"parameters": {"fpr": True}}, ("/parameters/fpr",)),
        ({"parameters": {"fpr": 0}}, ("/parameters/fpr",)),
        ({"parameters": {"fpr": 1}}, ("/parameters/fpr",)),
        ({"parameters": {"fdr": 1.5}}, ("/parameters/fdr",)),
        ({"parameters": {"frp": 0.1}}, ("'frp'", "fpr, fdr, source, timeout, binary_data_output")),
        ({"parameters": {"stride": 1}}, ("'stride'", "bright takes")),
        ({"parameters": {"timeout": 0}}, ("/parameters/timeout",)),
        ({"parameters": {"sequence_id": 1}}, ("'sequence_id'",)),
        ({"parameters": {"binary_data_output": 1}}, ("true or false",)),
        ({"parameters": {"x" * 10_000: 1}}, ("unknown",)),
        ({"outputs": [{"name": "heat"}]}, ("'heat'", "residual_map")),
        ({"outputs": [{"name": "contributions"}]}, ("bright gives",)),
        ({"outputs": [{"name": "score"}] * 2}, ("twice",)),
        ({"outputs": ["score"]}, ("/outputs/0",)),
        ({"outputs": [{}]}, ("/outputs/0/name",)),
        ({"outputs": "score"}, ("/outputs",)),
        ({"outputs": [{"name": "score", "parameters": {"classification": 3}}]}, ("binary_data",)),
        ({"outputs": [{"name": "score", "parameters": {"binary_data": None}}]}, ("true or",)),
    ],
)
def test_a_wrong_request(
    client: TestClient, members: dict[str, Any], words: tuple[str, ...]
) -> None:
    error_of(client.post(INFER, json={"inputs": [GREY]} | members), 422, *words)


@pytest.mark.parametrize("stride", [0, -1, 1.5, "2", True, 10**7])
def test_a_wrong_stride(client: TestClient, stride: Any) -> None:
    response = post(client, ROWS, path=SERIES, parameters={"stride": stride})
    error_of(response, 422, "/parameters/stride")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"inputs":' * 50_000,
        b'{"NaN":' * 50_000,
        b'{"id": "\\ud800", "x": NaN}',
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_a_body_that_is_not_json(client: TestClient, body: bytes) -> None:
    error_of(client.post(INFER, content=body), 400, "not JSON")


def test_json_of_more_lists_than_any_data_need(client: TestClient) -> None:
    many = b"[" + b",".join([b"[]"] * 2**20) + b"]"
    error_of(client.post(INFER, content=many), 413, "flat or binary")


def test_mutilated_bodies_are_refused_in_words(client: TestClient) -> None:
    rng = np.random.default_rng(0)
    png = encode(grey(51))
    raw = prefixed(png, png)
    two = behind("image", "BYTES", [2], len(raw))
    bodies = [
        (json.dumps({"inputs": [GREY], "outputs": [{"name": "score"}]}).encode(), b""),
        (json.dumps({"inputs": [two], "parameters": {"fpr": 0.1}}).encode(), raw),
    ]
    statuses = set()
    for i in range(200):
        head, tail = (bytearray(part) for part in bodies[i % 2])
        for _ in range(1 + i % 3):
            part = tail if tail and rng.random() < 0.3 else head
            at = int(rng.integers(len(part)))
            if rng.random() < 0.5:
                part[at] = int(rng.integers(256))
            else:
                del part[at : at + int(rng.integers(1, 12))]
        headers = {LENGTH: str(len(head))} if i % 2 else {}
        response = client.post(INFER, content=bytes(head + tail), headers=headers)
        statuses.add(response.status_code)
        assert response.status_code == 200 or response.json()["error"]
    assert statuses <= {200, 400, 413, 415, 422}


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"x"'])
def test_a_body_that_is_no_object(client: TestClient, body: bytes) -> None:
    error_of(client.post(INFER, content=body), 422, "object")


def test_a_file_that_is_broken_is_named(client: TestClient) -> None:
    good = encode(grey(51))
    error_of(post(client, files(good, good[:40])), 400, "image 1", "broken")
    error_of(post(client, files(good, b"GIF89a")), 415, "image 1", "GIF")
    error_of(post(client, files(b"")), 400, "empty")
    text = tensor("image", "BYTES", [1], data=["no base64!"])
    error_of(post(client, text), 400, "element 0", "base64")
    error_of(post(client, text | {"data": ["größe"]}), 400, "element 0", "base64")


def test_maps_of_images_of_several_sizes(client: TestClient) -> None:
    contents = [encode(grey(51)), encode(grey(51)), encode(grey(51, 8, 16))]
    asked = [{"name": "residual_map"}]
    error_of(
        post(client, files(*contents), outputs=asked), 422, "one size", "8 x 8", "image 2 is 8 x 16"
    )
    outputs_of(post(client, files(*contents)))


def test_content_that_is_not_accepted(client: TestClient) -> None:
    for headers in ({"Content-Type": "text/csv"}, PNG, {"Content-Encoding": "gzip"}):
        error_of(client.post(INFER, content=b"{}", headers=headers), 415)


def test_limits_are_those_of_the_other_routes(start: Start) -> None:
    client = start(max_images=3, max_pixels=500, max_cells=36, max_windows=3, max_map_pixels=100)
    image = encode(grey(51))
    error_of(post(client, files(*[image] * 4)), 413, "4 images", "ANOMALY_MAX_IMAGES")
    four = tensor("image", "UINT8", [4, 1, 1, 1], data=[0] * 4)
    error_of(post(client, four), 413, "4 images")
    error_of(post(client, files(encode(grey(1, 30, 30)))), 413, "ANOMALY_MAX_PIXELS")
    error_of(post(client, files(*[encode(grey(1, 14, 14))] * 3)), 413, "588 pixels together")
    wide = tensor("image", "UINT8", [3, 14, 14, 1], data=[0] * 588)
    error_of(post(client, wide), 413, "588 pixels together")
    asked = [{"name": "residual_map"}]
    error_of(post(client, files(image, image), outputs=asked), 413, "ANOMALY_MAX_MAP_PIXELS")
    outputs_of(post(client, files(image, image)))
    error_of(post(client, cells(readings(13)), path=SERIES), 413, "36 cells")
    error_of(post(client, cells(readings(12)), path=SERIES), 413, "ANOMALY_MAX_WINDOWS")
    client = start(max_body_bytes=100)
    error_of(post(client, files(image)), 413, "100 bytes")


def test_a_shape_that_lies_is_refused_before_anything_is_made_of_it(client: TestClient) -> None:
    huge = 2**62
    for shape in ([1, huge, huge, 1], [huge, 1, 1, 1], [1, 8000, 8001, 1]):
        error_of(post_binary(client, b"", behind("image", "UINT8", shape, 0)), 413)
    error_of(post_binary(client, b"", behind("image", "BYTES", [huge], 0)), 413)
    error_of(post_binary(client, b"", behind("rows", "FP32", [huge, 3], 0), path=SERIES), 413)
    error_of(post_binary(client, b"", behind("image", "UINT8", [1, 7999, 8000, 1], 0)), 400)
    error_of(post_binary(client, b"", behind("rows", "FP64", [300_000, 3], 0), path=SERIES), 400)


@pytest.mark.parametrize(
    ("size", "raw", "status"),
    [
        (64, bytes(63), 400),
        (64, bytes(65), 400),
        (63, bytes(63), 400),
        (65, bytes(65), 400),
        (0, b"", 400),
        (2**62, bytes(64), 400),
        (-1, bytes(64), 422),
        (64.0, bytes(64), 422),
        ("64", bytes(64), 422),
        (True, bytes(64), 422),
        (None, bytes(64), 422),
    ],
)
def test_a_binary_size_that_lies(client: TestClient, size: Any, raw: bytes, status: int) -> None:
    error_of(post_binary(client, raw, behind("image", "UINT8", [1, 8, 8, 1], size)), status)


@pytest.mark.parametrize("length", ["0", "-1", "x", "", "1e3", "99999999", "9" * 5000, "²", "+9"])
def test_a_header_length_that_is_none(client: TestClient, length: str) -> None:
    headers = {LENGTH.encode(): length.encode("latin-1")}
    response = client.post(INFER, content=json.dumps({"inputs": [GREY]}), headers=headers)
    error_of(response, 400, LENGTH)


def test_a_header_length_that_cuts_or_overlaps(client: TestClient) -> None:
    one = behind("image", "UINT8", [1, 8, 8, 1], 64)
    head = len(json.dumps({"inputs": [one]}))
    error_of(post_binary(client, bytes(64), one, length=head - 1), 400, "not JSON")
    error_of(post_binary(client, bytes(64), one, length=head + 1), 400, "not JSON")
    error_of(post_binary(client, b" " * 64, one, length=head + 1), 400, "63 bytes are left")
    without = client.post(INFER, content=json.dumps({"inputs": [one]}).encode() + bytes(64))
    error_of(without, 400, LENGTH)
    error_of(client.post(INFER, json={"inputs": [one]}), 400, LENGTH)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        struct.pack("<I", 5) + b"abcd",
        struct.pack("<I", 2**32 - 1) + b"abcd",
        prefixed(b"abcd") + b"\0",
        prefixed(b"abcd", b"efgh"),
    ],
)
def test_byte_strings_that_lie_about_their_length(client: TestClient, raw: bytes) -> None:
    response = post_binary(client, raw, behind("image", "BYTES", [1], len(raw)))
    error_of(response, 400, "1 elements")


def test_deadlines_and_admission_are_those_of_the_other_routes(start: Start) -> None:
    client = start(queue_max_items=3)
    large = files(encode(noise(1500, 1500)))
    one = {"inputs": [large]}
    late = client.post(INFER, json=one, headers={"X-Request-Timeout": "0.001"})
    error_of(late, 504, "0.001 s")
    error_of(client.post(INFER, json=one | {"parameters": {"timeout": 1000}}), 504, "0.001 s")
    error_of(client.post(INFER, json=one, headers={"X-Request-Timeout": "soon"}), 422)
    admission = client.app.state.resources.admission  # type: ignore[attr-defined]
    for _ in range(500):  # what nobody waits for counts until its thread is done with it
        with suppress(Overloaded):
            admission.check_room("bright", 3)
            break
        time.sleep(0.02)
    with admission.admit("bright", 3):
        response = post(client, GREY)
        error_of(response, 503, "3 items")
        assert response.headers["Retry-After"] == "1"
    with admission.admit("sensors", 3):
        error_of(post(client, ROWS, path=SERIES), 503, "3 items")
    outputs_of(post(client, GREY))
