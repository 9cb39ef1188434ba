"""The reconstruction family: the memory, the density of codes, and each system on real digits."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from service.contract.errors import InvalidInput
from service.contract.manifest import Column, ImageInput, SeriesInput
from service.runtime import Runtime
from training.families.base import PreparedData
from training.families.reconstruction import Reconstruction, ReconstructionConfig
from training.networks.autoregressive import CodeDensity
from training.networks.memory import Memory, entropy
from training.run import Run

SMALL = {
    "channels": (8, 8),
    "latent": 16,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "density": (4, 4),
    "bins": 20,
    "lambda_density": 0.1,
}
EPOCHS = {"cae": 12, "vae": 25, "memae": 30, "lsa": 12}


@cache
def digits() -> tuple[PreparedData, np.ndarray, np.ndarray]:
    """Zeros, in [0, 1] and 8 x 8, for training; held-out zeros; every other digit."""
    bunch = load_digits()
    x = (bunch.images / 16).astype(np.float32)[:, None]
    zeros, others = x[bunch.target == 0], x[bunch.target != 0]
    spec = ImageInput(height=8, width=8, channels=1, mean=(0.0,), std=(1.0,))
    return PreparedData(spec, zeros[:120], zeros[120:150]), zeros[150:], others[:300]


@pytest.mark.parametrize("system", sorted(EPOCHS))
def test_other_digits_are_rebuilt_worse_than_zeros_and_the_file_says_the_same(
    tmp_path: Path, system: str
) -> None:
    data, zeros, others = digits()
    config = ReconstructionConfig.model_validate(
        {**SMALL, "system": system, "epochs": EPOCHS[system]}
    )
    family = Reconstruction()
    model = family.fit(config, data, Run(tmp_path / "run", progress=False))
    params = family.export(model, data, tmp_path)
    assert set(params.scales) == ({"reconstruction", "surprise"} if system == "lsa" else set())

    x = np.concatenate([zeros, others])
    found = family.reference_scores(model, tmp_path, x)
    labels = np.repeat([0, 1], [len(zeros), len(others)])
    assert roc_auc_score(labels, found.scores) > 0.9
    exported = Runtime(threads=1).session(tmp_path / "score.onnx")
    scores, x_hat = exported.run(["score", "reconstruction"], {"x": x})
    np.testing.assert_allclose(scores, found.scores, rtol=1e-4, atol=1e-4)
    assert found.maps is not None
    if system != "lsa":
        np.testing.assert_allclose(scores, ((x - x_hat) ** 2).sum(axis=(1, 2, 3)), rtol=1e-3)


@pytest.mark.parametrize("system", sorted(EPOCHS))
def test_windows_of_sensors_are_rebuilt_too(tmp_path: Path, system: str) -> None:
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 6, (200, 1, 1))
    x = np.sin(phase + np.arange(12)[None, :, None] * 0.5 + np.arange(3)).astype(np.float32)
    columns = [Column(name=f"s{d}", unit="", mean=0, std=1, low=-9, high=9) for d in range(3)]
    spec = SeriesInput(columns=tuple(columns), period_s=1.0, window=12)
    data, family = PreparedData(spec, x[:160], x[160:]), Reconstruction()
    config = ReconstructionConfig.model_validate(
        {**SMALL, "system": system, "epochs": 2 * EPOCHS[system]}
    )
    model = family.fit(config, data, Run(tmp_path / "run", progress=False))
    normal, odd = x[160:], x[160:].copy()
    odd[:, :, 2] = rng.permuted(odd[:, :, 2], axis=1)  # a sensor out of step; its values stay
    found = family.reference_scores(model, tmp_path, np.concatenate([normal, odd]))
    assert found.maps is not None
    assert found.maps.shape == (80, 12, 3)
    assert np.square(found.maps[:40]).mean() < 0.5 * normal.var()  # of the mean window: 1
    assert np.mean(found.scores[40:] > np.median(found.scores[:40])) > 0.9


@pytest.mark.parametrize("system", ["cae", "memae", "lsa"])
def test_a_decoder_of_images_outside_zero_to_one_can_give_them(tmp_path: Path, system: str) -> None:
    data = digits()[0]
    wide = PreparedData(data.spec, data.train[:32] * 2 - 1, data.validation * 2 - 1)
    config = ReconstructionConfig.model_validate({**SMALL, "system": system, "epochs": 1})
    for given_data, bounded in ((data, True), (wide, False)):
        run = Run(tmp_path / str(bounded), progress=False)
        model = Reconstruction().fit(config, given_data, run)
        assert model.system.net.bounded == bounded


def test_a_vae_of_images_outside_zero_to_one_is_refused(tmp_path: Path) -> None:
    data = digits()[0]
    wide = PreparedData(data.spec, data.train * 2 - 1, data.validation)
    config = ReconstructionConfig(system="vae", epochs=1)
    with pytest.raises(InvalidInput, match=r'range = "train"'):
        Reconstruction().fit(config, wide, Run(tmp_path / "run", progress=False))


def test_the_reference_loss_is_the_vae_s_alone() -> None:
    with pytest.raises(ValidationError, match="choice of system 'vae', not 'cae'"):
        ReconstructionConfig(system="cae", loss="reference")


@given(items=st.integers(2, 60), features=st.integers(2, 20), seed=st.integers(0, 99))
@example(items=2, features=2, seed=0)
@example(items=60, features=2, seed=1)
@settings(max_examples=25, deadline=None)
def test_a_memory_answers_with_a_mixture_of_its_likeliest_items(
    items: int, features: int, seed: int
) -> None:
    torch.manual_seed(seed)
    memory = Memory(items, features)
    z = torch.randn(7, features)
    with torch.no_grad():
        z_hat, w = memory(z)
    assert (w >= 0).all()
    torch.testing.assert_close(w.sum(dim=1), torch.ones(7))
    torch.testing.assert_close(z_hat, w @ memory.items)
    cosine = torch.cosine_similarity(z[:, None], memory.items[None], dim=2)
    assert (w.argmax(dim=1) == cosine.argmax(dim=1)).all()
    assert (w[cosine < cosine.mean(dim=1, keepdim=True)] < 1 / items + 1e-6).float().mean() == 1
    assert 0 <= float(entropy(w)) <= np.log(items) + 1e-5


@given(size=st.integers(2, 10), bins=st.integers(2, 30), at=st.integers(0, 9))
@example(size=2, bins=2, at=0)
@example(size=10, bins=30, at=9)
@settings(max_examples=25, deadline=None)
def test_a_coordinate_s_histogram_depends_on_earlier_coordinates_alone(
    size: int, bins: int, at: int
) -> None:
    torch.manual_seed(size)
    density, at = CodeDensity(size, bins, (3, 3)), at % size
    a = torch.rand(4, size)
    b = a.clone()
    b[:, at] = torch.rand(4)
    changed = (density._logits(a) - density._logits(b)).abs().amax(dim=(0, 2))
    assert (changed[: at + 1] == 0).all()


def test_training_leaves_the_masked_weights_zero_and_finds_the_frequent_codes() -> None:
    torch.manual_seed(0)
    density = CodeDensity(3, bins=10, widths=(8,))
    optimiser = torch.optim.Adam(density.parameters(), lr=3e-2, weight_decay=1e-4)
    first = torch.rand(256, 1)
    codes = torch.cat([first, first, 1 - first], dim=1)  # the first decides on the others
    for _ in range(150):
        optimiser.zero_grad()
        density.loss(codes).backward()
        optimiser.step()
    with torch.no_grad():
        usual, odd = density(codes), density(torch.rand(256, 3))
    assert float(usual.median()) + 1 < float(odd.median())
    moved = codes.clone()
    moved[:, 2] = 0.5
    torch.testing.assert_close(density._logits(moved), density._logits(codes))


@given(place=st.floats(0, 1), step=st.floats(-1e-6, 1e-6))
@example(place=0.0, step=1e-6)
@example(place=1.0, step=-1e-6)
@example(place=0.5, step=-1e-6)  # an edge of two bins
@example(place=0.505, step=1e-6)  # the centre of one
@settings(max_examples=40, deadline=None)
def test_a_code_off_by_the_last_digit_has_nearly_the_same_score(place: float, step: float) -> None:
    torch.manual_seed(0)
    density = CodeDensity(2, bins=100, widths=(8,))
    with torch.no_grad():
        a, b = density(torch.tensor([[place, 0.3], [place + step, 0.3]]))
    assert float((a - b).abs()) < 1e-3
