"""The pixel diffusion family on small images of real digits, and its parts by arithmetic."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from service.contract.errors import InvalidInput
from service.contract.manifest import ImageInput
from service.contract.preprocess import prepare_images
from service.detectors.pixel_diffusion import PixelDiffusionDetector
from service.runtime import Runtime
from tests.artifacts import unpublished
from training.families.base import PreparedData
from training.families.pixel_diffusion import PixelDiffusion, chain
from training.families.pixel_diffusion.chain import draw_chain
from training.families.pixel_diffusion.config import PixelDiffusionConfig
from training.families.pixel_diffusion.simplex import SimplexNoise, simplex_fields
from training.networks.image_dit import ImageDiT
from training.processes import TrainSettings
from training.run import Run

CPU = TrainSettings(accelerator="cpu")
SPEC = ImageInput(height=16, width=16, channels=1, mean=(0.5,), std=(0.5,))
QUICK = {"batch": 16, "ts": (200, 400), "scale_items": 60}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> PreparedData:
    digits = load_digits()
    images = (digits.images[digits.target != 2] * 15).astype(np.uint8)[..., None]
    return PreparedData(
        SPEC, prepare_images(SPEC, images[:1200]), prepare_images(SPEC, images[1200:1300])
    )


@pytest.mark.parametrize(
    ("system", "more"),
    [
        ("ddpm_ood", {}),
        ("dit", {"steps": 2}),
        ("anoddpm", {"ts": (250,), "steps": 3, "ancestral": True}),
    ],
)
def test_a_system_scores_noise_higher_and_its_files_score_as_torch_does(
    data: PreparedData, tmp_path: Path, system: str, more: dict
) -> None:
    config = PixelDiffusionConfig(system=system, train_steps=150, **(QUICK | more))
    model = PixelDiffusion().fit(config, data, Run(tmp_path / "run", train=CPU, progress=False))
    folder = tmp_path / "artifact"
    folder.mkdir()
    params = PixelDiffusion().export(model, data, folder)
    artifact = unpublished(folder, "pixel_diffusion", SPEC, params.model_dump())
    detector = PixelDiffusionDetector.open(artifact, Runtime(threads=1))
    rng = np.random.default_rng(0)
    noise = rng.uniform(-1, 1, (20, *SPEC.shape)).astype(np.float32)
    x = np.concatenate([data.validation[:20], noise])
    found = detector.detect(x, maps=True)
    assert roc_auc_score(np.repeat([0, 1], 20), found.scores) > 0.8
    reference = PixelDiffusion().reference_scores(model, folder, x)
    scale = np.maximum(1, np.abs(reference.scores))
    assert np.all(np.abs(found.scores - reference.scores) <= 1e-4 * scale)
    np.testing.assert_allclose(found.maps, reference.maps, atol=1e-4)
    parts = [detector.detect(x[i : i + 3], maps=True) for i in range(0, 40, 3)]
    alone = np.concatenate([p.scores for p in parts])
    assert np.all(np.abs(found.scores - alone) <= 1e-5 * scale)


def test_a_second_fit_in_the_same_run_folder_trains_nothing(
    data: PreparedData, tmp_path: Path
) -> None:
    config = PixelDiffusionConfig(system="dit", train_steps=3, **QUICK)
    run = Run(tmp_path, train=CPU, progress=False)
    first = PixelDiffusion().fit(config, data, run)
    written = run.done("denoiser").stat().st_mtime_ns
    again = PixelDiffusion().fit(config, data, Run(tmp_path, train=CPU, progress=False))
    assert run.done("denoiser").stat().st_mtime_ns == written
    np.testing.assert_array_equal(first.chain.error_mean, again.chain.error_mean)
    other = Run(tmp_path / "other", seed=1, train=CPU, progress=False)
    moved = PixelDiffusion().fit(config, data, other)
    assert not np.array_equal(first.chain.error_mean, moved.chain.error_mean)


def test_errors_of_validation_normals_have_mean_zero(data: PreparedData, tmp_path: Path) -> None:
    config = PixelDiffusionConfig(system="dit", train_steps=3, **QUICK)
    model = PixelDiffusion().fit(config, data, Run(tmp_path, train=CPU, progress=False))
    eps = chain.torch_eps(model.network)
    residuals = model.chain.residuals(eps, data.validation[:60], model.clip)
    assert model.chain.scores(residuals).mean() == pytest.approx(0, abs=1e-4)
    assert model.clip == (data.train.min(), data.train.max())


def test_simplex_noise_is_coherent_has_unit_deviation_and_another_seed_gives_other_noise() -> None:
    fields = simplex_fields(24, 32, 32, 8, 0)
    assert fields.std() == pytest.approx(1, abs=0.01)
    assert abs(fields.mean()) < 0.1
    neighbours = np.mean(fields[:, :, 1:] * fields[:, :, :-1])
    distant = np.mean(fields[:, :, 16:] * fields[:, :, :-16])
    assert neighbours > 0.3
    assert abs(distant) < 0.15
    other = simplex_fields(24, 32, 32, 8, 1)
    assert abs(np.mean(fields * other)) < 0.1


def test_training_draws_windows_of_the_stored_fields_that_all_differ() -> None:
    noise = SimplexNoise(16, 16, seed=0)
    torch.manual_seed(0)
    drawn = noise(torch.zeros(64, 3, 16, 16))
    assert drawn.shape == (64, 3, 16, 16)
    assert drawn.std() == pytest.approx(1, abs=0.05)
    flat = drawn.reshape(192, -1)
    assert len(torch.unique(flat, dim=0)) == 192
    every = noise.fields.unfold(1, 16, 1).unfold(2, 16, 1)
    window = drawn[0, 0] * torch.tensor([1, -1])[:, None, None]
    same = [
        torch.isclose(every, candidate).all(dim=(-1, -2)).any()
        for w in window
        for candidate in (w, w.flip(0), w.flip(1), w.flip(0, 1))
    ]
    assert any(same)
    assert not list(noise.state_dict())  # a checkpoint does not carry the fields


def test_the_full_ancestral_chain_has_anoddpm_s_variances() -> None:
    config = PixelDiffusionConfig(system="anoddpm", ts=(50,), steps=50, ancestral=True)
    drawn = draw_chain(config, (1, 2, 2), seed=0).descent
    assert drawn.kicks is not None
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_array_equal(drawn.t[0], np.arange(50, 0, -1))
    np.testing.assert_allclose(drawn.kicks.size[0, :-1], np.sqrt(betas[drawn.t[0, :-1]]), rtol=1e-3)
    assert drawn.kicks.size[0, -1] == 0
    # the posterior mean: (signal' beta x_0 + sqrt(alpha) sigma'^2 x_t) / sigma^2
    i = 20
    beta = betas[drawn.t[0, i]]
    of_x_t = drawn.kicks.direction[0, i] / drawn.sigma[0, i]
    expected = np.sqrt(1 - beta) * drawn.sigma[0, i + 1] ** 2 / drawn.sigma[0, i] ** 2
    assert of_x_t == pytest.approx(expected, rel=1e-3)


def test_a_transformer_begins_by_predicting_no_noise_and_knows_places_and_times() -> None:
    torch.manual_seed(0)
    network = ImageDiT((3, 8, 16), "cpu").eval()
    x, t = torch.randn(2, 3, 8, 16), torch.tensor([5, 500])
    assert not network(x, t).any()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    eps = network(x, t)
    assert eps.shape == x.shape
    assert not torch.allclose(network(x, t + 100), eps, atol=1e-3)
    moved = network(x.roll(4, dims=3), t).roll(-4, dims=3)
    assert not torch.allclose(moved, eps, atol=1e-3)


@pytest.mark.parametrize(("system", "multiple"), [("ddpm_ood", 8), ("dit", 4)])
def test_an_image_size_that_the_network_cannot_take_is_refused(
    data: PreparedData, tmp_path: Path, system: str, multiple: int
) -> None:
    spec = SPEC.model_copy(update={"height": 30, "width": 30})
    x = np.zeros((4, 1, 30, 30), dtype=np.float32)
    run = Run(tmp_path, train=CPU, progress=False)
    with pytest.raises(InvalidInput, match=rf"30 x 30.*multiples of {multiple}.*pad"):
        PixelDiffusion().fit(PixelDiffusionConfig(system=system), PreparedData(spec, x, x), run)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"ts": [0]}, r"1\.\.999"),
        ({"ts": [50], "steps": 60}, "lowest of ts"),
        ({"system": "gan"}, "system"),
        ({"epochs": 3}, "epochs"),
    ],
)
def test_a_contradictory_config_says_what_is_wrong(members: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PixelDiffusionConfig.model_validate(members)


def test_noise_is_drawn_from_the_seed_alone() -> None:
    config = PixelDiffusionConfig(system="anoddpm", noises=2)
    one, two = (draw_chain(config, (1, 8, 8), seed=3) for _ in range(2))
    for first, second in zip(
        dataclasses.astuple(one)[1:], dataclasses.astuple(two)[1:], strict=True
    ):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(one.noise[0], one.noise[1])
