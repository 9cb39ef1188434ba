"""Linear statistics: against their textbook forms, and what they say of a faulty sensor."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from service.contract.errors import InvalidInput
from service.contract.manifest import Column, SeriesInput, VectorInput
from service.contract.preprocess import prepare_vectors
from service.detectors.linear import LinearDetector
from service.runtime import Runtime
from tests.artifacts import unpublished
from training.families.base import PreparedData
from training.families.linear import FittedLinear, Linear, LinearConfig
from training.run import Run

STATISTICS = ("spe", "t2", "combined", "mahalanobis", "mean_square")


def vectors() -> tuple[PreparedData, np.ndarray]:
    """Benign tumours (UCI, 30 features) as normal; the malignant ones."""
    x, y = load_breast_cancer(return_X_y=True)
    benign, malignant = x[y == 1], x[y == 0]
    train = benign[:200]
    mean, std = train.mean(axis=0), train.std(axis=0)
    spec = VectorInput(features=30, mean=tuple(mean), std=tuple(std), clip=100)
    validation, odd = prepare_vectors(spec, benign[200:]), prepare_vectors(spec, malignant)
    return PreparedData(spec, prepare_vectors(spec, train), validation), odd


def windows(faulty: int | None, seed: int, n: int = 200) -> np.ndarray:
    """Windows [N, 20, 4] of four sensors that follow one load; one of them may stick out."""
    rng = np.random.default_rng(seed)
    load = rng.normal(size=(n, 1, 1))
    x = load * np.array([1.0, -0.5, 2.0, 0.8]) + 0.1 * rng.normal(size=(n, 20, 4))
    if faulty is not None:
        x[:, :, faulty] += 1.5
    return x.astype(np.float32)


def fitted(config: LinearConfig, data: PreparedData, folder: Path) -> FittedLinear:
    return Linear().fit(config, data, Run(folder / "run", progress=False))


@pytest.mark.parametrize("score", STATISTICS)
def test_the_exported_graph_scores_as_the_textbook_has_it(score: str, tmp_path: Path) -> None:
    data, odd = vectors()
    model = fitted(LinearConfig(score=score, variance=0.9), data, tmp_path)
    params = Linear().export(model, data, tmp_path)
    artifact = unpublished(tmp_path, "linear", data.spec, params.model_dump())
    detector = LinearDetector.open(artifact, Runtime(threads=1))

    train = data.train.astype(float)
    scale = train.std(axis=0)
    phi = (np.concatenate([data.validation, odd]) - train.mean(axis=0)) / scale
    train = (train - train.mean(axis=0)) / scale
    pca = PCA(0.9).fit(train)
    t = pca.transform(phi)
    spe = np.square(phi - pca.inverse_transform(t)).sum(axis=1)
    t2 = (np.square(t) / pca.explained_variance_).sum(axis=1)
    held_out = len(data.validation)
    expected = {
        "spe": spe,
        "t2": t2,
        "combined": sum(s / np.quantile(s[:held_out], 0.99) for s in (spe, t2)),
        "mahalanobis": LedoitWolf().fit(train).mahalanobis(phi),
        "mean_square": np.square(phi).mean(axis=1),
    }[score]
    found = detector.detect(np.concatenate([data.validation, odd]), maps=True)
    np.testing.assert_allclose(found.scores, expected, rtol=2e-4)
    labels = np.repeat([0, 1], [held_out, len(odd)])
    assert roc_auc_score(labels, found.scores) > 0.8
    assert found.maps is not None
    assert found.maps.shape == (len(expected), 30)
    assert (found.maps >= 0).all()


@pytest.mark.parametrize("score", ["spe", "mahalanobis", "combined"])
@pytest.mark.parametrize("features", ["mean", "statistics", "flat"])
@pytest.mark.parametrize("sensor", [0, 1, 3])
def test_the_faulty_sensor_is_to_blame(
    sensor: int, features: str, score: str, tmp_path: Path
) -> None:
    column = [Column(name=f"s{i}", unit="", mean=0, std=1, low=-99, high=99) for i in range(4)]
    spec = SeriesInput(columns=tuple(column), period_s=None, window=20)
    data = PreparedData(spec, windows(None, 0), windows(None, 1))
    config = LinearConfig(features=features, score=score)
    model = fitted(config, data, tmp_path)
    odd = Linear().reference_scores(model, tmp_path, windows(sensor, 2))
    normal = Linear().reference_scores(model, tmp_path, windows(None, 3))
    assert odd.scores.min() > np.quantile(normal.scores, 0.95)
    assert odd.maps is not None
    assert odd.maps.shape == (200, 20, 4)
    blamed = odd.maps.sum(axis=1).argmax(axis=1)
    assert (blamed == sensor).mean() > 0.95


def test_auto_takes_what_tells_synthetic_anomalies_best(tmp_path: Path) -> None:
    data, odd = vectors()
    data.synthetic = odd[:100]
    model = fitted(LinearConfig(score="auto"), data, tmp_path)
    assert set(model.params.selection) == set(STATISTICS)
    best = max(model.params.selection.values())
    assert model.params.selection[model.params.score] == best


def test_equal_items_are_refused_in_words(tmp_path: Path) -> None:
    data, _ = vectors()
    alike = PreparedData(data.spec, np.zeros_like(data.train), data.validation)
    with pytest.raises(InvalidInput, match="all alike"):
        fitted(LinearConfig(), alike, tmp_path)


@pytest.mark.parametrize("size", [1, 5])
def test_where_all_components_are_needed_nothing_is_left_to_measure(
    size: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    spec = VectorInput(features=size, mean=(0,) * size, std=(1,) * size)
    normal, odd = (rng.normal(size=(300, size)).astype(np.float32) for _ in range(2))
    data = PreparedData(spec, normal[:200], normal[200:], odd + 3)
    for score in ("spe", "combined"):
        with pytest.raises(InvalidInput, match='choose "t2" or "mahalanobis"'):
            fitted(LinearConfig(score=score), data, tmp_path)
    model = fitted(LinearConfig(score="auto"), data, tmp_path)
    assert set(model.params.selection) == {"t2", "mahalanobis", "mean_square"}
    scores = Linear().reference_scores(model, tmp_path, np.concatenate([normal, odd + 3])).scores
    assert roc_auc_score(np.repeat([0, 1], 300), scores) > 0.95


def test_features_of_windows_are_refused_for_vectors(tmp_path: Path) -> None:
    data, _ = vectors()
    with pytest.raises(InvalidInput, match="vectors are flat"):
        fitted(LinearConfig(features="mean"), data, tmp_path)
