"""Neighbour scores: against scikit-learn, and where copies, ties and saturation are traps."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import invgamma
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible, InvalidInput
from service.detectors.neighbours import DENSITY, NeighboursDetector, most_probable_time
from service.runtime import Runtime
from tests.artifacts import unpublished
from tests.training.tumours import tumours
from training.families.base import PreparedData
from training.families.neighbours import Neighbours, NeighboursConfig
from training.run import Run


def opened(folder: Path, data: PreparedData, **config: object) -> NeighboursDetector:
    folder.mkdir(exist_ok=True)
    family = Neighbours()
    model = family.fit(NeighboursConfig.model_validate(config), data, Run(folder, progress=False))
    params = family.export(model, data, folder)
    artifact = unpublished(folder, "neighbours", data.spec, params.model_dump())
    return NeighboursDetector.open(artifact, Runtime(threads=1))


def test_knn_is_the_mean_distance_to_the_nearest(tmp_path: Path) -> None:
    data, x, labels = tumours()
    found = opened(tmp_path, data, neighbours=4).detect(x, maps=False).scores
    wide = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(data.train.astype(float))
    expected = wide.kneighbors(x.astype(float))[0].mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert roc_auc_score(labels, found) > 0.9


def test_lof_is_scikit_learn_s_for_novelties(tmp_path: Path) -> None:
    data, x, labels = tumours()
    found = opened(tmp_path, data, score="lof").detect(x, maps=False).scores
    lof = LocalOutlierFactor(n_neighbors=20, novelty=True, algorithm="brute")
    expected = -lof.fit(data.train.astype(float)).score_samples(x.astype(float))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert roc_auc_score(labels, found) > 0.9


def test_lof_stays_finite_among_copies(tmp_path: Path) -> None:
    data, x, _ = tumours()
    copies = np.concatenate([data.train[:3].repeat(30, axis=0), data.train[3:60]])
    twice = PreparedData(data.spec, copies, data.validation)
    found = opened(tmp_path, twice, score="lof").detect(np.concatenate([copies[:2], x]), maps=True)
    assert np.isfinite(found.scores).all()
    assert found.maps is not None
    assert np.isfinite(found.maps).all()


def test_the_time_is_the_mode_of_the_posterior() -> None:
    variance = 1 - np.cumprod(1 - np.linspace(1e-4, 0.01, 300))
    square = np.array([0.3, 2.0, 6.0, 15.0, 1e4])
    log = invgamma.logpdf(variance[None], a=30 / 2 - 1, scale=square[:, None] / 2)
    expected = log.argmax(axis=1)
    np.testing.assert_array_equal(most_probable_time(square, 30, 300), expected)
    assert expected[-1] == 299, "far away it stands still"


def test_times_rank_as_distances_do_until_they_stand_still(tmp_path: Path) -> None:
    data, x, _ = tumours()
    near = data.train[:100] + 0.3 * np.random.default_rng(0).normal(size=(100, 30))
    x = np.concatenate([near.astype(np.float32), x])
    times = opened(tmp_path / "times", data, score="dte_np").detect(x, maps=False).scores
    # not the mean distance: the posterior sees mean squares
    nearest = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(data.train.astype(float))
    distance = np.square(nearest.kneighbors(x.astype(float))[0]).mean(axis=1)
    assert (np.diff(times[np.argsort(distance)]) >= 0).all()
    assert len(np.unique(times)) > 20
    assert times.max() == 299


def test_times_of_too_few_features_are_refused(tmp_path: Path) -> None:
    data, _, _ = tumours()
    narrow = PreparedData(data.spec, data.train[:, :2].copy(), data.validation[:, :2].copy())
    with pytest.raises(InvalidInput, match="at least 3 features, there are 2"):
        opened(tmp_path, narrow, score="dte_np")


def test_the_feature_that_is_off_has_the_largest_share(tmp_path: Path) -> None:
    data, _, _ = tumours()
    x = data.train[:5].copy()
    x[:, 11] += 20
    for score in ("knn", "lof", "dte_np"):
        maps = opened(tmp_path / score, data, score=score).detect(x, maps=True).maps
        assert maps is not None
        assert (maps.argmax(axis=1) == 11).all()


@pytest.mark.parametrize("score", ["knn", "lof", "dte_np"])
def test_an_absurd_value_gives_a_finite_score_that_does_not_depend_on_the_batch(
    tmp_path: Path, score: str
) -> None:
    data, x, _ = tumours()
    x = x[:40].copy()
    x[::3, 2] = 1e4
    detector = opened(tmp_path, data, score=score)
    whole = detector.detect(x, maps=False).scores
    alone = [detector.detect(x[i : i + 1], maps=False).scores[0] for i in range(len(x))]
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(whole, alone, rtol=1e-5)


def test_too_few_training_vectors_are_refused(tmp_path: Path) -> None:
    data, _, _ = tumours(train=20)
    with pytest.raises(InvalidInput, match="20 training vectors cannot give 20 neighbours"):
        opened(tmp_path, data, score="lof")


def test_a_bank_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    data, _, _ = tumours()
    opened(tmp_path, data, score="lof")
    wide = data.spec.model_copy(update={"features": 31, "mean": (0.0,) * 31, "std": (1.0,) * 31})
    params = {"score": "lof", "neighbours": 20}
    with pytest.raises(ArtifactIncompatible, match="vectors of 30 numbers"):
        NeighboursDetector.open(unpublished(tmp_path, "neighbours", wide, params), Runtime())
    np.savez(tmp_path / DENSITY, k_distance=np.zeros(3), density=np.zeros(3))
    with pytest.raises(ArtifactCorrupt, match="not 200 numbers"):
        NeighboursDetector.open(unpublished(tmp_path, "neighbours", data.spec, params), Runtime())
    with pytest.raises(ArtifactIncompatible, match="200 items"):
        NeighboursDetector.open(
            unpublished(tmp_path, "neighbours", data.spec, {"score": "knn", "neighbours": 201}),
            Runtime(),
        )
