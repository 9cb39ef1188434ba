"""Residual maps: areas are found, pictures and numbers agree."""

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from service.regions import MAX_REGIONS, find_regions
from service.rendering import float32_map, heatmap, png_map

maps = arrays(np.float32, (9, 12), elements=st.floats(0, 100, width=32))


@given(maps, st.floats(0, 99))
def test_every_pixel_above_the_threshold_lies_in_a_region_and_each_region_has_its_peak(
    residual: np.ndarray, threshold: float
) -> None:
    regions = find_regions(residual, threshold, limit=1000)
    covered = np.zeros(residual.shape, dtype=bool)
    for r in regions:
        box = residual[r.y : r.y + r.height, r.x : r.x + r.width]
        assert threshold < r.peak <= box.max()
        covered[r.y : r.y + r.height, r.x : r.x + r.width] = True
    assert covered[residual > threshold].all()
    peaks = [r.peak for r in regions]
    assert peaks == sorted(peaks, reverse=True)
    assert (not regions) == (not (residual > threshold).any())


def test_diagonal_neighbours_are_one_region_and_the_threshold_itself_is_outside() -> None:
    (region,) = find_regions(np.eye(4, dtype=np.float32), 0.5)
    assert (region.x, region.y, region.width, region.height, region.peak) == (0, 0, 4, 4, 1.0)
    assert find_regions(np.eye(4, dtype=np.float32), 1.0) == []


def test_only_the_highest_regions_are_told() -> None:
    residual = np.zeros((40, 40), dtype=np.float32)
    residual[::2, ::2] = np.arange(1, 401).reshape(20, 20)
    regions = find_regions(residual, 0.5)
    assert len(regions) == MAX_REGIONS
    assert [r.peak for r in regions] == list(range(400, 400 - MAX_REGIONS, -1))


@given(maps)
def test_grey_level_times_scale_over_255_is_the_residual(residual: np.ndarray) -> None:
    found = png_map(residual)
    pixels = np.asarray(Image.open(BytesIO(b64decode(found["data"]))))
    assert pixels.shape == residual.shape == (found["height"], found["width"])
    assert np.abs(pixels / 255 * found["scale"] - residual).max() <= found["scale"] / 509


@given(maps)
def test_float32_maps_hold_the_residuals_bit_by_bit(residual: np.ndarray) -> None:
    found = float32_map(residual)
    raw = np.frombuffer(b64decode(found["data"]), "<f4").reshape(found["height"], found["width"])
    assert (raw == residual).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_heatmap_leaves_what_is_normal_as_it_is_and_gets_lighter_with_the_residual(
    channels: int,
) -> None:
    residual = np.repeat(np.linspace(0, 2, 64, dtype=np.float32)[None], 8, axis=0)
    pixels = np.full((8, 64, channels), 90, dtype=np.uint8)
    picture = np.asarray(Image.open(BytesIO(heatmap(residual, pixels, 1.0)))).astype(float)
    assert picture[0, 0].tolist() == [90, 90, 90]
    lightness = picture.mean(axis=2)[0]
    assert lightness[-1] > lightness[30] > lightness[15]
    assert (picture[:, 32:] == picture[:, 32:33]).all()  # beyond the scale there is one colour
