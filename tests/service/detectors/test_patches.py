"""Patches: what was cut comes back in place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.detectors.patches import Patches


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(4, 20), st.integers(4, 20)),
    patch=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 4),
    n=st.integers(1, 3),
)
def test_cut_images_are_assembled_to_what_they_were(
    size: tuple[int, int], patch: tuple[int, int], stride: int, n: int
) -> None:
    stride = min(stride, *patch)
    patches = Patches((1, *size), patch, stride)
    x = np.random.default_rng(0).random((n, 1, *size), np.float32)
    parts = patches.cut(x).reshape(n, len(patches), *patch)
    np.testing.assert_allclose(patches.assemble(parts), x[:, 0], atol=1e-6)


def test_a_patch_as_large_as_the_image_is_the_image() -> None:
    x = np.random.default_rng(0).random((2, 3, 6, 5), np.float32)
    patches = Patches((3, 6, 5), (6, 5), stride=1)
    assert len(patches) == 1
    np.testing.assert_array_equal(patches.cut(x), x)


def test_blurring_keeps_flat_images_and_the_input_and_removes_grain() -> None:
    patches = Patches((1, 16, 16), (16, 16), stride=1, blur=2.0)
    flat = np.full((1, 1, 16, 16), 0.7, np.float32)
    np.testing.assert_allclose(patches.cut(flat), flat, atol=1e-6)
    grain = np.random.default_rng(0).random((1, 1, 16, 16), np.float32)
    before = grain.copy()
    assert patches.cut(grain).std() < 0.25 * grain.std()
    np.testing.assert_array_equal(grain, before)


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_every_pixel_is_covered(stride: int) -> None:
    patches = Patches((1, 11, 9), (4, 4), stride)
    ones = np.ones((1, len(patches), 4, 4), np.float32)
    np.testing.assert_allclose(patches.assemble(ones), 1)
