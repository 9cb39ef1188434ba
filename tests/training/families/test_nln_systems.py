"""The systems of the NLN paper on small digits: trained, read in two ways, exported, resumed."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible, InvalidInput
from service.contract.manifest import ImageInput
from service.detectors.nln import NlnDetector
from service.detectors.nln_artifact import BANK, FEATURE_GRAPH, FEATURES
from service.runtime import Runtime
from tests.artifacts import unpublished
from training.families.base import PreparedData
from training.families.nln import Nln, NlnConfig, NlnModel
from training.families.nln.adversarial import Discriminative, told_apart, training_of
from training.families.nln.bank import detector_of
from training.families.nln.config import first_params
from training.networks.autoencoder import VariationalAutoencoder, build_autoencoder
from training.processes import TrainSettings
from training.run import Interrupted, Run

SPEC = ImageInput(height=8, width=8, channels=1, mean=(0.0,), std=(1.0,))
SETTINGS: dict[str, Any] = {
    "latent": 12, "width": 16, "batch_size": 20, "neighbours": 3,
    "learning_rate": 2e-2, "adversarial_learning_rate": 3e-3,
    "alpha": (0.8,), "gamma": (0.0,), "e_top": (1.0,), "d_top": (1.0,),
}  # fmt: skip
STEPS = {"ae": 80, "vae": 160, "aae": 100, "ae_res": 90, "ae_con": 110}
# (system, con_mode), and which files hold features; the others' are those of ae, see ``test_nln``
READ_OUTS = {
    ("ae_res", "code"): {FEATURE_GRAPH, FEATURES},
    ("ae_con", "code"): {FEATURE_GRAPH},
    ("ae_con", "paper"): {FEATURES},
}
every_read_out = pytest.mark.parametrize(
    ("system", "con_mode"), READ_OUTS, ids=["-".join(r) for r in READ_OUTS]
)


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Zeros and sixes, and other digits, [N, 1, 8, 8] in [0, 1]."""
    found = load_digits()
    x = (found.images[:, None] / 16).astype(np.float32)
    normal = np.isin(found.target, (0, 6))
    return x[normal], x[~normal][:150]


@pytest.fixture(scope="module")
def data() -> PreparedData:
    normal, _ = digits()
    return PreparedData(SPEC, normal[:220], normal[220:280])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def config_of(system: str = "ae", **settings: Any) -> NlnConfig:
    return NlnConfig.model_validate(
        {**SETTINGS, "system": system, "steps": STEPS[system], **settings}
    )


def fitted(folder: Path, data: PreparedData, **settings: Any) -> NlnModel:
    """Of a run folder that may hold the training already."""
    run = Run(folder, seed=0, train=TrainSettings(accelerator="cpu"), progress=False)
    return Nln().fit(config_of(**settings), data, run)


def rebuilt(model: NlnModel, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.networks.decode(model.networks.encode(x))


def from_standard_normal(model: NlnModel, x: Tensor) -> float:
    """Divergence of the latents' moments from those of N(0, 1), mean over coordinates."""
    with torch.no_grad():
        z = model.networks.encode(x)
    return float(0.5 * (z.mean(0) ** 2 + z.var(0) - 1 - z.var(0).log()).mean())


def served_from(files: Path, model: NlnModel) -> NlnDetector:
    """The detector of files that the model exported."""
    artifact = unpublished(files, "nln", SPEC, model.params.model_dump())
    return NlnDetector.open(artifact, Runtime(threads=1))


@pytest.mark.parametrize("system", STEPS)
def test_held_out_images_are_rebuilt_far_better_than_by_the_mean_image(
    system: str, folders: Path, data: PreparedData
) -> None:
    x = torch.from_numpy(data.validation)
    error = (rebuilt(fitted(folders / system, data, system=system), x) - x).square().mean()
    mean_image = torch.from_numpy(data.train).mean(dim=0)
    assert error < 0.75 * (mean_image - x).square().mean()  # untrained: 3 times as much


def test_adversarial_latents_are_distributed_almost_as_they_should_be(
    folders: Path, data: PreparedData
) -> None:
    x = torch.from_numpy(data.validation)
    plain, adversarial = (
        from_standard_normal(fitted(folders / system, data, system=system), x)
        for system in ("ae", "aae")
    )
    assert adversarial < 1  # untrained: 3.3
    assert adversarial < 0.5 * plain


def test_a_discriminator_of_images_tells_held_out_ones_from_their_reconstructions(
    folders: Path, data: PreparedData
) -> None:
    model, config = fitted(folders / "ae_res", data, system="ae_res"), config_of("ae_res")
    module = training_of(config, first_params(config, SPEC), channels=1, steps=1)
    assert isinstance(module, Discriminative)
    module.load_state_dict(torch.load(folders / "ae_res" / "ae_res.done.pt"))
    x, discriminator = torch.from_numpy(data.validation), module.discriminator.eval()
    with torch.no_grad():
        real, fake = discriminator(x), discriminator(rebuilt(model, x))
        torch.testing.assert_close(model.networks.features(x), discriminator.encoder(x))
    labels = np.repeat([1, 0], len(x))
    assert roc_auc_score(labels, torch.cat([real, fake])) > 0.8
    assert told_apart(real, fake) < 0.5  # at random: 0.69


Exported = Callable[[str, str], tuple[NlnModel, Path]]


@pytest.fixture(scope="module")
def exported(folders: Path, data: PreparedData) -> Exported:
    """A read-out's model and a folder of its files, ``params`` among them as the model has them."""

    @cache
    def of(system: str, con_mode: str) -> tuple[NlnModel, Path]:
        model = fitted(folders / system, data, system=system, con_mode=con_mode, gamma=(0.5,))
        files = folders / f"{system}-{con_mode}"
        files.mkdir()
        assert Nln().export(model, data, files) == model.params
        return model, files

    return of


@every_read_out
def test_exported_files_score_as_torch_does(system: str, con_mode: str, exported: Exported) -> None:
    model, files = exported(system, con_mode)
    served = served_from(files, model)
    found_files = {f for f in (FEATURE_GRAPH, FEATURES) if (files / f).exists()}
    assert found_files == READ_OUTS[system, con_mode]
    normal, other = digits()
    x = np.concatenate([normal[280:], other[:50]])
    found = served.detect(x, maps=True)
    reference = Nln().reference_scores(model, files, x)
    np.testing.assert_allclose(found.scores, reference.scores, atol=1e-4)
    np.testing.assert_allclose(found.maps, reference.maps, atol=1e-4)
    np.testing.assert_array_equal(served.detect(x, maps=False).scores, found.scores)
    parts = [served.detect(x[i : i + 7], maps=True) for i in range(0, len(x), 7)]
    np.testing.assert_allclose(np.concatenate([p.scores for p in parts]), found.scores, atol=1e-5)


@pytest.mark.parametrize("system", STEPS)
def test_both_scores_are_read_from_one_training(
    system: str, folders: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = fitted(folders / system, data, system=system)
    monkeypatch.setattr(L.Trainer, "fit", None)  # training again would fail
    plain = fitted(folders / system, data, system=system, score="reconstruction")
    for mine, other in zip(plain.networks.parameters(), nearest.networks.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    found = detector_of(plain, (1, 8, 8)).detect(data.validation, maps=True)
    x_hat = rebuilt(plain, torch.from_numpy(data.validation)).numpy()
    error = np.abs(data.validation - x_hat).mean(axis=1)
    np.testing.assert_allclose(found.maps, error, atol=1e-5)
    p = plain.params
    scaled = (error.mean(axis=(1, 2)) - p.e_low) / (p.e_high - p.e_low)
    np.testing.assert_allclose(found.scores, scaled, atol=1e-3)


def test_files_that_score_by_reconstruction_do_as_torch_does_and_show_evidence(
    folders: Path, data: PreparedData, tmp_path: Path
) -> None:
    model = fitted(folders / "vae", data, system="vae", score="reconstruction")
    Nln().export(model, data, tmp_path)
    served = served_from(tmp_path, model)
    assert model.params.d_to_e == 1, "no distances, no scale of theirs"
    assert not {f for f in (BANK, FEATURE_GRAPH, FEATURES) if (tmp_path / f).exists()}
    found = served.detect(data.validation, maps=True)
    reference = Nln().reference_scores(model, tmp_path, data.validation)
    np.testing.assert_allclose(found.scores, reference.scores, atol=1e-4)
    np.testing.assert_allclose(found.maps, reference.maps, atol=1e-4)
    assert [len(near) for near in served.evidence(data.validation[:2], 3)] == [3, 3]


def test_residual_maps_show_pixels_where_features_are_scored(
    folders: Path, data: PreparedData
) -> None:
    x = data.validation[:5]
    for system in ("ae_res", "ae_con"):
        detector = detector_of(fitted(folders / system, data, system=system), (1, 8, 8))
        ids, _, weight = detector.neighbours(detector.embed(x))
        found = detector.measure(x)
        np.testing.assert_array_equal(found.pixels, detector.error(x, ids, weight))
        assert found.e.shape == (5, 1)


def test_a_latent_of_reconstructions_is_near_that_of_the_image(
    folders: Path, data: PreparedData
) -> None:
    networks = fitted(folders / "ae_con", data, system="ae_con").networks
    with torch.no_grad():
        z = networks.encode(torch.from_numpy(data.train))
        off = (networks.consistency(z) - z).square().mean()
    assert off < 0.5 * z.var(dim=0).mean()  # a constant: 0.96


def test_the_latent_of_a_variational_autoencoder_is_its_mean() -> None:
    network = build_autoencoder((1, 8, 8), latent=5, width=8, variational=True).eval()
    assert isinstance(network, VariationalAutoencoder)
    x = torch.rand(3, 1, 8, 8)
    mean, log_variance = network.moments(x)
    assert mean.shape == log_variance.shape == (3, 5)
    torch.testing.assert_close(network.encode(x), mean)
    assert network.decode(mean).shape == x.shape


def test_a_discriminator_is_told_off_for_either_mistake() -> None:
    sure = torch.full((4,), 8.0)
    assert told_apart(sure, -sure) < 0.01
    assert told_apart(sure, sure) > 3
    assert told_apart(-sure, -sure) > 3
    assert told_apart(0 * sure, 0 * sure) == pytest.approx(np.log(2))


class _Stop(Callback):
    """Ctrl-C at the beginning of the third epoch."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("system", ["aae", "ae_res", "ae_con"])
def test_an_interrupted_training_goes_on_where_it_was(
    system: str, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = L.Trainer.__init__
    epochs: list[int] = []

    def stopping(self: L.Trainer, **options: Any) -> None:
        begun(self, **{**options, "callbacks": [*options["callbacks"], _Stop()]})

    with monkeypatch.context() as patched:
        patched.setattr(L.Trainer, "__init__", stopping)
        with pytest.raises(Interrupted):
            fitted(tmp_path, data, system=system, steps=15, batch_size=64)
    assert (tmp_path / f"{system}.ckpt").exists()

    class Seen(Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            epochs.append(trainer.current_epoch)
            # each optimiser goes on with what it remembers
            assert all(o.state for o in trainer.optimizers)

    def watching(self: L.Trainer, **options: Any) -> None:
        begun(self, **{**options, "callbacks": [*options["callbacks"], Seen()]})

    monkeypatch.setattr(L.Trainer, "__init__", watching)
    model = fitted(tmp_path, data, system=system, steps=15, batch_size=64)
    assert epochs == [2, 3, 4]
    assert np.isfinite(detector_of(model, (1, 8, 8)).detect(data.validation, maps=True).maps).all()


@pytest.mark.parametrize("system", ["ae_res", "ae_con"])
@pytest.mark.parametrize("stride", [8, 4], ids=["tiles", "overlapping"])
def test_patches_with_features_cover_the_image(system: str, stride: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0.4, 0.6, (24, 1, 20, 16)).astype(np.float32)
    spec = ImageInput(height=20, width=16, channels=1, mean=(0.0,), std=(1.0,))
    data = PreparedData(spec, x[:16], x[16:])
    model = fitted(
        tmp_path / "run", data, system=system, patch=8, stride=stride, steps=8, d_top=(0.2,)
    )
    odd = x[16:18].copy()
    odd[:, :, 12:, 8:] = 1.0
    found = detector_of(model, (1, 20, 16)).detect(odd, maps=True)
    assert np.isfinite(found.scores).all()
    assert found.maps is not None
    assert found.maps.shape == (2, 20, 16)
    assert found.maps[:, 12:, 8:].mean() > 1.5 * found.maps[:, :8].mean()


def test_patches_with_gaps_between_them_are_refused(data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="gaps"):
        fitted(tmp_path, data, patch=4, stride=5)


def test_a_truncated_file_of_features_is_refused_by_name(
    exported: Exported, tmp_path: Path
) -> None:
    model, files = exported("ae_res", "code")
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    for name in (FEATURES, FEATURE_GRAPH):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ArtifactCorrupt, match=name):
            served_from(tmp_path, model)
        (tmp_path / name).write_bytes(content)


def test_a_score_by_reconstruction_without_a_decoder_is_refused(
    folders: Path, data: PreparedData, tmp_path: Path
) -> None:
    params = fitted(folders / "ae", data).params.model_dump() | {"score": "reconstruction"}
    artifact = unpublished(tmp_path, "nln", data.spec, params)
    with pytest.raises(ArtifactIncompatible, match="decoder"):
        NlnDetector.open(artifact, Runtime(threads=1))
