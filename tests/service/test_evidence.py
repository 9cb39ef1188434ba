"""The nearest normal items of an image, as an answer shows them."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.contract import store
from service.contract.errors import InvalidInput
from service.contract.manifest import ImageInput
from service.contract.preprocess import prepare_images
from service.detectors.base import Neighbour
from service.evidence import find_evidence, place_in_frame
from service.rendering import thumbnail
from service.runtime import Runtime
from service.scoring import Scorer
from tests.artifacts import publish_image

SHIPPED = Path(__file__).parents[2] / "models"


def picture(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(encoded))))


def neighbour(x: int, y: int, width: int, height: int) -> Neighbour:
    pixels = np.zeros((1, height, width), np.uint8)
    return Neighbour(0.0, 0, pixels, x, y, width, height)


def test_a_shipped_model_shows_digits_like_the_one_it_was_asked_about() -> None:
    scorer = Scorer.open(store.open_artifact(SHIPPED, "digits-nln", 1), Runtime(threads=1))
    seven = np.asarray(Image.open(SHIPPED.parent / "examples" / "digit-7.png").convert("L"))
    x = prepare_images(scorer.image_input, seven[None, :, :, None])
    many = np.repeat(x, 3, axis=0)
    found = find_evidence(scorer, many, 5)
    assert [len(f) for f in found] == [5, 5, 5]
    distances = [n.distance for n in found[0]]
    assert distances == sorted(distances)
    own = x[0].ravel()
    alike = [np.corrcoef(own, n.pixels.ravel())[0, 1] for n in found[0]]
    assert min(alike) > 0.5


def test_a_family_without_a_bank_is_refused_and_those_with_one_are_named(tmp_path: Path) -> None:
    publish_image(tmp_path)
    scorer = Scorer.open(store.open_artifact(tmp_path, "bright", 1), Runtime(threads=1))
    x = np.zeros((1, *scorer.image_input.shape), np.float32)
    with pytest.raises(InvalidInput, match=r"iae_lstm_kl.*families that do: nln"):
        find_evidence(scorer, x, 1)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((2, 2, 8, 8), {"x": 0, "y": 0, "width": 20, "height": 40}),  # all but the padding
        ((0, 0, 12, 12), {"x": 0, "y": 0, "width": 20, "height": 40}),
        ((6, 2, 4, 4), {"x": 10, "y": 0, "width": 10, "height": 20}),
        ((10, 10, 2, 2), {"x": 19, "y": 39, "width": 1, "height": 1}),  # padding only
    ],
)
def test_a_place_is_told_in_pixels_of_the_uploaded_image(
    place: tuple[int, int, int, int], expected: dict[str, int]
) -> None:
    spec = ImageInput(height=8, width=8, channels=1, mean=(0.0,), std=(1.0,), pad=2)
    assert place_in_frame(spec, neighbour(*place), height=40, width=20) == expected


@pytest.mark.parametrize(
    ("shape", "shown"), [((1, 8, 6), (8, 6)), ((3, 8, 6), (8, 6, 3)), ((1, 192, 48), (96, 24))]
)
def test_a_thumbnail_is_the_picture_and_never_large(shape: Any, shown: Any) -> None:
    pixels = np.full(shape, 77, np.uint8)
    found = picture(thumbnail(pixels))
    assert found.shape == shown
    assert (found == 77).all()
