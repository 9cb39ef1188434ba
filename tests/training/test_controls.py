import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from service.contract.errors import InvalidInput
from training.controls import CONTROLS, image_controls, series_controls, vector_controls


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return (digits.images * 15.9).astype(np.uint8)[..., None], digits.target


def windows(n: int, seed: int, length: int = 12) -> np.ndarray:
    """Four sensors driven by one hidden process, and one that never varies."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 1, 1)) + 0.1 * rng.normal(size=(n, length, 1))
    noise = 0.05 * rng.normal(size=(n, length, 4))
    still = np.full((n, length, 1), 2.5)
    return np.concatenate([hidden * [1, -1, 2, 0.5] + noise, still], axis=2).astype(np.float32)


def test_every_control_is_described() -> None:
    images, _ = digit_images()
    names = {
        *image_controls(images[:50], images[:5]),
        *series_controls(windows(50, 0), windows(5, 1)),
        *vector_controls(windows(50, 0)[:, 0], windows(5, 1)[:, 0]),
    }
    assert names == set(CONTROLS)


def test_image_controls_find_another_digit() -> None:
    images, digit = digit_images()
    zeros = images[digit == 0]
    test = np.concatenate([zeros[100:], images[digit == 1]])
    labels = np.repeat([0, 1], [len(zeros) - 100, int((digit == 1).sum())])
    for name, scores in image_controls(zeros[:100], test).items():
        assert roc_auc_score(labels, scores) > 0.95, name


def test_a_training_image_is_its_own_nearest_thumbnail() -> None:
    images, _ = digit_images()
    scores = image_controls(images[:100], images[90:110])["thumbnail_1nn"]
    assert scores[:10] == pytest.approx(np.zeros(10), abs=1e-3)
    assert (scores[10:] > 0.1).all()


def test_scores_of_an_image_do_not_depend_on_the_others() -> None:
    images, _ = digit_images()
    together = image_controls(images[:200], images[200:230])
    for i in (0, 7, 29):
        alone = image_controls(images[:200], images[200 + i : 201 + i])
        for name, scores in alone.items():
            assert scores[0] == pytest.approx(together[name][i], abs=1e-4), name


def test_large_colour_images_are_reduced_first() -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(100, 120, (40, 96, 128, 3), dtype=np.uint8)
    test = train[:6].copy()
    test[3:, 20:60, 30:90] = 250
    for name, scores in image_controls(train, test).items():
        assert scores[3:].min() > scores[:3].max(), name


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_identical_training_images_suffices(n: int) -> None:
    train = np.full((n, 8, 8, 1), 100, np.uint8)
    test = np.stack([train[0], np.full((8, 8, 1), 200, np.uint8)])
    for name, scores in image_controls(train, test).items():
        assert np.isfinite(scores).all(), name
        assert scores[1] > scores[0], name


def test_no_training_image_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one training image"):
        image_controls(np.empty((0, 8, 8, 1), np.uint8), np.empty((1, 8, 8, 1), np.uint8))


def test_spe_sees_a_broken_relation_between_sensors() -> None:
    test = windows(40, 1)
    test[20:, :, 1] *= -1  # in range, but no longer opposite to the others
    scores = series_controls(windows(200, 0), test)["pca_spe"]
    assert roc_auc_score(np.repeat([0, 1], 20), scores) > 0.9


def test_t2_and_z_see_an_extreme_state() -> None:
    test = windows(40, 1)
    test[20:, :, :4] *= 8
    scores = series_controls(windows(200, 0), test)
    for name in ("pca_t2", "window_z"):
        assert roc_auc_score(np.repeat([0, 1], 20), scores[name]) > 0.9, name


def test_a_sensor_that_never_varied_counts_once_it_moves() -> None:
    test = windows(2, 1)
    test[1] = test[0]
    test[1, :, 4] += 3
    scores = series_controls(windows(200, 0), test)
    for name in ("pca_spe", "window_z"):
        assert scores[name][1] > scores[name][0] + 0.5, name


@given(st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_series_controls_are_finite_however_little_there_is_to_learn(
    n: int, d: int, constant: bool
) -> None:
    rng = np.random.default_rng(n * 10 + d)
    train = rng.normal(size=(n, 5, d)).astype(np.float32)
    if constant:
        train[:] = 1.0
    test = rng.normal(size=(3, 5, d)).astype(np.float32)
    for name, scores in series_controls(train, test).items():
        assert scores.shape == (3,), name
        assert np.isfinite(scores).all(), name


def test_no_training_window_or_other_sensors_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one training window"):
        series_controls(np.empty((0, 5, 2), np.float32), np.zeros((1, 5, 2), np.float32))
    with pytest.raises(InvalidInput, match="3 sensors, training windows 2"):
        series_controls(np.zeros((4, 5, 2), np.float32), np.zeros((1, 5, 3), np.float32))


def test_vector_controls_find_another_digit_each_item_by_itself() -> None:
    images, digit = digit_images()
    x = images.reshape(len(images), -1).astype(np.float32)
    test = np.concatenate([x[digit == 0][100:], x[digit == 1]])
    labels = np.repeat([0, 1], [int((digit == 0).sum()) - 100, int((digit == 1).sum())])
    together = vector_controls(x[digit == 0][:100], test)
    alone = vector_controls(x[digit == 0][:100], test[:1])
    for name, scores in together.items():
        assert roc_auc_score(labels, scores) > 0.95, name
        assert alone[name][0] == pytest.approx(scores[0], rel=1e-6), name


@given(st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_vector_controls_are_finite_however_little_there_is_to_learn(
    n: int, d: int, constant: bool
) -> None:
    rng = np.random.default_rng(n * 10 + d)
    train = rng.normal(size=(n, d)).astype(np.float32)
    if constant:
        train[:] = 1.0
    for name, scores in vector_controls(train, np.ones((3, d), np.float32)).items():
        assert scores.shape == (3,), name
        assert np.isfinite(scores).all(), name
    assert all(len(s) == 0 for s in vector_controls(train, train[:0]).values())


def test_no_training_vector_or_other_features_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one training vector"):
        vector_controls(np.empty((0, 2), np.float32), np.zeros((1, 2), np.float32))
    with pytest.raises(InvalidInput, match="3 features, training vectors 2"):
        vector_controls(np.zeros((4, 2), np.float32), np.zeros((1, 3), np.float32))
