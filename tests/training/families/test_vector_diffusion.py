"""Diffusion models of vectors: each system on real vectors, and the arithmetic behind its score."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible
from service.contract.manifest import Manifest, VectorInput
from service.contract.preprocess import prepare_vectors
from service.contract.store import Artifact
from service.detectors.graph import GRAPH, RESIDUAL_GRAPH
from service.detectors.vector_diffusion import (
    CHAIN,
    CHAINS,
    VectorDiffusionDetector,
    VectorDiffusionParams,
)
from service.runtime import Runtime
from training.export import export_onnx
from training.families.base import PreparedData
from training.families.vector_diffusion import FittedVectorDiffusion, VectorDiffusion
from training.families.vector_diffusion.config import VectorDiffusionConfig
from training.families.vector_diffusion.scores import Chain, OneShotScore, TimeResidual, TimeScore
from training.families.vector_diffusion.stages import T_DENOISING, alpha_bars, betas
from training.networks.tabular_denoiser import TabularDenoiser, VectorDenoiser
from training.networks.time_estimator import TimeEstimator
from training.networks.vector_dit import VectorDiT
from training.run import Run

MLP = {"steps": 300, "learning_rate": 1e-3}
SMALL = {
    "ddpm": {"system": "ddpm", "blocks": 1, **MLP},
    "ddpm clean_chain": {"system": "ddpm", "blocks": 1, "score": "clean_chain", "start": 60, **MLP},
    "dit": {"system": "dit", "width": 32, "blocks": 1, "steps": 120, "learning_rate": 3e-3},
    "dte_categorical": {"system": "dte_categorical", **MLP},
    "dte_inverse_gamma": {"system": "dte_inverse_gamma", **MLP},
}


def digits() -> tuple[PreparedData, np.ndarray, np.ndarray]:
    """8 x 8 digits as 64 numbers: zeros are normal; (data, test vectors, their labels)."""
    x, y = load_digits(return_X_y=True)
    zeros, others = x[y == 0], x[y != 0][:60]
    mean, std = zeros[:100].mean(axis=0), zeros[:100].std(axis=0)
    std[std == 0] = 1.0
    spec = VectorInput(features=64, mean=tuple(mean), std=tuple(std))
    data = PreparedData(
        spec, prepare_vectors(spec, zeros[:100]), prepare_vectors(spec, zeros[100:130])
    )
    test = prepare_vectors(spec, np.concatenate([zeros[130:], others]))
    return data, test, np.repeat([0, 1], [len(zeros) - 130, 60])


def opened(folder: Path, params: VectorDiffusionParams) -> VectorDiffusionDetector:
    files = dict.fromkeys((path.name for path in folder.iterdir()), "")
    numbers = params.model_dump(mode="json")
    manifest = Manifest.model_construct(params=numbers, input=digits()[0].spec, files=files)
    return VectorDiffusionDetector.open(Artifact(folder, manifest, ""), Runtime(threads=1))


def fitted(
    folder: Path, config: VectorDiffusionConfig, data: PreparedData
) -> Callable[[np.ndarray], np.ndarray]:
    """x -> scores of a model in torch."""
    model = VectorDiffusion().fit(config, data, Run(folder, progress=False))
    return lambda x: VectorDiffusion().reference_scores(model, folder, x).scores


@pytest.mark.parametrize("which", SMALL)
def test_other_digits_score_higher_and_the_exported_files_agree(tmp_path: Path, which: str) -> None:
    data, test, labels = digits()
    family = VectorDiffusion()
    config = VectorDiffusionConfig.model_validate(SMALL[which])
    model = family.fit(config, data, Run(tmp_path / "run", progress=False))
    params = family.export(model, data, tmp_path)
    reference = family.reference_scores(model, tmp_path, test)
    assert roc_auc_score(labels, reference.scores) > 0.85

    detector = opened(tmp_path, params)
    found = detector.detect(test, maps=True)
    np.testing.assert_allclose(found.scores, reference.scores, rtol=1e-4, atol=1e-4)
    assert found.maps is not None
    assert reference.maps is not None
    assert found.maps.shape == test.shape
    assert found.maps.dtype == np.float32
    assert (found.maps >= 0).all()
    np.testing.assert_allclose(found.maps, reference.maps, rtol=1e-3, atol=1e-3)

    alone = np.concatenate([detector.detect(row[None], maps=False).scores for row in test[:5]])
    np.testing.assert_allclose(alone, found.scores[:5], rtol=1e-4, atol=1e-5)
    if params.score not in CHAINS:  # their steps move other pixels along
        assert _blames(detector, data.validation)


def test_only_a_map_runs_the_graph_of_the_map(tmp_path: Path) -> None:
    data, test, _ = digits()
    family = VectorDiffusion()
    config = VectorDiffusionConfig(system="dte_categorical", steps=3)
    model = family.fit(config, data, Run(tmp_path / "run", progress=False))
    params = family.export(model, data, tmp_path)
    assert Runtime(threads=1).session(tmp_path / GRAPH).outputs == ("score",)
    expected = family.reference_scores(model, tmp_path, test)
    found = opened(tmp_path, params).detect(test, maps=True)
    assert found.maps is not None
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-3, atol=1e-5)

    (tmp_path / RESIDUAL_GRAPH).write_bytes((tmp_path / GRAPH).read_bytes())
    with pytest.raises(ArtifactIncompatible, match="residual"):
        opened(tmp_path, params)


class Both(torch.nn.Module):
    """Time and map in one graph, as the first release wrote it."""

    def __init__(self, net: TimeEstimator) -> None:
        super().__init__()
        self.score, self.residual = TimeScore(net), TimeResidual(net)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.score(x), self.residual(x)


def test_an_artifact_of_one_graph_goes_on_being_read(tmp_path: Path) -> None:
    _, test, _ = digits()
    both = Both(TimeEstimator(64, 7)).eval()
    x = torch.from_numpy(test)
    export_onnx(both, {"x": x[:2]}, ("score", "residual"), tmp_path / GRAPH)
    params = VectorDiffusionParams(system="dte_categorical", score="time")
    found = opened(tmp_path, params).detect(test, maps=True)
    with torch.no_grad():
        scores, residual = both(x)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.maps, residual, rtol=1e-3, atol=1e-5)


def _blames(detector: VectorDiffusionDetector, normal: np.ndarray) -> bool:
    """Whether a pixel far from its usual value is mostly the one that is blamed."""
    pixel = 20
    moved = normal.copy()
    moved[:, pixel] = 6.0
    before, after = (detector.detect(x, maps=True) for x in (normal, moved))
    assert before.maps is not None
    assert after.maps is not None
    rise = (after.maps - before.maps).mean(axis=0)
    return int(rise.argmax()) == pixel


def test_a_few_vectors_of_two_features_are_enough(tmp_path: Path) -> None:
    normal = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    spec = VectorInput(features=2, mean=(0.0, 0.0), std=(1.0, 1.0))
    data = PreparedData(spec, normal, normal[:1])
    for system in ("ddpm", "dit", "dte_categorical", "dte_inverse_gamma"):
        config = VectorDiffusionConfig(system=system, steps=3, width=16, blocks=1)
        scores = fitted(tmp_path / system, config, data)
        assert np.isfinite(scores(normal)).all()


@pytest.mark.parametrize("which", ["ddpm", "dte_inverse_gamma"])
def test_the_same_seed_gives_the_same_scores(tmp_path: Path, which: str) -> None:
    data, test, _ = digits()
    config = VectorDiffusionConfig.model_validate({**SMALL[which], "steps": 40})
    first, second = (fitted(tmp_path / run, config, data)(test) for run in "ab")
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bins", [0, 7])
@given(features=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_the_hand_written_gradient_is_that_of_autograd(bins: int, features: int, seed: int) -> None:
    torch.manual_seed(seed)
    net = TimeEstimator(features, bins, (16, 8)).eval()
    x = torch.randn(5, features, requires_grad=True)
    (gradient,) = torch.autograd.grad(net.scalar(net(x)).sum(), x)
    torch.testing.assert_close(net.gradient(x), gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bins", [0, 7])
def test_contributions_sum_to_the_score_above_that_of_the_mean(bins: int) -> None:
    torch.manual_seed(0)
    net = TimeEstimator(30, bins).eval()
    x = 5 * torch.randn(20, 30)
    with torch.no_grad():
        rise = net.scalar(net(x)) - net.scalar(net(torch.zeros(1, 30)))
        total = net.contributions(x).sum(dim=1)
    assert float((total - rise).abs().max()) < 0.1 * float(rise.abs().max())


def test_what_features_add_to_the_one_shot_score_is_the_score_plus_a_constant() -> None:
    torch.manual_seed(0)
    net = TabularDenoiser(10).eval()
    score = OneShotScore(net, (10, 100), 2, 10, seed=0).eval()
    score.scale(torch.randn(50, 10))
    with torch.no_grad():
        scores, residual = score(torch.randn(8, 10))
    difference = residual.mean(dim=1) - scores
    torch.testing.assert_close(difference, difference[:1].expand(8), rtol=1e-4, atol=1e-4)


class Origin(VectorDenoiser):
    """The best denoiser where every clean vector is 0: all there is, is noise."""

    def __init__(self) -> None:
        super().__init__()
        alpha_bar = torch.tensor(alpha_bars(T_DENOISING), dtype=torch.float32)
        self.sigma = torch.nn.Buffer((1 - alpha_bar).sqrt())

    def condition(self, t: torch.Tensor) -> torch.Tensor:
        return self.sigma[t][:, None]

    def denoise(self, x_t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return x_t / condition


def test_both_chains_carry_a_vector_to_where_the_denoiser_says_the_clean_ones_are() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for chain in (Chain.ancestral(250, 6, seed=1), Chain.strided(250, 10, 6)):
        torch.testing.assert_close(chain.residual(Origin(), x), x**2, rtol=1e-3, atol=1e-4)
    assert Chain.strided(250, 10, 6).t.tolist() == list(range(249, 0, -25))


def test_the_ancestral_chain_is_that_of_the_source() -> None:
    chain = Chain.ancestral(3, 2, seed=0)
    beta, alpha_bar = betas(T_DENOISING), alpha_bars(T_DENOISING)
    assert chain.t.tolist() == [2, 1, 0]
    assert (chain.jitter[-1] == 0).all()  # none at the last time
    for i, t in enumerate(chain.t):
        weight = beta[t] / np.sqrt(1 - alpha_bar[t])
        np.testing.assert_allclose(chain.keep[i], 1 / np.sqrt(1 - beta[t]), rtol=1e-6)
        np.testing.assert_allclose(chain.pull[i], -weight / np.sqrt(1 - beta[t]), rtol=1e-5)


@given(features=st.integers(1, 70), tokens=st.integers(1, 16))
@settings(max_examples=15)
def test_a_transformer_takes_vectors_of_any_length(features: int, tokens: int) -> None:
    net = VectorDiT(features, tokens, width=16, depth=1, heads=2).eval()
    with torch.no_grad():
        eps = net(torch.ones(2, features), torch.tensor([0, 999]))
    assert eps.shape == (2, features)
    assert net.tokens <= tokens


def test_settings_that_contradict_each_other_are_refused() -> None:
    for wrong in (
        {"system": "dte_categorical", "score": "clean_chain"},
        {"system": "ddpm", "ts": (1000,)},
        {"system": "ddpm", "start": 5, "ddim_steps": 6},
        {"system": "dit", "width": 16, "heads": 3},
    ):
        with pytest.raises(ValidationError):
            VectorDiffusionConfig.model_validate(wrong)


def test_a_broken_chain_is_refused(tmp_path: Path) -> None:
    data, _, _ = digits()
    chain = Chain.strided(9, 3, 64)
    model = FittedVectorDiffusion(
        VectorDiffusionConfig(system="ddpm", score="clean_ddim"), Origin(), chain
    )
    params = VectorDiffusion().export(model, data, tmp_path)
    opened(tmp_path, params)
    arrays = dataclasses.asdict(chain)
    np.savez(tmp_path / CHAIN, **{**arrays, "keep": chain.keep[:-1]})
    with pytest.raises(ArtifactCorrupt, match="fit each other"):
        opened(tmp_path, params)
    np.savez(tmp_path / CHAIN, t=chain.t)
    with pytest.raises(ArtifactCorrupt, match="lacks"):
        opened(tmp_path, params)
    np.savez(tmp_path / CHAIN, **{**arrays, "jitter": chain.jitter[:, :1]})
    with pytest.raises(ArtifactIncompatible, match="jitter"):
        opened(tmp_path, params)
    with pytest.raises(ArtifactIncompatible):
        opened(tmp_path, params.model_copy(update={"noises": 0}))
