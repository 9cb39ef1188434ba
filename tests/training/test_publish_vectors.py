"""Vector models from a configuration to a served artifact, through the steps of ``publish``."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from service.contract.errors import InvalidInput
from service.contract.manifest import VectorInput
from service.runtime import Runtime
from service.scoring import Scorer
from training.config import TrainConfig, load_data, make_config, prepare
from training.data.base import VectorData
from training.publish import publish
from training.run import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tumours (UCI) as one of ADBench's files, and as a user's table."""
    root = tmp_path_factory.mktemp("data")
    tumours = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in tumours.feature_names]
    np.savez(root / "tumours.npz", X=tumours.data.astype(np.float32), y=1 - tumours.target)
    header = ",".join([*names, "label"])
    table = np.column_stack([tumours.data, 1 - tumours.target])
    np.savetxt(root / "tumours.csv", table, delimiter=",", header=header, comments="")
    return root


def config(family: str, data: dict[str, Any], **members: Any) -> TrainConfig:
    return make_config({"name": "tumours", "family": family, "data": data, **members}, "test")


@pytest.mark.parametrize(
    ("family", "model"), [("classic", {"system": "ocsvm"}), ("neighbours", {"score": "lof"})]
)
def test_what_is_published_scores_raw_vectors(
    family: str, model: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    chosen = config(family, {"name": "vectors", "path": "tumours.csv"}, model=model)
    run = Run(tmp_path / "run", progress=False)
    artifact, evaluation = publish(chosen, run, tmp_path / "models", folder)
    data = load_data(chosen, folder)
    assert isinstance(data, VectorData)
    found = Scorer.open(artifact, Runtime(threads=1)).score_vectors(data.test)
    np.testing.assert_allclose(found.raw, evaluation.raw, rtol=1e-6, atol=1e-6)
    assert roc_auc_score(data.test_labels, found.raw) > 0.9
    spec = artifact.manifest.input
    assert isinstance(spec, VectorInput)
    assert spec.names[0] == "mean_radius"
    np.testing.assert_allclose(spec.mean, data.train.mean(axis=0))
    assert artifact.manifest.calibration.n == len(data.calibration) == 71


def test_a_model_without_calibration_data_is_refused_before_it_is_trained(
    folder: Path, tmp_path: Path
) -> None:
    chosen = config("neighbours", {"name": "adbench", "set": "tumours", "fit_all": True})
    with pytest.raises(InvalidInput, match="0 normal items are left for calibration"):
        publish(chosen, Run(tmp_path / "run", progress=False), tmp_path / "models", folder)
    assert not (tmp_path / "models").exists()


def test_where_nothing_is_held_out_training_vectors_stand_in_for_validation(folder: Path) -> None:
    chosen = config("neighbours", {"name": "adbench", "set": "tumours", "fit_all": True})
    _, prepared = prepare(chosen, load_data(chosen, folder))
    np.testing.assert_array_equal(prepared.validation, prepared.train[::10])
    assert prepared.synthetic is not None
    assert len(prepared.synthetic) == len(prepared.validation)


def test_a_family_that_takes_no_vectors_says_what_it_takes(folder: Path) -> None:
    chosen = config("nln", {"name": "vectors", "path": "tumours.csv"})
    with pytest.raises(InvalidInput, match="'nln' takes image data, not vectors"):
        prepare(chosen, load_data(chosen, folder))


def test_too_few_calibration_vectors_are_refused(folder: Path) -> None:
    options = {"name": "vectors", "path": "tumours.csv", "calibration_share": 0.02}
    chosen = config("neighbours", options)
    with pytest.raises(InvalidInput, match="7 of the normal vectors are left for calibration"):
        prepare(chosen, load_data(chosen, folder))


def test_an_input_rule_for_other_features_is_refused(folder: Path) -> None:
    data = {"name": "vectors", "path": "tumours.csv"}
    chosen = config("neighbours", data, input={"features": 29})
    with pytest.raises(InvalidInput, match=r"\[input\]"):
        prepare(chosen, load_data(chosen, folder))
