"""Synthetic anomalies are visible, marked where they are, and the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from training.data.synthetic import (
    cut_paste,
    noise_patches,
    synthetic_anomalies,
    synthetic_series_anomalies,
    synthetic_vector_anomalies,
)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    x = (load_digits().images[:60] * 15.9).astype(np.uint8)[..., None]
    return x.repeat(4, axis=1).repeat(4, axis=2)


@pytest.mark.parametrize("make", [cut_paste, noise_patches, synthetic_anomalies])
def test_masks_mark_exactly_the_changed_pixels_of_a_small_patch(make, digits) -> None:
    before = digits.copy()
    out, masks = make(digits, 0)
    assert (digits == before).all(), "the input is left alone"
    assert out.dtype == np.uint8
    assert (masks == (out != digits).any(axis=-1)).all()
    assert masks.any(axis=(1, 2)).all(), "every item is anomalous"
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert np.ptp(rows) < 0.4 * 32 + 1
        assert np.ptp(columns) < 0.4 * 32 + 1


def test_the_mixture_holds_both_kinds(digits: np.ndarray) -> None:
    out, _ = synthetic_anomalies(digits, 3)
    assert (out[0] == cut_paste(digits, 3)[0][0]).all()
    assert (out[1] == noise_patches(digits, 3)[0][1]).all()


def test_the_seed_decides(digits: np.ndarray) -> None:
    first, again, other = (synthetic_anomalies(digits, seed)[0] for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


@given(st.integers(1, 6), st.integers(4, 20), st.integers(4, 20), st.sampled_from([1, 3]))
def test_any_stack_of_images_will_do(n: int, height: int, width: int, channels: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    out, masks = synthetic_anomalies(x, 1)
    assert out.shape == x.shape
    assert masks.any(axis=(1, 2)).all()


def test_a_sensor_fault_is_in_a_few_sensors_and_lasts_to_the_windows_end() -> None:
    windows = np.random.default_rng(0).normal(size=(200, 26, 12)).astype(np.float32)
    windows[:, :, 3] = 0.2  # a sensor that stands still
    before = windows.copy()
    out, masks = synthetic_series_anomalies(windows, 0)
    assert (windows == before).all()
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert (masks == (out != windows)).all()
    faulty = masks.any(axis=1).sum(axis=1)
    assert faulty.min() >= 1
    assert faulty.max() <= 3
    assert masks[:, 13:].any(axis=(1, 2)).all()


def test_series_anomalies_follow_the_seed_and_window_number_only() -> None:
    windows = np.random.default_rng(1).normal(size=(50, 16, 4)).astype(np.float32)
    first, again, other = (synthetic_series_anomalies(windows, seed)[0] for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


@given(n=st.integers(1, 8), d=st.integers(1, 12), constant=st.booleans(), seed=st.integers(0, 9))
def test_every_vector_is_changed_in_at_most_half_of_its_features(
    n: int, d: int, constant: bool, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    if constant:
        x[:] = x[0]
    before = x.copy()
    out, changed = synthetic_vector_anomalies(x, seed)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(changed, out != x)
    assert changed.any(axis=1).all(), "every item is anomalous"
    assert (changed.sum(axis=1) <= max(1, d / 2)).all()
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(synthetic_vector_anomalies(x, seed)[0], out)


def test_even_vectors_have_features_of_another_one() -> None:
    x = load_digits().data[:40].astype(np.float32)
    out, changed = synthetic_vector_anomalies(x, 0)
    for i in range(0, 40, 2):
        taken = [j for j in range(40) if (out[i, changed[i]] == x[j, changed[i]]).all()]
        assert taken
        assert i not in taken
