"""The diffusion family end to end on small images of real digits, and its parts by arithmetic."""

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from service.contract.errors import InvalidInput
from service.contract.manifest import (
    ImageInput,
)
from service.contract.preprocess import prepare_images
from service.detectors.diffusion import DiffusionDetector, DiffusionParams
from service.runtime import Runtime
from tests.artifacts import unpublished
from training.config import load_data, make_config, prepare
from training.data.synthetic import synthetic_anomalies
from training.denoising import alpha_bars, ddim_levels
from training.export import fold_batchnorm
from training.families.base import PreparedData
from training.families.diffusion import Diffusion, FittedDiffusion
from training.families.diffusion.config import DiffusionConfig
from training.families.diffusion.scores import VARIANTS, ddim
from training.families.diffusion.stages import CompressionStage
from training.networks import latent_unet
from training.networks.edges import EdgeMap
from training.networks.pair_classifier import PairClassifier
from training.networks.vq import LatentDecoder, nearest_codes, vq_model
from training.processes import TrainSettings
from training.run import ArrayBatches, Run

CPU = TrainSettings(accelerator="cpu")

SPEC = ImageInput(height=16, width=16, channels=1, mean=(0.5,), std=(0.5,))
CONFIG = DiffusionConfig(
    levels=2,
    codes=32,
    vq_steps=60,
    vq_batch=16,
    vq_lr=3e-3,
    unet_steps=60,
    unet_batch=16,
    ddim_steps=2,
    classifier_steps=10,
    classifier_batch=16,
    classifier_width=4,
    pairs=32,
    samples=16,
    sample_steps=2,
    selection_items=100,
)


@pytest.fixture(scope="module", autouse=True)
def narrow_unet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        size = latent_unet.UNetSize((32, 32), 1)
        patch.setitem(latent_unet.UNET_SIZES, "cpu", size)
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="module")
def data() -> PreparedData:
    digits = load_digits()
    images = (digits.images[digits.target != 2] * 15).astype(np.uint8)[..., None]
    train, validation = images[:1200], images[1200:1400]
    synthetic, _ = synthetic_anomalies(validation, 0)
    prepared = (prepare_images(SPEC, part) for part in (train, validation, synthetic))
    return PreparedData(SPEC, *prepared)


@dataclass
class Fitted:
    run: Run
    model: FittedDiffusion
    params: DiffusionParams
    folder: Path


@pytest.fixture(scope="module")
def fitted(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    root = tmp_path_factory.mktemp("diffusion")
    run = Run(root / "run", seed=0, train=CPU, progress=False)
    model = Diffusion().fit(CONFIG, data, run)
    folder = root / "artifact"
    folder.mkdir()
    return Fitted(run, model, Diffusion().export(model, data, folder), folder)


def detector(fitted: Fitted, variant: str) -> DiffusionDetector:
    params = {**fitted.params.model_dump(), "variant": variant}
    artifact = unpublished(fitted.folder, "diffusion", SPEC, params)
    return DiffusionDetector.open(artifact, Runtime(threads=1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_exported_files_score_as_torch_does_whatever_the_batch(
    fitted: Fitted, data: PreparedData, variant: str
) -> None:
    x = np.concatenate([data.validation[:12], data.synthetic[:12]])
    model = FittedDiffusion(CONFIG, fitted.model.nets, fitted.model.chain, variant, {})
    reference = Diffusion().reference_scores(model, fitted.folder, x)
    opened = detector(fitted, variant)
    for size in (1, 2, 3, 8, 17):
        parts = [opened.detect(x[i : i + size], maps=True) for i in range(0, len(x), size)]
        scores = np.concatenate([p.scores for p in parts])
        assert np.all(np.abs(scores - reference.scores) <= 1e-4 * np.maximum(1, np.abs(scores)))
        maps = np.concatenate([p.maps for p in parts])
        np.testing.assert_allclose(maps, reference.maps, atol=1e-3)
        if size == 1:
            singles = scores
        assert np.all(np.abs(scores - singles) <= 1e-5 * np.maximum(1, np.abs(singles)))


@pytest.mark.parametrize("variant", ["one_shot", "latent_reconstruction"])
def test_in_int8_scores_hardly_move_and_depend_on_no_batch(
    fitted: Fitted,
    data: PreparedData,
    variant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.families.diffusion._RANGES_FROM", 8)
    config = fitted.model.config.model_copy(update={"precision": "int8"})
    model = dataclasses.replace(fitted.model, config=config, variant=variant)
    without = {"export_onnx": lambda *_, **__: None, "simplify": lambda _: None}
    for name, nothing in without.items():  # the graphs are there, and exporting them takes long
        monkeypatch.setattr(f"training.families.diffusion.{name}", nothing)
    shutil.copytree(fitted.folder, tmp_path, dirs_exist_ok=True)
    params = Diffusion().export(model, data, tmp_path)
    assert (params.precision, fitted.params.precision) == ("int8", "float32")
    unet = onnx.load(str(tmp_path / "unet.onnx")).graph
    assert any(weight.data_type == onnx.TensorProto.INT8 for weight in unet.initializer)
    artifact = unpublished(tmp_path, "diffusion", SPEC, params.model_dump())
    opened = DiffusionDetector.open(artifact, Runtime(threads=1))
    x = np.concatenate([data.validation[:32], data.synthetic[:32]])
    exact = Diffusion().reference_scores(model, tmp_path, x).scores
    found = opened.detect(x, maps=False).scores
    assert np.all(np.abs(found - exact) <= 0.1 * np.maximum(1, np.abs(exact)))
    assert np.corrcoef(found, exact)[0, 1] > 0.99
    alone = [opened.detect(x[i : i + 1], maps=False).scores[0] for i in range(9)]
    np.testing.assert_allclose(alone, found[:9], rtol=1e-5, atol=1e-5)


def test_noise_scores_higher_than_digits(fitted: Fitted, data: PreparedData) -> None:
    rng = np.random.default_rng(0)
    noise = rng.uniform(-1, 1, (50, *SPEC.shape)).astype(np.float32)
    x = np.concatenate([data.validation[:50], noise])
    found = detector(fitted, fitted.params.variant).detect(x, maps=False)
    assert roc_auc_score(np.repeat([0, 1], 50), found.scores) > 0.9


def test_the_variant_is_the_best_on_synthetic_anomalies_and_the_choice_is_recorded(
    fitted: Fitted,
) -> None:
    selection = fitted.params.selection
    assert set(selection) == set(VARIANTS)
    assert selection[fitted.params.variant] == max(selection.values())
    assert fitted.run.metrics["selection"] == selection


def test_a_second_fit_in_the_same_run_folder_trains_nothing_and_gives_the_same_model(
    fitted: Fitted, data: PreparedData
) -> None:
    stages = ["vq", "unet", "classifier"]
    written = [fitted.run.done(stage).stat().st_mtime_ns for stage in stages]
    run = Run(fitted.run.folder, seed=0, train=CPU, progress=False)
    again = Diffusion().fit(CONFIG, data, run)
    assert [run.done(stage).stat().st_mtime_ns for stage in stages] == written
    assert again.selection == fitted.model.selection
    x = data.validation[:4]
    one, two = (
        Diffusion().reference_scores(model, fitted.folder, x) for model in (again, fitted.model)
    )
    np.testing.assert_array_equal(one.scores, two.scores)


def test_without_synthetic_anomalies_the_one_shot_error_is_the_score(
    fitted: Fitted, data: PreparedData, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(fitted.run.folder, folder, ignore=shutil.ignore_patterns("selection.json"))
    run = Run(folder, seed=0, train=CPU, progress=False)
    unselected = PreparedData(SPEC, data.train, data.validation)
    model = Diffusion().fit(CONFIG, unselected, run)
    assert model.variant == "one_shot"
    assert model.selection == {}


def test_the_same_seed_gives_the_same_scores_and_another_seed_does_not(
    data: PreparedData, tmp_path: Path
) -> None:
    quick = CONFIG.model_copy(update={"vq_steps": 3, "unet_steps": 3, "classifier": False})
    few = PreparedData(SPEC, data.train[:64], data.validation[:8])
    chains = [
        Diffusion().fit(quick, few, Run(tmp_path / name, seed, train=CPU, progress=False)).chain
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    np.testing.assert_array_equal(chains[0].pair_mean, chains[1].pair_mean)
    assert not np.array_equal(chains[0].pair_mean, chains[2].pair_mean)


def test_an_image_size_that_cannot_be_halved_is_refused_by_its_numbers(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"height": 28, "width": 28})
    x = np.zeros((4, 1, 28, 28), dtype=np.float32)
    run = Run(tmp_path, train=CPU, progress=False)
    with pytest.raises(InvalidInput, match=r"28 x 28.*multiples of 8.*pad"):
        Diffusion().fit(DiffusionConfig(), PreparedData(spec, x, x), run)


@pytest.mark.parametrize(("side", "levels"), [(32, 3), (64, 3), (128, 4)])
def test_larger_images_are_compressed_more_unless_told_otherwise(side: int, levels: int) -> None:
    assert DiffusionConfig().for_size(side, side).levels == levels
    assert DiffusionConfig(levels=2).for_size(side, side).levels == 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"perceptual_weight": 1.0}, "needs adversarial"),
        ({"variant": "classifier", "classifier": False}, "needs classifier"),
        ({"ts": [0]}, r"1\.\.999"),
        ({"decoder_target": "edges", "adversarial": True}, "compares images"),
        ({"epochs": 3}, "epochs"),
    ],
)
def test_a_contradictory_config_says_what_is_wrong(members: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiffusionConfig.model_validate(members)


def test_the_schedule_is_that_of_latent_diffusion() -> None:
    alpha_bar = alpha_bars()
    assert len(alpha_bar) == 1000
    assert np.all(np.diff(alpha_bar) < 0)
    assert np.sqrt(1 - alpha_bar[199]) == pytest.approx(0.62, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(t0=st.integers(1, 999), steps=st.integers(1, 10))
def test_ddim_with_a_perfect_denoiser_gives_the_clean_latent_back(t0: int, steps: int) -> None:
    rng = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, 3, 4, 4, generator=rng), torch.randn(2, 3, 4, 4, generator=rng)
    t, signal, sigma = ddim_levels(t0, steps)

    class Oracle(torch.nn.Module):
        def forward(self, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return noise

    z_t = float(signal[0]) * z + float(sigma[0]) * noise
    torch.testing.assert_close(ddim(Oracle(), z_t, t, signal, sigma), z, atol=1e-4, rtol=1e-4)


def test_decoding_looks_up_the_nearest_code_and_does_not_jump_at_a_tie() -> None:
    vq = vq_model(1, "cpu", 2, 3, 16).eval()
    torch.nn.init.normal_(vq.quantize.embedding.weight)
    codes = vq.quantize.embedding.weight.detach()
    decoder = LatentDecoder(vq, torch.zeros(3), 1.0, 1e-3)
    near = codes.T.reshape(1, 3, 4, 4) + 0.01
    with torch.no_grad():
        expected = vq.decoder(vq.post_quant_conv(nearest_codes(near, codes)))
        torch.testing.assert_close(decoder(near), expected, atol=1e-4, rtol=1e-4)
        tie = ((codes[0] + codes[1]) / 2).view(1, 3, 1, 1).expand(1, 3, 4, 4)
        step = 1e-6 * (codes[1] - codes[0]).view(1, 3, 1, 1)
        torch.testing.assert_close(decoder(tie - step), decoder(tie + step), atol=0.01, rtol=0)


def test_merging_batch_normalisation_leaves_the_pair_logits() -> None:
    classifier = PairClassifier(2, 4)
    x, x_hat = torch.randn(8, 1, 16, 16), torch.randn(8, 1, 16, 16)
    classifier(x, x_hat)  # running statistics move
    classifier.eval()
    before = classifier(x, x_hat)
    fold_batchnorm(classifier)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in classifier.modules())
    torch.testing.assert_close(classifier(x, x_hat), before, atol=1e-5, rtol=1e-5)


def test_adversarial_compression_trains_both_sides(data: PreparedData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vq = vq_model(1, "cpu", 2, 3, 16)
    x = data.train[:24]
    twice_as_wide = np.repeat(np.repeat(x, 2, axis=2), 2, axis=3)
    stage = CompressionStage(vq, 8, 1e-3, adversarial=True, perceptual_weight=1.0)
    both = (stage.discriminator.head.weight, vq.decoder.conv_in.weight)
    before = [p.detach().clone() for p in both]
    run = Run(tmp_path, train=CPU, progress=False)
    run.train_stage("vq", stage, ArrayBatches(twice_as_wide, batch_size=6, seed=0), 2)
    assert not any(torch.equal(p, q) for p, q in zip(before, both, strict=True))
    assert all(torch.isfinite(p).all() for p in stage.parameters())


def test_edges_are_where_brightness_changes_and_a_flat_image_has_none() -> None:
    x = torch.zeros(3, 3, 8, 8)
    x[0, :, :, 4:] = 1.0
    x[1] = 0.7
    x[2, :, :, 4:] = 0.2
    edges = EdgeMap(3)(x)
    expected = torch.zeros(8, 8)
    expected[:, 3:5] = 1.0
    torch.testing.assert_close(edges[0, 0], expected, atol=1e-5, rtol=0)
    assert edges[1].abs().max() < 1e-3
    torch.testing.assert_close(edges[2], edges[0], atol=1e-5, rtol=0)


def test_several_normal_classes_of_colour_images_and_a_decoder_of_edges(tmp_path: Path) -> None:
    """Many against many, as CIFAR-10 is laid out: five classes normal, five novel."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{kind}_{split}": (
            rng.integers(0, 256, (n, 32, 32, 3), np.uint8) if kind == "x" else np.arange(n) % 10
        )
        for split, n in (("train", 300), ("test", 60))
        for kind in ("x", "y")
    }
    np.savez(tmp_path / "cifar10.npz", **arrays)
    model = CONFIG.model_dump() | {
        "levels": 3,
        "decoder_target": "edges",
        "variant": "classifier",
        "vq_steps": 4,
        "unet_steps": 2,
        "classifier_steps": 2,
        "starts": 2,
    }
    members = {
        "name": "many",
        "family": "diffusion",
        "data": {"name": "cifar10", "normal": [0, 1, 2, 3, 4]},
        "model": model,
    }
    config = make_config(members, "test")
    loaded = load_data(config, tmp_path)
    np.testing.assert_array_equal(loaded.test_labels, np.arange(60) % 10 > 4)
    spec, prepared = prepare(config, loaded)
    run = Run(tmp_path / "run", train=CPU, progress=False)
    fitted = Diffusion().fit(DiffusionConfig.model_validate(config.model), prepared, run)
    folder = tmp_path / "artifact"
    folder.mkdir()
    params = Diffusion().export(fitted, prepared, folder)
    assert (params.variant, params.decoder_target) == ("classifier", "edges")
    opened = DiffusionDetector.open(
        unpublished(folder, "diffusion", spec, params.model_dump()), Runtime(threads=1)
    )
    x = prepare_images(spec, loaded.test[:5])
    found = opened.detect(x, maps=True)
    reference = Diffusion().reference_scores(fitted, folder, x)
    np.testing.assert_allclose(found.scores, reference.scores, atol=1e-4)
    np.testing.assert_allclose(found.maps, reference.maps, atol=1e-3)
    assert found.maps.shape == (5, 32, 32)
    alone = [opened.detect(x[i : i + 1], maps=False).scores[0] for i in range(5)]
    np.testing.assert_allclose(alone, found.scores, atol=1e-5)
