"""POST /score: an image goes in, a score known by arithmetic comes out."""

from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from service.schemas import ScoreBody
from tests.artifacts import CALIBRATION, IMAGE_INPUT, publish_image, set_active
from tests.service.conftest import Start
from tests.service.pictures import encode, grey, noise

PNG = {"Content-Type": "image/png"}


def score(client: TestClient, image: np.ndarray | bytes, query: str = "", **headers: str) -> Any:
    data = image if isinstance(image, bytes) else encode(image)
    response = client.post(f"/score{query}", content=data, headers=PNG | headers)
    assert response.status_code == 200, response.text
    body = response.json()
    ScoreBody.model_validate(body)
    return body


def as_array(member: dict[str, Any]) -> np.ndarray:
    raw = b64decode(member["data"])
    if member["encoding"] == "float32":
        return np.frombuffer(raw, "<f4").reshape(member["height"], member["width"])
    return np.asarray(Image.open(BytesIO(raw)))


def parts(*images: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", (f"{i}.png", image, "image/png")) for i, image in enumerate(images)]


def test_a_grey_image_scores_its_level_over_255(client: TestClient) -> None:
    body = score(client, grey(51))
    assert body["model"] == "bright"
    assert body["version"] == 1
    assert body["family"] == "iae_lstm_kl"
    assert body["provider"] == "CPUExecutionProvider"
    (result,) = body["results"]
    assert result["index"] == 0
    assert result["raw_score"] == pytest.approx(0.2)
    # 199 normal scores 1/400 .. 199/400: 80..199 are at least 0.2 (up to rounding), + 1
    assert result["p_value"] == CALIBRATION.p_value(np.array([result["raw_score"]]))[0]
    assert result["p_value"] == pytest.approx(0.6, abs=0.01)
    assert result["score"] == pytest.approx(1 - result["p_value"])
    assert result["fpr"] == 0.01
    assert result["threshold"] == CALIBRATION.threshold(0.01)
    assert result["decision"] == "normal"


@pytest.mark.parametrize(
    ("level", "decision"), [(0, "normal"), (110, "normal"), (122, "review"), (127, "anomalous")]
)
def test_the_decision_follows_from_p_value_and_fpr(
    client: TestClient, level: int, decision: str
) -> None:
    (result,) = score(client, grey(level), "?map=none")["results"]
    assert result["decision"] == decision
    assert (result["raw_score"] > result["threshold"]) == (decision == "anomalous")


def test_fpr_moves_threshold_decision_and_review_band(client: TestClient) -> None:
    (result,) = score(client, grey(110), "?map=none&fpr=0.2")["results"]
    assert result["fpr"] == 0.2
    assert result["threshold"] == CALIBRATION.threshold(0.2)
    assert result["decision"] == "anomalous"
    (result,) = score(client, grey(51), "?map=none&fpr=0.2")["results"]
    assert result["decision"] == "review"


def test_the_review_band_can_be_set(start: Start) -> None:
    narrow = start(review_fpr=0.01)
    assert score(narrow, grey(122), "?map=none")["results"][0]["decision"] == "normal"
    wide = start(review_fpr=0.9)
    assert score(wide, grey(20), "?map=none")["results"][0]["decision"] == "review"


def test_the_grey_map_times_scale_is_the_residual_in_the_frame_of_the_upload(
    client: TestClient,
) -> None:
    image = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None], 40, axis=0)  # 40 x 24
    found = score(client, image)["results"][0]["residual_map"]
    exact = score(client, image, "?map=float32")["results"][0]["residual_map"]
    assert (found["encoding"], found["width"], found["height"]) == ("png", 24, 40)
    pixels, residual = as_array(found), as_array(exact)
    assert pixels.shape == residual.shape == (40, 24)
    assert exact["scale"] == 1.0
    assert np.allclose(pixels / 255 * found["scale"], residual, atol=found["scale"] / 500)
    assert np.allclose(residual[:, 5:-5], image[:, 5:-5] / 255, atol=0.03)


def test_a_black_image_has_a_black_map_and_no_regions(client: TestClient) -> None:
    (result,) = score(client, grey(0))["results"]
    assert result["residual_map"]["scale"] == 1.0
    assert as_array(result["residual_map"]).max() == 0
    assert result["regions"] == []
    assert result["p_value"] == 1.0


def test_without_map_there_is_neither_map_nor_regions(client: TestClient) -> None:
    (result,) = score(client, grey(255), "?map=none")["results"]
    assert result["residual_map"] is None
    assert result["regions"] == []


def test_regions_are_the_bright_areas_highest_first(client: TestClient) -> None:
    image = grey(0)
    image[1:3, 1:4] = 200
    image[5:8, 6:8] = 250
    for mode in ("png", "float32", "heatmap"):
        regions = score(client, image, f"?map={mode}")["results"][0]["regions"]
        boxes = [(r["x"], r["y"], r["width"], r["height"]) for r in regions]
        assert boxes == [(6, 5, 2, 3), (1, 1, 3, 2)]
        assert regions[0]["peak"] == pytest.approx(250 / 255)


def test_a_heatmap_is_the_upload_with_the_residual_laid_over_it(client: TestClient) -> None:
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    image[5:10, 5:15] = 255
    found = score(client, image, "?map=heatmap")["results"][0]["residual_map"]
    pixels = as_array(found)
    assert pixels.shape == (20, 30, 3)
    assert (pixels[-2:, -2:] == 0).all()
    assert pixels[7, 10].tolist() != [0, 0, 0]
    assert len(set(pixels[7, 10].tolist())) > 1


def test_accept_image_png_answers_with_the_heatmap_itself(client: TestClient) -> None:
    image = encode(grey(127, 20, 30))
    response = client.post("/score", content=image, headers=PNG | {"Accept": "image/png"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert Image.open(BytesIO(response.content)).size == (30, 20)
    (result,) = score(client, image, "?map=heatmap")["results"]
    assert float(response.headers["X-Anomaly-Score"]) == result["score"]
    assert response.headers["X-Anomaly-Decision"] == result["decision"] == "anomalous"
    assert response.headers["X-Request-ID"]
    assert b64decode(result["residual_map"]["data"]) == response.content


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, image/png;q=0.5"])
def test_any_other_accept_answers_with_json(client: TestClient, accept: str) -> None:
    assert score(client, grey(1), Accept=accept)["results"]


def test_several_images_get_the_scores_each_would_get_alone_in_their_order(
    client: TestClient,
) -> None:
    images = [encode(noise(h, w, seed)) for seed, (h, w) in enumerate([(8, 8), (40, 17), (9, 64)])]
    alone = [score(client, image)["results"][0] for image in images]
    for order in ([0, 1, 2], [2, 0, 1], [1, 1, 0, 2, 2]):
        response = client.post("/score", files=parts(*(images[i] for i in order)))
        results = response.json()["results"]
        assert [r.pop("index") for r in results] == list(range(len(order)))
        expected = [{k: v for k, v in alone[i].items() if k != "index"} for i in order]
        assert results == expected


def test_a_broken_image_among_several_gets_an_error_and_the_others_their_scores(
    client: TestClient,
) -> None:
    good = encode(grey(100))
    files = parts(good, b"", good[:40], b"GIF89a....", good)
    response = client.post("/score?map=none", files=files)
    assert response.status_code == 200
    body = response.json()
    ScoreBody.model_validate(body)
    results = body["results"]
    assert [r["index"] for r in results] == [0, 1, 2, 3, 4]
    assert [r["error"]["status"] for r in results[1:4]] == [400, 400, 415]
    assert results[1]["error"]["request_id"] == response.headers["X-Request-ID"]
    assert results[0]["raw_score"] == results[4]["raw_score"] == pytest.approx(100 / 255)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("stated", ["image/png", "image/jpeg", "image/webp"])
def test_the_content_decides_what_an_image_is(client: TestClient, kind: str, stated: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(grey(51)), kind, **options)
    (result,) = score(client, data, "?map=none", **{"Content-Type": stated})["results"]
    assert result["raw_score"] == pytest.approx(0.2)


def test_a_jpeg_is_scored_near_its_original(client: TestClient) -> None:
    data = encode(grey(51, 64, 64), "JPEG", quality=95)
    (result,) = score(client, data, "?map=none")["results"]
    assert result["raw_score"] == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_every_pixel_format_is_scored(client: TestClient, mode: str) -> None:
    if mode == "I;16":
        image, kind = Image.fromarray(np.full((8, 8), 51 * 256, dtype=np.uint16)), "PNG"
    else:
        image = Image.fromarray(grey(255 if mode == "1" else 51)).convert("RGB").convert(mode)
        kind = "TIFF" if mode == "CMYK" else "PNG"
    (result,) = score(client, encode(image, kind), "?map=none")["results"]
    expected = 1.0 if mode == "1" else 0.2
    assert result["raw_score"] == pytest.approx(expected, abs=0.01)


def test_a_named_model_and_version_is_used(start: Start, tmp_path: Path) -> None:
    publish_image(tmp_path, "bright", 1)
    publish_image(tmp_path, "bright", 2)
    inverse = IMAGE_INPUT.model_copy(update={"mean": (1.0,)})
    publish_image(tmp_path, "dark", 1, inverse)
    set_active(tmp_path, image="bright/1")
    client = start(tmp_path, load_versions="all")
    assert score(client, grey(51))["version"] == 1
    assert score(client, grey(51), "?model=bright")["version"] == 1
    assert score(client, grey(51), "?model=bright&version=2")["version"] == 2
    body = score(client, grey(51), "?model=dark")
    assert body["model"] == "dark"
    assert body["results"][0]["raw_score"] == pytest.approx(0.8)


def test_a_model_without_mention_in_active_json_is_active_in_its_highest_version(
    start: Start, tmp_path: Path
) -> None:
    publish_image(tmp_path, "bright", 9)
    publish_image(tmp_path, "bright", 10)
    client = start(tmp_path)
    assert score(client, grey(1), "?model=bright")["version"] == 10
    response = client.post("/score", content=encode(grey(1)), headers=PNG)
    assert response.status_code == 422
    assert "bright" in response.json()["errors"][0]["detail"]


def test_a_multipart_part_needs_no_file_name(client: TestClient) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + encode(grey(51))
    ) + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = client.post("/score?map=none", content=body, headers=headers)
    assert response.json()["results"][0]["raw_score"] == pytest.approx(0.2)


def test_a_large_image_is_scored_and_mapped_in_its_own_frame(client: TestClient) -> None:
    found = score(client, grey(51, 1500, 2000))["results"][0]
    assert found["raw_score"] == pytest.approx(0.2)
    assert (found["residual_map"]["width"], found["residual_map"]["height"]) == (2000, 1500)


KINDS = {
    "PNG": encode(noise(24, 24)),
    "JPEG": encode(noise(24, 24), "JPEG"),
    "BMP": encode(noise(24, 24), "BMP"),
    "TIFF": encode(noise(24, 24), "TIFF", compression="tiff_lzw"),
    "WEBP": encode(noise(24, 24), "WEBP"),
}


@pytest.mark.parametrize("kind", KINDS)
@given(share=st.floats(0, 1, exclude_max=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_a_truncated_file_is_refused_or_scores_as_the_whole_but_never_in_part(
    client: TestClient, kind: str, share: float
) -> None:
    whole = KINDS[kind]
    response = client.post("/score?map=none", content=whole[: int(share * len(whole))], headers=PNG)
    assert response.status_code in (200, 400, 415)
    if response.status_code == 200:
        expected = score(client, whole, "?map=none")["results"]
        assert response.json()["results"] == expected


@given(
    data=st.binary(max_size=200), magic=st.sampled_from([b"", *(k[:12] for k in KINDS.values())])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
def test_arbitrary_bytes_are_a_client_error_and_never_a_500(
    client: TestClient, data: bytes, magic: bytes
) -> None:
    response = client.post("/score?map=none", content=magic + data, headers=PNG)
    assert response.status_code in (400, 413, 415, 422)
