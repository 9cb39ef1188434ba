"""The three systems of PyOD: the service's scores against PyOD's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pyod.models.copod import COPOD
from pyod.models.iforest import IForest
from pyod.models.ocsvm import OCSVM
from scipy.stats import skew
from sklearn.metrics import roc_auc_score

from service.contract.errors import ArtifactCorrupt, InvalidInput
from service.contract.manifest import VectorInput
from service.detectors.classic import FOREST, TAILS, ClassicDetector
from service.runtime import Runtime
from tests.artifacts import unpublished
from tests.training.tumours import tumours
from training.families.base import PreparedData
from training.families.classic import Classic, ClassicConfig
from training.run import Run

SYSTEMS = ("iforest", "ocsvm", "copod")
ONE = VectorInput(features=3, mean=(0.0,) * 3, std=(1.0,) * 3)


def exported(folder: Path, data: PreparedData, **config: Any) -> tuple[ClassicDetector, Any]:
    family = Classic()
    model = family.fit(ClassicConfig(**config), data, Run(folder, progress=False))
    params = family.export(model, data, folder)
    artifact = unpublished(folder, "classic", data.spec, params.model_dump())
    return ClassicDetector.open(artifact, Runtime(threads=1)), model


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClassicDetector]:
    root, (data, _, _) = tmp_path_factory.mktemp("classic"), tumours()
    return {s: exported(root / s, data, system=s)[0] for s in SYSTEMS if not (root / s).mkdir()}


def test_the_forest_is_pyod_s(detectors: dict[str, ClassicDetector]) -> None:
    data, x, labels = tumours()
    found = detectors["iforest"].detect(x, maps=False).scores
    pyod = IForest(max_samples=200, random_state=0).fit(data.train.astype(float))
    np.testing.assert_allclose(found, pyod.decision_function(x.astype(float)), atol=1e-12)
    assert roc_auc_score(labels, found) > 0.9


def test_the_svm_is_pyod_s(detectors: dict[str, ClassicDetector]) -> None:
    data, x, labels = tumours()
    found = detectors["ocsvm"].detect(x, maps=False).scores
    pyod = OCSVM(gamma="auto").fit(data.train.astype(float))
    np.testing.assert_allclose(found, pyod.decision_function(x.astype(float)), atol=1e-9)
    assert roc_auc_score(labels, found) > 0.9


def test_copod_s_terms_are_pyod_s_for_a_vector_that_comes_alone(
    detectors: dict[str, ClassicDetector],
) -> None:
    data, x, labels = tumours()
    found = detectors["copod"].detect(x, maps=True)
    assert found.maps is not None
    assert roc_auc_score(labels, found.scores) > 0.85
    pyod = COPOD().fit(data.train.astype(float))
    varies = np.ptp(data.train, axis=0) > 0
    for i in range(0, len(x), 40):
        pyod.decision_function(x[i : i + 1].astype(float))
        # PyOD lets the vector itself turn a feature's skewness; we do not
        joined = np.concatenate([data.train, x[i : i + 1]])[:, varies].astype(float)
        same = np.sign(skew(joined)) == np.sign(skew(data.train[:, varies].astype(float)))
        assert same.mean() > 0.8
        terms = found.maps[i, varies][same]
        np.testing.assert_allclose(terms, pyod.O[-1, varies][same], rtol=1e-6, atol=1e-6)


def test_a_constant_feature_leaves_copod_a_score(detectors: dict[str, ClassicDetector]) -> None:
    data, x, labels = tumours()
    assert np.ptp(data.train[:, 7]) == 0
    found = detectors["copod"].detect(x, maps=True)
    assert len(np.unique(found.scores)) > 100
    assert found.maps is not None
    # normal ones have the constant value; any other lies beyond all that was seen
    np.testing.assert_allclose(found.maps[labels == 0, 7], 0)
    np.testing.assert_allclose(found.maps[labels == 1, 7], np.log(201), rtol=1e-6)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_feature_that_is_off_has_the_largest_share(
    detectors: dict[str, ClassicDetector], system: str
) -> None:
    data, _, _ = tumours()
    x = data.train[:20].copy()
    x[:, 11] += 20
    found = detectors[system].detect(x, maps=True).maps
    assert found is not None
    assert (found >= 0).all()
    assert found.mean(axis=0).argmax() == 11


def test_terms_of_copod_add_up_to_its_score(detectors: dict[str, ClassicDetector]) -> None:
    _, x, _ = tumours()
    found = detectors["copod"].detect(x, maps=True)
    assert found.maps is not None
    np.testing.assert_allclose(found.maps.sum(axis=1), found.scores, rtol=1e-5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_absurd_value_gives_finite_scores(
    detectors: dict[str, ClassicDetector], system: str
) -> None:
    _, x, _ = tumours()
    x = x[:6].copy()
    x[1], x[2, 3], x[3, 4] = 1e4, 1e4, -1e4
    found = detectors[system].detect(x, maps=True)
    assert np.isfinite(found.scores).all()
    assert found.maps is not None
    assert np.isfinite(found.maps).all()


@given(train=arrays(np.int8, (12, 3), elements=st.integers(-2, 2)), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_values_that_lie_on_a_cut_go_the_way_they_go_in_pyod(
    tmp_path_factory: pytest.TempPathFactory, train: np.ndarray, seed: int
) -> None:
    x = train.astype(np.float32)
    folder = tmp_path_factory.mktemp("cuts")
    data = PreparedData(ONE, x, x)
    detector, model = exported(folder, data, system="iforest", trees=20)
    cuts = np.load(folder / FOREST)["threshold"][:, :1]
    on_cuts = np.concatenate([x, np.tile(cuts, (1, 3)).astype(np.float32)])
    expected = Classic().reference_scores(model, folder, on_cuts).scores
    np.testing.assert_allclose(detector.detect(on_cuts, maps=False).scores, expected, atol=1e-12)


def test_the_seed_decides_the_forest(tmp_path: Path) -> None:
    data, x, _ = tumours()
    family = Classic()
    scores = []
    for seed in (0, 0, 1):
        model = family.fit(ClassicConfig(trees=5), data, Run(tmp_path, seed=seed, progress=False))
        scores.append(family.reference_scores(model, tmp_path, x).scores)
    np.testing.assert_array_equal(scores[0], scores[1])
    assert (scores[0] != scores[2]).any()


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data, _, _ = tumours()
    exported(tmp_path, data, system="iforest", trees=3)
    arrays_ = dict(np.load(tmp_path / FOREST))
    arrays_["left"][0, 0] = 10_000
    np.savez(tmp_path / FOREST, **arrays_)
    np.savez(tmp_path / TAILS, columns=np.zeros((4, 5), np.float32), skew=np.zeros(4, np.int8))
    for system, message in (("iforest", "not trees over 30"), ("copod", "not columns of 30")):
        artifact = unpublished(tmp_path, "classic", data.spec, {"system": system})
        with pytest.raises(ArtifactCorrupt, match=message):
            ClassicDetector.open(artifact, Runtime())
    nodes = {name: array[:, :0] for name, array in arrays_.items() if array.ndim}
    np.savez(tmp_path / FOREST, **nodes, depth=arrays_["depth"])
    artifact = unpublished(tmp_path, "classic", data.spec, {"system": "iforest"})
    with pytest.raises(ArtifactCorrupt, match="not trees over 30"):
        ClassicDetector.open(artifact, Runtime())


def test_a_forest_of_one_vector_is_refused(tmp_path: Path) -> None:
    data, _, _ = tumours(train=200)
    alone = PreparedData(data.spec, data.train[:1], data.validation)
    with pytest.raises(InvalidInput, match="at least 2 training vectors"):
        exported(tmp_path, alone, system="iforest")


def test_a_hull_of_more_vectors_than_it_has_time_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.families.classic.MOST_FOR_OCSVM", 199)
    with pytest.raises(InvalidInput, match="200 are more than 199"):
        exported(tmp_path, tumours()[0], system="ocsvm")
