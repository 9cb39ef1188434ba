"""POST /score: whatever is wrong is a documented problem that says what and what is allowed."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.schemas import Problem
from tests.service.conftest import Start
from tests.service.pictures import encode, grey, noise

PNG = {"Content-Type": "image/png"}
GOOD = encode(grey(51))


def refused(response: Any, status: int, *words: str) -> dict[str, Any]:
    """The problem, after its form, its status and its words were checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    Problem.model_validate(body)
    assert body["status"] == status
    assert body["request_id"] == response.headers["X-Request-ID"]
    text = str(body)
    for word in words:
        assert word in text
    return body


def post(client: TestClient, data: bytes, query: str = "", **headers: str) -> Any:
    return client.post(f"/score{query}", content=data, headers=PNG | headers)


def frames(kind: str, count: int = 2) -> bytes:
    first, *rest = (Image.fromarray(noise(8, 8, seed)) for seed in range(count))
    return encode(first, kind, save_all=True, append_images=rest)


def bomb(width: int, height: int) -> bytes:
    return encode(Image.new("1", (width, height)))


def test_no_bytes(client: TestClient) -> None:
    refused(post(client, b""), 400, "empty")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_a_truncated_image(client: TestClient, kind: str) -> None:
    data = encode(noise(64, 64), kind)
    refused(post(client, data[: len(data) // 2]), 400, "truncated or broken")


def test_a_header_alone(client: TestClient) -> None:
    refused(post(client, GOOD[:8]), 400, "header")
    refused(post(client, GOOD[:4]), 400, "header")


def test_an_image_with_altered_bytes(client: TestClient) -> None:
    data = bytearray(encode(noise(64, 64)))
    data[len(data) // 2] ^= 0xFF
    refused(post(client, bytes(data)), 400, "broken")


@pytest.mark.parametrize("text", [b"just some text", b"<svg></svg>", b"\x00" * 100])
def test_text_named_png(client: TestClient, text: bytes) -> None:
    files = {"image": ("photo.png", text, "image/png")}
    refused(client.post("/score", files=files), 415, "PNG, JPEG, BMP, TIFF or WebP")


@pytest.mark.parametrize(("data", "name"), [(frames("GIF"), "GIF"), (b"%PDF-1.7 ...", "PDF")])
def test_other_kinds_of_file_are_named(client: TestClient, data: bytes, name: str) -> None:
    refused(post(client, data), 415, name, "PNG, JPEG, BMP, TIFF or WebP")


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF"])
def test_several_frames_or_pages(client: TestClient, kind: str) -> None:
    refused(post(client, frames(kind, 3)), 422, "several frames")


def test_floating_point_pixels(client: TestClient) -> None:
    data = encode(Image.fromarray(np.ones((8, 8), dtype=np.float32)), "TIFF")
    refused(post(client, data), 415, "floating-point")


@pytest.mark.parametrize("size", [(10_000, 10_000), (100_000_000, 1), (20_000, 20_000)])
def test_a_bomb_of_100_megapixels_and_more_is_refused_by_its_header(
    client: TestClient, size: tuple[int, int]
) -> None:
    data = bytearray(encode(grey(0)))
    data[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    refused(post(client, bytes(data)), 413, "pixels", "64000000")


def test_a_real_bomb_that_would_decode(client: TestClient) -> None:
    data = bomb(10_000, 10_000)
    assert len(data) < 100_000
    refused(post(client, data), 413, "pixels")


def test_images_that_have_too_many_pixels_together(start: Start) -> None:
    client = start(max_pixels=100)
    assert post(client, GOOD).status_code == 200
    files = [("image", ("a", GOOD, "image/png"))] * 2
    refused(client.post("/score", files=files), 413, "together", "ANOMALY_MAX_PIXELS")


def test_maps_larger_than_an_answer_may_hold_name_the_way_out(start: Start) -> None:
    client = start(max_map_pixels=63)
    refused(post(client, GOOD), 413, "map=none")
    assert post(client, GOOD, "?map=none").status_code == 200


def test_a_body_that_is_too_long_by_its_stated_length(start: Start) -> None:
    refused(post(start(max_body_bytes=10), GOOD), 413, "10 bytes", "ANOMALY_MAX_BODY_BYTES")


def test_a_body_that_is_too_long_by_count(start: Start) -> None:
    client = start(max_body_bytes=10)
    chunks = iter([GOOD[:8], GOOD[8:]])
    refused(client.post("/score", content=chunks, headers=PNG), 413, "10 bytes")


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "image/gif", "application/octet-stream", ""]
)
def test_a_wrong_content_type(client: TestClient, content_type: str) -> None:
    response = client.post("/score", content=GOOD, headers={"Content-Type": content_type})
    refused(response, 415, "multipart/form-data", "image/png")


def test_a_compressed_body(client: TestClient) -> None:
    refused(post(client, GOOD, **{"Content-Encoding": "gzip"}), 415, "gzip")


def test_a_part_of_another_name(client: TestClient) -> None:
    files = {"images": ("a.png", GOOD, "image/png"), "image": ("a.png", GOOD, "image/png")}
    refused(client.post("/score", files=files), 422, "'images'", "'image'")


def test_a_form_without_parts(client: TestClient) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(client.post("/score", content=b"--b--\r\n", headers=headers), 422, "'image'")


def test_more_images_than_allowed(start: Start) -> None:
    files = [("image", ("a.png", GOOD, "image/png"))] * 4
    refused(start(max_images=3).post("/score", files=files), 413, "3 parts")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--b\r\n\r\n--b--"),
        ("multipart/form-data; boundary=", b"--b\r\n"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"no boundary in here"),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b--",
        ),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=image\r\n",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + GOOD,
        ),
        ("multipart/form-data; boundary=" + "b" * 500, b"--b\r\n"),
    ],
)
def test_a_broken_multipart_body(client: TestClient, content_type: str, body: bytes) -> None:
    response = client.post("/score", content=body, headers={"Content-Type": content_type})
    refused(response, 400, "multipart")


def test_accept_png_for_several_images(client: TestClient) -> None:
    files = [("image", ("a.png", GOOD, "image/png"))] * 2
    refused(client.post("/score", files=files, headers={"Accept": "image/png"}), 422, "one image")


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("?model=nope", 404, ("nope", "bright", "sensors")),
        ("?model=../bright", 404, ("bright",)),
        ("?model=", 404, ("bright",)),
        ("?model=bright&version=9", 404, ("9", "known versions: 1")),
        ("?version=9", 404, ("known versions: 1",)),
        ("?version=0", 422, ("/version",)),
        ("?version=one", 422, ("/version",)),
        ("?model=sensors", 422, ("/score/timeseries",)),
        ("?modle=bright", 422, ("modle", "model, version, fpr, source, map")),
        ("?fpr=0.01&fpr=0.5", 422, ("/fpr", "more than once")),
        ("?fpr=0.001", 422, ("0.005",)),
        ("?fpr=0", 422, ("/fpr",)),
        ("?fpr=1", 422, ("/fpr",)),
        ("?fpr=nan", 422, ("/fpr",)),
        ("?fpr=often", 422, ("/fpr",)),
        ("?map=jpeg", 422, ("/map", "'png'", "'float32'")),
        ("?stride=2", 422, ("stride",)),
    ],
)
def test_a_wrong_query(client: TestClient, query: str, status: int, words: tuple[str, ...]) -> None:
    refused(post(client, GOOD, query), status, *words)


def test_a_wrong_query_is_noticed_before_a_long_body_is_read(start: Start) -> None:
    client = start(max_body_bytes=10)
    refused(post(client, GOOD, "?model=nope"), 404, "nope")


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan"])
def test_a_deadline_that_is_no_positive_number(client: TestClient, value: str) -> None:
    refused(post(client, GOOD, **{"X-Request-Timeout": value}), 422, "X-Request-Timeout")


def test_a_deadline_that_cannot_be_met(client: TestClient) -> None:
    data = encode(Image.fromarray(noise(1500, 1500)))
    refused(post(client, data, **{"X-Request-Timeout": "0.001"}), 504, "0.001 s")


def test_odd_metadata_is_no_reason_to_refuse(client: TestClient) -> None:
    out = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # an orientation: the map lies in the frame of the stored pixels
    Image.fromarray(grey(51, 8, 16)).save(out, "JPEG", exif=exif)
    found = post(client, out.getvalue()).json()["results"][0]["residual_map"]
    assert (found["width"], found["height"]) == (16, 8)


def test_a_tiff_whose_header_claims_rows_that_it_does_not_have(client: TestClient) -> None:
    data = encode(noise(28, 28), "TIFF")
    place = data.index((257).to_bytes(2, "little") + (4).to_bytes(2, "little")) + 8
    tall = data[:place] + (100_000).to_bytes(4, "little") + data[place + 4 :]
    assert Image.open(BytesIO(tall)).size == (28, 100_000)
    refused(post(client, tall), 400, "truncated or broken")


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_a_whole_tiff_is_fine(client: TestClient, compression: str | None) -> None:
    data = encode(noise(300, 200), "TIFF", compression=compression)
    assert post(client, data, "?map=none").status_code == 200


def test_a_jpeg_of_a_thousand_scans_is_refused_before_it_is_decoded(client: TestClient) -> None:
    data = encode(noise(64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 200 + data[-2:]
    refused(post(client, many), 413, "scans")
    assert post(client, data).status_code == 200
