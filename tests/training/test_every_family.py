"""What is promised of every family, checked on the artifact it publishes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from service.contract.manifest import Manifest
from service.contract.preprocess import prepare_images, prepare_vectors
from service.contract.store import Artifact
from service.detectors import DETECTORS
from service.runtime import Runtime
from service.scoring import Scorer, self_test
from tests.training.conftest import data_options, train_family
from training.config import load_data, make_config
from training.data.base import ImageData, VectorData
from training.families import FAMILIES

Trained = Callable[[str], tuple[Path, Artifact]]


@pytest.fixture
def scorer(trained: Trained, family: str) -> Scorer:
    return Scorer.open(trained(family)[1], Runtime(threads=1))


@pytest.fixture
def data(family: str, data_of: Callable[[str], Path]) -> ImageData | VectorData:
    options = data_options(family, data_of(family))
    loaded = load_data(make_config({"name": "x", "family": family, "data": options}, "test"), None)
    assert isinstance(loaded, ImageData | VectorData)
    return loaded


def prepared(scorer: Scorer, items: np.ndarray) -> np.ndarray:
    if scorer.manifest.task == "image":
        return prepare_images(scorer.image_input, items)
    return prepare_vectors(scorer.vector_input, items)


@pytest.fixture
def x(scorer: Scorer, data: ImageData | VectorData) -> np.ndarray:
    return prepared(scorer, np.concatenate([data.calibration[:9], data.test[:8]]))


def test_both_registries_hold_the_same_families() -> None:
    assert set(FAMILIES) == set(DETECTORS)


def test_anomalous_items_score_higher_than_normal_ones(
    scorer: Scorer, data: ImageData | VectorData
) -> None:
    scores = scorer.score(prepared(scorer, data.test))
    assert roc_auc_score(data.test_labels, scores.raw) > 0.6


@pytest.mark.parametrize("size", [1, 2, 3, 8, 17])
def test_a_score_does_not_depend_on_its_batch(scorer: Scorer, x: np.ndarray, size: int) -> None:
    whole = scorer.score(x, maps=True)
    parts = [scorer.score(x[i : i + size], maps=True) for i in range(0, len(x), size)]
    np.testing.assert_allclose(
        np.concatenate([p.raw for p in parts]), whole.raw, rtol=1e-5, atol=1e-5
    )
    assert whole.maps is not None
    maps = np.concatenate([p.maps for p in parts if p.maps is not None])
    np.testing.assert_allclose(maps, whole.maps, rtol=1e-4, atol=1e-4)


def test_a_score_does_not_depend_on_the_order(scorer: Scorer, x: np.ndarray) -> None:
    order = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_allclose(
        scorer.score(x[order]).raw, scorer.score(x).raw[order], rtol=1e-5, atol=1e-5
    )


def test_a_score_does_not_depend_on_the_number_of_threads(
    trained: Trained, family: str, x: np.ndarray
) -> None:
    one, two = (Scorer.open(trained(family)[1], Runtime(threads=t)).score(x).raw for t in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_asking_for_maps_does_not_change_the_score(scorer: Scorer, x: np.ndarray) -> None:
    np.testing.assert_allclose(
        scorer.score(x, maps=False).raw, scorer.score(x, maps=True).raw, rtol=1e-5, atol=1e-5
    )


def test_the_input_is_left_as_it_was(scorer: Scorer, x: np.ndarray) -> None:
    before = x.copy()
    scorer.score(x, maps=True)
    np.testing.assert_array_equal(x, before)


def test_scores_and_maps_are_finite_and_of_the_input_s_size(scorer: Scorer, x: np.ndarray) -> None:
    scores = scorer.score(x, maps=True)
    assert np.isfinite(scores.raw).all()
    assert scores.maps is not None
    explained = x.shape[2:] if x.ndim == 4 else x.shape[1:]  # channels share a residual
    assert scores.maps.shape == (len(x), *explained)
    assert scores.maps.dtype == np.float32
    assert np.isfinite(scores.maps).all()
    assert (scores.maps >= 0).all()


def test_the_published_artifact_passes_its_own_golden_test(trained: Trained, family: str) -> None:
    artifact = trained(family)[1]
    self_test(Scorer.open(artifact, Runtime()), artifact)


def test_the_manifest_round_trips_and_records_parity(trained: Trained, family: str) -> None:
    manifest = trained(family)[1].manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert manifest.metrics["parity"].value < 1e-4
    params = DETECTORS[family].Params.model_validate(manifest.params)
    assert params.model_dump(mode="json") == manifest.params


def test_the_card_shows_the_controls_and_the_pictures_it_names(
    trained: Trained, family: str
) -> None:
    artifact = trained(family)[1]
    card = (artifact.path / "CARD.md").read_text()
    control = {"image": "thumbnail_1nn", "vectors": "vector_knn"}[artifact.manifest.task]
    assert control in card
    for name in artifact.manifest.files:
        if name.endswith(".png"):
            assert name in card


def test_the_same_seed_gives_the_same_scores(
    trained: Trained,
    family: str,
    data_of: Callable[[str], Path],
    tmp_path: Path,
    x: np.ndarray,
) -> None:
    again = train_family(family, data_of(family), tmp_path)
    first = Scorer.open(trained(family)[1], Runtime(threads=1)).score(x).raw
    second = Scorer.open(again, Runtime(threads=1)).score(x).raw
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
