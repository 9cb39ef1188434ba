"""The hypersphere family: the gate step, the losses, any shape of window, both boundaries."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.contract.manifest import Column, ImageInput, SeriesInput
from service.detectors.iae_lstm_kl import IaeLstmKlParams
from service.runtime import Runtime
from training.families.base import PreparedData
from training.families.iae_lstm_kl import IaeLstmKl, IaeLstmKlConfig, centre_of, kl_to_normal
from training.families.iae_lstm_kl.config import SYSTEMS
from training.families.iae_lstm_kl.scoring import ScoreNet
from training.families.iae_lstm_kl.stages import Joint
from training.networks.hypersphere import Gates, HypersphereNet
from training.run import Run

SMALL = {"channels": (4, 8), "latent": 16, "pretrain_epochs": 3, "epochs": 5, "batch_size": 24}


def test_the_gates_are_one_lstm_step_from_a_zero_state() -> None:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(6, 6)
    gates = Gates(6)
    w_i, _, w_g, w_o = lstm.weight_ih_l0.chunk(4)
    b_i, _, b_g, b_o = (lstm.bias_ih_l0 + lstm.bias_hh_l0).chunk(4)
    for gate, w, b in ((gates.i, w_i, b_i), (gates.g, w_g, b_g), (gates.o, w_o, b_o)):
        gate[0].weight.data, gate[0].bias.data = w.data, b.data
    x = torch.randn(5, 6)
    each_alone = torch.cat([lstm(row[None, None])[0][0] for row in x])
    torch.testing.assert_close(gates(x), each_alone)


def test_a_gate_left_out_is_fixed_at_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    no_input, no_output = Gates(6, input_gate=False), Gates(6, output_gate=False)
    assert no_input.i is None
    assert no_input.o is not None
    assert no_output.i is not None
    expected = torch.sigmoid(no_input.o(x)) * torch.tanh(torch.tanh(no_input.g(x)))
    torch.testing.assert_close(no_input(x), expected)
    expected = torch.tanh(torch.sigmoid(no_output.i(x)) * torch.tanh(no_output.g(x)))
    torch.testing.assert_close(no_output(x), expected)


def test_nothing_before_z_has_a_bias_without_gates() -> None:
    # with one, zero weights and the centre as bias would be a perfect sphere of radius zero
    net = HypersphereNet((1, 16, 16), (4, 8), latent=8, gated=False)
    assert not [name for name, _ in net.named_parameters() if "bias" in name]


@given(height=st.integers(8, 70), width=st.integers(2, 60))
@example(height=8, width=2)
@example(height=70, width=60)
@example(height=41, width=5)
@settings(max_examples=12)
def test_windows_of_any_length_and_number_of_columns_are_reconstructed_in_their_size(
    height: int, width: int
) -> None:
    net = HypersphereNet((1, height, width), (2, 4), latent=8).eval()
    with torch.no_grad():
        z, x_hat = net(torch.zeros(2, 1, height, width))
    assert z.shape == (2, net.latent)
    assert x_hat.shape == (2, 1, height, width)


def test_the_moment_kl_is_smallest_for_a_standard_normal_batch() -> None:
    z = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    normal = kl_to_normal(z, "moment")
    assert float(normal) < 0.01
    for other in (z + 1, z * 0.1, z * 3):
        assert kl_to_normal(other, "moment") > 10 * normal


def test_no_coordinate_of_the_centre_is_nearly_zero() -> None:
    z = torch.tensor([[0.05, -0.01, 0.0, 2.0]]).repeat(3, 1)
    torch.testing.assert_close(centre_of(z), torch.tensor([0.1, -0.1, 0.0, 2.0]))


def waves(n: int, seed: int, *, broken: bool) -> np.ndarray:
    """[n, 16, 3] windows of three sensors in step; the rows of one are shuffled where ``broken``.

    Each sensor alone has the same values either way.
    """
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (n, 1))
    t = np.arange(16)[None] * 0.4
    windows = np.stack([np.sin(phase + t), np.cos(phase + t), np.sin(phase + t + 1)], axis=2)
    if broken:
        windows[:, :, 2] = rng.permuted(windows[:, :, 2], axis=1)
    return (windows + rng.normal(0, 0.05, windows.shape)).astype(np.float32)


def prepared() -> PreparedData:
    columns = [Column(name=f"s{d}", unit="", mean=0, std=1, low=-9, high=9) for d in range(3)]
    spec = SeriesInput(columns=tuple(columns), period_s=1.0, window=16)
    return PreparedData(spec, waves(600, 0, broken=False), waves(80, 1, broken=False))


def fitted(folder: Path, **options: object) -> ScoreNet:
    config = IaeLstmKlConfig.model_validate(
        {**SMALL, "learning_rate": 5e-3, "warm_up_epochs": 2, "nu": 0.1, **options}
    )
    return IaeLstmKl().fit(config, prepared(), Run(folder / "run", progress=False))


@pytest.mark.parametrize("boundary", ["hard", "soft"])
@pytest.mark.parametrize("score", ["reconstruction", "combined"])
def test_a_decoupled_sensor_scores_higher_and_is_blamed(
    tmp_path: Path, boundary: str, score: str
) -> None:
    family, data = IaeLstmKl(), prepared()
    model = fitted(tmp_path, boundary=boundary, score=score)
    params = family.export(model, data, tmp_path)
    assert (params.radius > 0) == (boundary == "soft")

    normal, broken = waves(60, 2, broken=False), waves(60, 3, broken=True)
    low, high = (family.reference_scores(model, tmp_path, x) for x in (normal, broken))
    assert np.mean(high.scores > np.median(low.scores)) > 0.9
    assert high.maps is not None
    assert int(np.abs(high.maps).sum(axis=(0, 1)).argmax()) == 2

    exported = Runtime(threads=1).session(tmp_path / "score.onnx")
    scores, _ = exported.run(["score", "reconstruction"], {"x": broken})
    np.testing.assert_allclose(scores, high.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_every_system_of_the_paper_is_trained_and_explains_itself(
    tmp_path: Path, system: str
) -> None:
    model = fitted(tmp_path, system=system, boundary="soft", gate_rank=4, map_epochs=6)
    normal, broken = waves(60, 2, broken=False), waves(60, 3, broken=True)
    with torch.no_grad():
        x_hat = model(torch.as_tensor(normal))[1].numpy()
    error = np.square(x_hat - normal).mean() / normal.var()
    low, high = (IaeLstmKl().reference_scores(model, tmp_path, x) for x in (normal, broken))
    assert high.maps is not None
    parts = SYSTEMS[system]
    if parts.decoder:
        assert error < 0.3
        assert int(high.maps.sum(axis=(0, 1)).argmax()) == 2  # the sensor out of step
    else:
        assert error < 0.8  # of a z that has lost much on purpose; untrained: 1
    if not parts.gates:
        assert np.mean(high.scores > np.median(low.scores)) > 0.9


@pytest.mark.parametrize("boundary", ["hard", "soft"])
def test_held_out_normals_are_drawn_to_the_centre(tmp_path: Path, boundary: str) -> None:
    x, far = torch.as_tensor(waves(60, 2, broken=False))[:, None], []
    for rate in (1e-9, 5e-3):  # the first moves nothing but the statistics of normalisations
        model = fitted(
            tmp_path / str(rate), boundary=boundary, pretrain_epochs=0, learning_rate=rate
        )
        with torch.no_grad():
            far.append(float((model.net.encode(x) - model.centre).square().sum(dim=1).mean()))
    assert far[1] < 0.5 * far[0]


def test_a_decoder_of_images_outside_zero_to_one_can_give_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    spec = ImageInput(height=8, width=8, channels=1, mean=(0.5,), std=(0.5,))
    inside = rng.uniform(0, 1, (40, 1, 8, 8)).astype(np.float32)
    config = IaeLstmKlConfig.model_validate({**SMALL, "pretrain_epochs": 0, "epochs": 1})
    for x, bounded in ((inside, True), (inside * 2 - 1, False), (inside * 2, False)):
        run = Run(tmp_path / f"{x.min()}{x.max()}", progress=False)
        model = IaeLstmKl().fit(config, PreparedData(spec, x, x[:8]), run)
        assert model.net.bounded == bounded


def test_the_last_distances_outlive_an_interruption() -> None:
    config = IaeLstmKlConfig(boundary="soft", epochs=3, warm_up_epochs=0)
    net = HypersphereNet((1, 16, 3), (2, 4), latent=8)
    begun, resumed = Joint(net, config, torch.zeros(8)), Joint(net, config, torch.zeros(8))
    begun._update_radius(torch.arange(1.0, 41.0) ** 2)
    assert float(begun.radius) == pytest.approx(36.1)
    resumed.load_state_dict(begun.state_dict())
    for module in (begun, resumed):
        module._update_radius(torch.tensor([1.0]))
    assert float(resumed.radius) == float(begun.radius) > 30


def test_a_system_without_a_decoder_in_its_loss_is_exported_with_its_map(tmp_path: Path) -> None:
    family = IaeLstmKl()
    model = fitted(tmp_path, system="deep_svdd", epochs=2)
    params = family.export(model, prepared(), tmp_path)
    assert (params.system, params.score) == ("deep_svdd", "svdd")
    broken = waves(60, 3, broken=True)
    found = family.reference_scores(model, tmp_path, broken)
    exported = Runtime(threads=1).session(tmp_path / "score.onnx")
    scores, _ = exported.run(["score", "reconstruction"], {"x": broken})
    np.testing.assert_allclose(scores, found.scores, rtol=1e-4, atol=1e-4)


def test_the_decoder_that_deep_svdd_gets_for_its_map_has_no_part_in_its_score(
    tmp_path: Path,
) -> None:
    x, family = waves(20, 2, broken=False), IaeLstmKl()
    short, long = (
        family.reference_scores(
            fitted(tmp_path / str(n), system="deep_svdd", map_epochs=n), tmp_path, x
        )
        for n in (1, 4)
    )
    np.testing.assert_array_equal(short.scores, long.scores)
    assert short.maps is not None
    assert long.maps is not None
    assert not np.allclose(short.maps, long.maps)


@pytest.mark.parametrize("nu", [0.1, 0.5])
def test_the_soft_boundary_leaves_about_nu_of_the_training_items_outside(
    tmp_path: Path, nu: float
) -> None:
    model = fitted(tmp_path, boundary="soft", nu=nu, epochs=6)
    with torch.no_grad():
        distance = model.parts(torch.as_tensor(prepared().train))[0][:, 0]
    assert nu / 3 < float((distance > 0).float().mean()) < min(2 * nu, 0.8)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"system": "deep_svdd", "score": "auto"}, "no reconstruction in its loss"),
        ({"system": "iaead", "input_gate": False}, "no gates to leave out"),
        ({"system": "svdd"}, "deep_svdd"),
        ({"boundary": "soft", "epochs": 10}, "more than its 10 warm_up_epochs"),
    ],
)
def test_a_configuration_that_its_system_cannot_have_is_refused(
    options: dict[str, object], named: str
) -> None:
    with pytest.raises(ValidationError, match=named):
        IaeLstmKlConfig.model_validate(options)


def test_an_artifact_from_before_there_were_systems_is_the_whole_model() -> None:
    old = {"score": "svdd", "boundary": "hard", "latent": 128, "radius": 0.0, "selection": {}}
    assert IaeLstmKlParams.model_validate(old).system == "iae_lstm_kl"
