"""Detection with graphs whose scores are known by arithmetic.

The denoiser takes all that it sees for noise (eps = z_t / sigma): it only knows black images, so
every reconstruction is black and the error of an image is its own energy.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible, DetectorFailure
from service.contract.manifest import (
    Column,
    ImageInput,
    SeriesInput,
)
from service.contract.store import Artifact
from service.detectors.diffusion import DiffusionDetector
from service.runtime import Runtime
from tests.artifacts import unpublished

SIDE = 4
SIGNAL, SIGMA = np.float32(0.8), np.float32(0.6)
VARIANTS = ["one_shot", "reconstruction", "latent_reconstruction", "classifier"]
IMAGE = ImageInput(height=SIDE, width=SIDE, channels=1, mean=(0.5,), std=(0.5,))


def graph(path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, int], output: str) -> None:
    """``inputs`` maps a name to its rank: 4 an image or latent, 1 an int64 time."""

    def value(name: str, rank: int) -> onnx.ValueInfoProto:
        kind = TensorProto.INT64 if name == "t" else TensorProto.FLOAT
        shape = ["N", 1, SIDE, SIDE] if rank == 4 else ["N"]
        return helper.make_tensor_value_info(name, kind, shape)

    constants = [
        helper.make_tensor("sigma", TensorProto.FLOAT, [], [float(SIGMA)]),
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("impossible", TensorProto.INT64, [1], [10**6]),
    ]
    rank = 1 if output == "logit" else 4
    body = helper.make_graph(
        nodes, "g", [value(n, r) for n, r in inputs.items()], [value(output, rank)], constants
    )
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)]), str(path))


def write_graphs(folder: Path) -> None:
    node = helper.make_node
    graph(folder / "encoder.onnx", [node("Identity", ["x"], ["z"])], {"x": 4}, "z")
    graph(folder / "decoder.onnx", [node("Identity", ["z"], ["x_hat"])], {"z": 4}, "x_hat")
    takes_all = [node("Div", ["z_t", "sigma"], ["eps"])]
    graph(folder / "unet.onnx", takes_all, {"z_t": 4, "t": 1}, "eps")
    likeness = [
        node("Sub", ["x_hat", "x"], ["d"]),
        node("ReduceMean", ["d", "axes"], ["logit"], keepdims=0),
    ]
    graph(folder / "pair_classifier.onnx", likeness, {"x": 4, "x_hat": 4}, "logit")


def chain(pairs: int = 3, starts: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (1, SIDE, SIDE)
    return {
        "pair_t": np.arange(100, 100 + pairs),
        "pair_signal": np.full(pairs, SIGNAL),
        "pair_sigma": np.full(pairs, SIGMA),
        "pair_noise": rng.standard_normal((pairs, *shape)).astype(np.float32),
        "pair_mean": np.zeros(pairs),
        "pair_std": np.ones(pairs),
        "start_noise": rng.standard_normal((starts, *shape)).astype(np.float32),
        "ddim_t": np.array([200]),
        "signal": np.array([SIGNAL, 1], dtype=np.float32),
        "sigma": np.array([SIGMA, 0], dtype=np.float32),
    }


def artifact(
    folder: Path,
    variant: str = "one_shot",
    arrays: dict[str, np.ndarray] | None = None,
    spec: ImageInput | SeriesInput = IMAGE,
) -> Artifact:
    """The artifact of the graphs in ``folder``; graphs that are there already stay."""
    if not (folder / "encoder.onnx").exists():
        write_graphs(folder)
    np.savez(folder / "arrays.npz", allow_pickle=False, **(arrays or chain()))
    params: dict[str, Any] = {
        "variant": variant,
        "ts": [100],
        "noises": 1,
        "t0": 200,
        "ddim_steps": 1,
        "starts": 2,
    }
    return unpublished(folder, "diffusion", spec, params)


def opened(folder: Path, variant: str = "one_shot", **kwargs: object) -> DiffusionDetector:
    return DiffusionDetector.open(artifact(folder, variant, **kwargs), Runtime(threads=1))


def images(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 1, SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize("variant", ["one_shot", "reconstruction", "latent_reconstruction"])
def test_an_image_scores_its_distance_to_what_the_denoiser_knows(
    tmp_path: Path, variant: str
) -> None:
    x = images(5)
    found = opened(tmp_path, variant).detect(x, maps=True)
    np.testing.assert_allclose(found.scores, np.square(x).mean(axis=(1, 2, 3)), rtol=1e-5)
    assert found.maps is not None
    np.testing.assert_allclose(found.maps, np.abs(x[:, 0]), atol=1e-5)


def test_the_classifier_variant_scores_minus_its_logit(tmp_path: Path) -> None:
    x = images(4)
    found = opened(tmp_path, "classifier").detect(x, maps=False)
    np.testing.assert_allclose(found.scores, x.mean(axis=(1, 2, 3)), atol=1e-6)


def test_each_pair_is_normalised_by_its_own_mean_and_deviation(tmp_path: Path) -> None:
    arrays = chain(pairs=2)
    arrays["pair_mean"], arrays["pair_std"] = np.array([1.0, 3.0]), np.array([2.0, 4.0])
    x = images(3)
    energy = np.square(x).mean(axis=(1, 2, 3))
    expected = ((energy - 1) / 2 + (energy - 3) / 4) / 2
    found = opened(tmp_path, arrays=arrays).detect(x, maps=False)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-5)


def test_the_chain_takes_each_step_at_its_own_noise_level(tmp_path: Path) -> None:
    """The denoiser takes sigma for 0.6 always; a step at 0.3 removes half of what it sees."""
    arrays = chain()
    arrays["ddim_t"] = np.array([200, 100])
    arrays["signal"] = np.array([0.8, 0.5, 1], dtype=np.float32)
    arrays["sigma"] = np.array([0.6, 0.3, 0], dtype=np.float32)
    x = images(3)
    z_t = 0.8 * x[:, None] + 0.6 * arrays["start_noise"]
    eps = z_t / 0.6
    z_t = 0.3 * eps  # the first clean latent is zero
    reconstructed = (z_t - 0.3 * z_t / 0.6) / 0.5
    expected = np.square(reconstructed - x[:, None]).mean(axis=(1, 2, 3, 4))
    found = opened(tmp_path, "latent_reconstruction", arrays=arrays).detect(x, maps=False)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_score_of_an_image_ignores_its_batch_and_its_place(
    tmp_path: Path, variant: str
) -> None:
    detector = opened(tmp_path, variant)
    x = images(17)
    whole = detector.detect(x, maps=True)
    assert whole.maps is not None
    for size in (1, 2, 3, 8):
        parts = [detector.detect(x[i : i + size], maps=True) for i in range(0, 17, size)]
        np.testing.assert_allclose(np.concatenate([p.scores for p in parts]), whole.scores, 1e-5)
    order = np.random.default_rng(2).permutation(17)
    np.testing.assert_allclose(detector.detect(x[order], maps=False).scores, whole.scores[order])


@settings(max_examples=25, deadline=None)
@given(brightness=st.floats(0, 10), more=st.floats(0.1, 10))
def test_further_from_normal_scores_higher(
    tmp_path_factory: pytest.TempPathFactory, brightness: float, more: float
) -> None:
    detector = opened(tmp_path_factory.mktemp("a"))
    x = np.ones((2, 1, SIDE, SIDE), dtype=np.float32) * np.float32(brightness)
    x[1] += np.float32(more)
    low, high = detector.detect(x, maps=False).scores
    assert low < high


def test_the_input_is_left_alone_and_the_answer_is_finite(tmp_path: Path) -> None:
    x = images(3)
    before = x.copy()
    found = opened(tmp_path).detect(x, maps=True)
    np.testing.assert_array_equal(x, before)
    assert found.maps is not None
    assert found.maps.dtype == np.float32
    assert found.scores.dtype == np.float64
    assert np.isfinite(found.scores).all()
    assert np.isfinite(found.maps).all()


def test_without_maps_the_decoder_is_not_run(tmp_path: Path) -> None:
    write_graphs(tmp_path)
    broken = [
        helper.make_node("Gather", ["z", "impossible"], ["missing"], axis=0),
        helper.make_node("Add", ["z", "missing"], ["x_hat"]),
    ]
    graph(tmp_path / "decoder.onnx", broken, {"z": 4}, "x_hat")
    detector = opened(tmp_path)
    assert detector.detect(images(2), maps=False).maps is None
    with pytest.raises(DetectorFailure, match=r"decoder\.onnx"):
        detector.detect(images(2), maps=True)


def test_larger_images_are_taken_fewer_at_a_time(tmp_path: Path) -> None:
    small = opened(tmp_path).max_batch
    wide = IMAGE.model_copy(update={"height": 256, "width": 256})
    large = opened(tmp_path, spec=wide).max_batch
    assert small == 64
    assert large == 1


@pytest.mark.parametrize("name", sorted(chain()))
def test_a_missing_array_is_named(tmp_path: Path, name: str) -> None:
    arrays = chain()
    del arrays[name]
    with pytest.raises(ArtifactCorrupt, match=rf"arrays\.npz.*{name}"):
        opened(tmp_path, arrays=arrays)


@pytest.mark.parametrize("name", ["pair_noise", "pair_std", "sigma", "ddim_t"])
def test_arrays_of_different_lengths_are_refused(tmp_path: Path, name: str) -> None:
    arrays = chain()
    arrays[name] = np.concatenate([arrays[name], arrays[name]])
    with pytest.raises(ArtifactCorrupt, match=r"arrays\.npz.*do not fit"):
        opened(tmp_path, arrays=arrays)


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactIncompatible, match="variant"):
        opened(tmp_path, "perceptual")


def test_a_graph_with_other_inputs_is_refused(tmp_path: Path) -> None:
    write_graphs(tmp_path)
    (tmp_path / "unet.onnx").write_bytes((tmp_path / "encoder.onnx").read_bytes())
    with pytest.raises(ArtifactIncompatible, match=r"unet\.onnx.*expected"):
        opened(tmp_path)


def test_a_missing_classifier_matters_only_where_it_scores(tmp_path: Path) -> None:
    write_graphs(tmp_path)
    (tmp_path / "pair_classifier.onnx").unlink()
    assert len(opened(tmp_path).detect(images(1), maps=False).scores) == 1
    with pytest.raises(ArtifactCorrupt, match="pair_classifier"):
        opened(tmp_path, "classifier")


def test_sensor_windows_are_refused(tmp_path: Path) -> None:
    column = Column(name="a", unit="", mean=0, std=1, low=-1, high=1)
    series = SeriesInput(columns=(column,), period_s=None, window=4)
    with pytest.raises(ArtifactIncompatible, match="images only"):
        opened(tmp_path, spec=series)
