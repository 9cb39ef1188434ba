"""The NLN family trained on small pictures: bank, choice of the score, exported files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from service.contract.errors import InvalidInput
from service.contract.manifest import ImageInput
from service.detectors.nln import NlnDetector
from service.detectors.nln_artifact import BANK, DECODER
from service.runtime import Runtime
from tests.artifacts import unpublished
from training.families.base import PreparedData
from training.families.nln import Nln, NlnConfig, NlnModel
from training.families.nln.bank import Bank, detector_of, typical_of
from training.families.nln.choice import choose
from training.families.nln.index import build_index
from training.networks.autoencoder import build_autoencoder
from training.processes import TrainSettings
from training.run import Run

DIGIT_INPUT = ImageInput(height=8, width=8, channels=1, mean=(0.0,), std=(1.0,))
SURFACE_INPUT = ImageInput(height=32, width=32, channels=1, mean=(0.0,), std=(1.0,))
DIGITS = NlnConfig(latent=12, width=8, steps=150, batch_size=64, neighbours=3)
SURFACE = NlnConfig(
    patch=16, stride=8, latent=6, width=8, steps=60, batch_size=64, crops=4, neighbours=3,
    bank_items=300, flips=True, blur=1.0, e_top=(0.05,), d_top=(0.2,),
)  # fmt: skip


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Zeros and sixes, and other digits, [N, 1, 8, 8] in [0, 1]."""
    found = load_digits()
    x = (found.images[:, None] / 16).astype(np.float32)
    normal = np.isin(found.target, (0, 6))
    return x[normal], x[~normal][:150]


def surfaces(n: int, seed: int) -> np.ndarray:
    """Ground metal, roughly: stripes of random brightness with grain."""
    rng = np.random.default_rng(seed)
    stripes = rng.normal(0.5, 0.05, (n, 1, 1, 32)) + rng.uniform(-0.1, 0.1, (n, 1, 1, 1))
    return np.clip(stripes + rng.normal(0, 0.03, (n, 1, 32, 32)), 0, 1).astype(np.float32)


def with_pits(x: np.ndarray) -> np.ndarray:
    pitted = x.copy()
    pitted[:, :, 10:16, 18:24] -= 0.3
    return pitted.clip(0, 1)


def run_in(folder: Path) -> Run:
    return Run(folder, seed=0, train=TrainSettings(accelerator="cpu"), progress=False)


@pytest.fixture(scope="module")
def digit_data() -> PreparedData:
    normal, _ = digits()
    return PreparedData(DIGIT_INPUT, normal[:220], normal[220:280])


@pytest.fixture(scope="module")
def digit_model(digit_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> NlnModel:
    return Nln().fit(DIGITS, digit_data, run_in(tmp_path_factory.mktemp("digits")))


@pytest.fixture(scope="module")
def surface_data() -> PreparedData:
    return PreparedData(SURFACE_INPUT, surfaces(40, 0), surfaces(20, 1))


@pytest.fixture(scope="module")
def surface_model(surface_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> NlnModel:
    return Nln().fit(SURFACE, surface_data, run_in(tmp_path_factory.mktemp("surfaces")))


def opened(model: NlnModel, data: PreparedData, folder: Path) -> NlnDetector:
    """The detector of the files that the model exports."""
    params = Nln().export(model, data, folder)
    artifact = unpublished(folder, "nln", data.spec, params.model_dump())
    return NlnDetector.open(artifact, Runtime(threads=1))


def test_other_digits_score_higher_than_held_out_normal_ones(digit_model: NlnModel) -> None:
    normal, other = digits()
    detector = detector_of(digit_model, (1, 8, 8))
    scores = detector.detect(np.concatenate([normal[280:], other]), maps=False).scores
    held_out = len(normal) - 280
    labels = np.arange(len(scores)) >= held_out
    assert roc_auc_score(labels, scores) > 0.9


def test_held_out_normals_score_mostly_between_0_and_1(
    digit_model: NlnModel, digit_data: PreparedData
) -> None:
    scores = detector_of(digit_model, (1, 8, 8)).detect(digit_data.validation, maps=False).scores
    assert np.quantile(scores, 0.02) > -0.5
    assert np.quantile(scores, 0.9) < 1.2


def test_patches_find_a_pit_and_where_it_is(surface_model: NlnModel) -> None:
    normal = surfaces(20, 2)
    detector = detector_of(surface_model, (1, 32, 32))
    found = detector.detect(np.concatenate([normal, with_pits(normal)]), maps=True)
    assert roc_auc_score(np.arange(40) >= 20, found.scores) > 0.9
    assert found.maps is not None
    pitted = found.maps[20:]
    assert (pitted[:, 10:16, 18:24].mean(axis=(1, 2)) > 1.5 * pitted.mean(axis=(1, 2))).all()


@pytest.mark.parametrize("max_bank_mb", [16.0, 0.0], ids=["bank", "decoder"])
@pytest.mark.parametrize("which", ["digit", "surface"])
def test_exported_files_score_as_the_torch_model_does(
    which: str, max_bank_mb: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: NlnModel = request.getfixturevalue(f"{which}_model")
    data: PreparedData = request.getfixturevalue(f"{which}_data")
    if max_bank_mb == 0:
        params = model.params.model_copy(update={"decoded": "decoder"})
        model = replace(model, bank=replace(model.bank, decoded=None), params=params)
    served = opened(model, data, tmp_path)
    assert (tmp_path / BANK).exists() == (max_bank_mb > 0)
    assert (tmp_path / DECODER).exists() == (max_bank_mb == 0)
    x = np.concatenate([data.validation[:17], data.train[:3]])
    reference = Nln().reference_scores(model, tmp_path, x)
    found = served.detect(x, maps=True)
    np.testing.assert_allclose(found.scores, reference.scores, atol=1e-4)
    np.testing.assert_allclose(found.maps, reference.maps, atol=1e-4)


def test_a_bank_above_its_limit_is_left_out_and_changes_no_score(
    digit_model: NlnModel, digit_data: PreparedData, tmp_path: Path
) -> None:
    config = DIGITS.model_copy(update={"max_bank_mb": 0.001})
    run = run_in(tmp_path)
    run.folder.mkdir(exist_ok=True)
    # the trained weights are taken over, as --resume does
    torch.save(
        {f"network.{k}": v for k, v in digit_model.networks.autoencoder.state_dict().items()},
        run.done("autoencoder"),
    )
    model = Nln().fit(config, digit_data, run)
    assert (digit_model.params.decoded, model.params.decoded) == ("bank", "decoder")
    x = digit_data.validation
    with_bank = detector_of(digit_model, (1, 8, 8)).detect(x, maps=False).scores
    without = detector_of(model, (1, 8, 8)).detect(x, maps=False).scores
    np.testing.assert_allclose(without, with_bank, atol=1e-5)


def test_the_setting_that_finds_synthetic_anomalies_best_is_taken(
    digit_model: NlnModel, digit_data: PreparedData
) -> None:
    config = DIGITS.model_copy(update={"alpha": (0.0, 0.5, 1.0), "gamma": (0.0, 0.5)})
    odd = np.clip(digit_data.validation + 0.5, 0, 1).astype(np.float32)
    data = PreparedData(DIGIT_INPUT, digit_data.train, digit_data.validation, odd)
    params = choose(config, digit_model, data)
    assert len(params.selection) == 12
    best = max(params.selection, key=lambda row: row.auroc)
    assert (params.alpha, params.gamma) == (best.alpha, best.gamma)
    scores = detector_of(replace(digit_model, params=params), (1, 8, 8)).detect
    normal, found = (scores(x, maps=False).scores for x in (digit_data.validation, odd))
    labels = np.repeat([0, 1], [len(normal), len(found)])
    assert roc_auc_score(labels, np.concatenate([normal, found])) == pytest.approx(
        best.auroc, abs=1e-4
    )


def test_without_synthetic_anomalies_the_first_setting_is_taken(
    digit_model: NlnModel, digit_data: PreparedData
) -> None:
    config = DIGITS.model_copy(update={"alpha": (0.25, 0.5), "gamma": (1.0, 0.0)})
    params = choose(config, digit_model, digit_data)
    assert (params.alpha, params.gamma, params.selection) == (0.25, 1.0, [])


def test_a_coreset_keeps_the_odd_one_out(digit_data: PreparedData, tmp_path: Path) -> None:
    odd = 1 - digit_data.train[:1]
    train = np.concatenate([digit_data.train, odd])
    data = PreparedData(DIGIT_INPUT, train, digit_data.validation)
    config = DIGITS.model_copy(update={"bank_items": 12, "bank_choice": "k_centre", "steps": 20})
    model = Nln().fit(config, data, run_in(tmp_path))
    detector = detector_of(model, (1, 8, 8))
    z = detector.embed(odd)
    nearest = np.sqrt(np.square(model.bank.latents.astype(np.float32) - z).sum(axis=1)).min()
    assert len(model.bank.latents) == 12
    assert nearest < 0.01 * np.abs(z).max()


def test_a_lonely_item_of_the_bank_is_known_as_such(digit_model: NlnModel) -> None:
    z = np.concatenate([np.linspace(0, 1, 20), [9.0]]).astype(np.float16)[:, None]
    images = np.broadcast_to(z[:, :, None, None].astype(np.float32) / 9, (21, 1, 8, 8))
    bank = Bank(z, np.ones((2, 21), np.float32), (images * 255).astype(np.uint8))
    model = replace(digit_model, bank=bank, index=faiss.IndexFlatL2(1))
    own = typical_of(
        model, (1, 8, 8), np.arange(21), lambda rows: np.ascontiguousarray(images[rows])
    )
    assert own[0, 20] > 20
    assert own[1, 20] > 20
    assert np.median(own, axis=1) == pytest.approx([1, 1])


def test_patches_of_one_image_keep_each_other_no_company(digit_model: NlnModel) -> None:
    z = np.concatenate([np.linspace(0, 1, 20), np.full(4, 0.5)]).astype(np.float16)[:, None]
    images = np.broadcast_to(z[:, :, None, None].astype(np.float32), (24, 1, 8, 8))
    bank = Bank(z, np.ones((2, 24), np.float32), (images * 255).astype(np.uint8))
    model = replace(digit_model, bank=bank, index=faiss.IndexFlatL2(1))

    def of(owner: np.ndarray) -> np.ndarray:
        return typical_of(model, (1, 8, 8), owner, lambda rows: np.ascontiguousarray(images[rows]))

    twins = np.arange(20, 24)
    np.testing.assert_allclose(of(np.arange(24))[0, twins], 0.1)
    assert (of(np.minimum(np.arange(24), 20))[0, twins] > 0.3).all()


def test_the_index_is_exact_for_few_latents_and_of_lists_for_many() -> None:
    latents = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float16)
    rows = latents.astype(np.float32)
    exact = np.square(rows[:50, None] - rows[None]).sum(axis=2).argsort(axis=1)[:, :5]
    for limits, kind, recall in [
        ({}, "flat", 1.0),
        ({"flat_up_to": 100}, "ivf8", 0.95),
        ({"index": "hnsw"}, "hnsw", 0.95),
        ({"index": "ivfpq"}, "ivfpq", 0.3),
    ]:
        index, found = build_index(latents, NlnConfig(**limits))
        assert found == kind
        _, ids = index.search(rows[:50], 14)
        hits = [len(np.intersect1d(a, b)) for a, b in zip(ids, exact, strict=True)]
        assert np.mean(hits) / 5 >= recall


def test_the_same_seed_gives_the_same_model(
    surface_model: NlnModel, surface_data: PreparedData, tmp_path: Path
) -> None:
    again = Nln().fit(SURFACE, surface_data, run_in(tmp_path))
    np.testing.assert_array_equal(again.bank.latents, surface_model.bank.latents)
    assert again.params == surface_model.params


def test_too_few_images_are_refused_with_the_number_needed(tmp_path: Path) -> None:
    normal, _ = digits()
    data = PreparedData(DIGIT_INPUT, normal[:4], normal[4:8])
    with pytest.raises(InvalidInput, match="at least 5"):
        Nln().fit(DIGITS, data, run_in(tmp_path))


def test_as_few_images_as_are_needed_train(tmp_path: Path) -> None:
    normal, _ = digits()
    data = PreparedData(DIGIT_INPUT, normal[:5], normal[5:7])
    model = Nln().fit(DIGITS.model_copy(update={"steps": 3}), data, run_in(tmp_path))
    assert np.isfinite(detector_of(model, (1, 8, 8)).detect(normal[7:20], maps=True).scores).all()


@pytest.mark.parametrize(
    ("patch", "message"), [(48, "do not fit"), (15, "multiples of 4")], ids=["large", "odd"]
)
def test_patches_that_do_not_fit_are_refused(tmp_path: Path, patch: int, message: str) -> None:
    data = PreparedData(SURFACE_INPUT, surfaces(8, 0), surfaces(4, 1))
    config = SURFACE.model_copy(update={"patch": patch})
    with pytest.raises(InvalidInput, match=message):
        Nln().fit(config, data, run_in(tmp_path))


def test_a_bank_without_enough_neighbours_is_refused() -> None:
    with pytest.raises(ValidationError, match="bank_items must be at least 9"):
        NlnConfig(bank_items=8, neighbours=7)
    NlnConfig(bank_items=9, neighbours=7)


@pytest.mark.parametrize("wrong", [{"alpha": []}, {"latent": 1}, {"bank_choice": "best"}])
def test_hyperparameters_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NlnConfig(**wrong)


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 32, 32), (1, 48, 32), (3, 64, 64), (1, 128, 128)]
)
def test_an_autoencoder_gives_images_of_the_size_it_takes(shape: tuple[int, int, int]) -> None:
    network = build_autoencoder(shape, latent=5, width=8).eval()
    x = torch.rand(2, *shape)
    z = network.encode(x)
    x_hat = network.decode(z)
    assert z.shape == (2, 5)
    assert x_hat.shape == x.shape
    assert 0 <= x_hat.min() <= x_hat.max() <= 1
