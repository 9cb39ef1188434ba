"""Detection with a denoiser whose scores are known by arithmetic.

It takes all that it sees for noise (eps = x_t / 0.6): it only knows black images, so that every
reconstruction is black and the error of an image is its own energy.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible
from service.contract.manifest import Column, ImageInput, SeriesInput
from service.detectors.denoising import Descent, Kicks
from service.detectors.pixel_diffusion import PixelDiffusionDetector
from service.runtime import Runtime
from tests.artifacts import unpublished

SIDE = 4
IMAGE = ImageInput(height=SIDE, width=SIDE, channels=1, mean=(0.5,), std=(0.5,))
PARAMS = {
    "system": "ddpm_ood",
    "low": -9.0,
    "high": 9.0,
    "ts": [100],
    "noises": 2,
    "steps": 1,
    "ancestral": False,
}


def write_graph(folder: Path) -> None:
    shape = ["N", 1, SIDE, SIDE]
    body = helper.make_graph(
        [helper.make_node("Div", ["x_t", "sigma"], ["eps"])],
        "g",
        [
            helper.make_tensor_value_info("x_t", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("t", TensorProto.INT64, ["N"]),
        ],
        [helper.make_tensor_value_info("eps", TensorProto.FLOAT, shape)],
        [helper.make_tensor("sigma", TensorProto.FLOAT, [], [0.6])],
    )
    onnx.save(
        helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)]),
        str(folder / "eps.onnx"),
    )


def chain(pairs: int = 2, steps: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ones, zeros = np.ones((pairs, 1)), np.zeros((pairs, 1))
    return {
        "t": np.full((pairs, steps), 100),
        "signal": np.hstack([np.full((pairs, steps), 0.8), ones]).astype(np.float32),
        "sigma": np.hstack([np.full((pairs, steps), 0.6), zeros]).astype(np.float32),
        "noise": rng.standard_normal((pairs, 1, SIDE, SIDE)).astype(np.float32),
        "error_mean": np.zeros(pairs),
        "error_std": np.ones(pairs),
    }


def opened(
    folder: Path,
    arrays: dict[str, np.ndarray] | None = None,
    spec: ImageInput | SeriesInput = IMAGE,
    **params: object,
) -> PixelDiffusionDetector:
    write_graph(folder)
    np.savez(folder / "arrays.npz", allow_pickle=False, **(arrays or chain()))
    artifact = unpublished(folder, "pixel_diffusion", spec, PARAMS | params)
    return PixelDiffusionDetector.open(artifact, Runtime(threads=1))


def images(n: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, 1, SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize("steps", [1, 3])
def test_an_image_scores_its_distance_to_what_the_denoiser_knows(
    tmp_path: Path, steps: int
) -> None:
    x = images(5)
    found = opened(tmp_path, chain(steps=steps)).detect(x, maps=True)
    np.testing.assert_allclose(found.scores, np.square(x).mean(axis=(1, 2, 3)), rtol=1e-5)
    assert found.maps is not None
    np.testing.assert_allclose(found.maps, np.abs(x[:, 0]), atol=1e-5)


def test_each_pair_s_error_is_normalised_by_its_own_mean_and_deviation(tmp_path: Path) -> None:
    arrays = chain()
    arrays["error_mean"], arrays["error_std"] = np.array([1.0, 3.0]), np.array([2.0, 4.0])
    x = images(3)
    energy = np.square(x).mean(axis=(1, 2, 3))
    found = opened(tmp_path, arrays).detect(x, maps=False)
    np.testing.assert_allclose(found.scores, ((energy - 1) / 2 + (energy - 3) / 4) / 2, rtol=1e-5)
    assert found.maps is None


def test_predicted_images_are_kept_in_the_range_of_pixels(tmp_path: Path) -> None:
    x = images(4)
    found = opened(tmp_path, low=0.25, high=0.5).detect(x, maps=False)
    np.testing.assert_allclose(found.scores, np.square(x - 0.25).mean(axis=(1, 2, 3)), rtol=1e-5)


def test_a_score_ignores_its_batch_and_its_place(tmp_path: Path) -> None:
    detector = opened(tmp_path)
    x = images(17)
    whole = detector.detect(x, maps=True)
    for size in (1, 2, 3, 8):
        parts = [detector.detect(x[i : i + size], maps=True) for i in range(0, 17, size)]
        np.testing.assert_allclose(np.concatenate([p.scores for p in parts]), whole.scores, 1e-5)
    order = np.random.default_rng(2).permutation(17)
    np.testing.assert_allclose(detector.detect(x[order], maps=False).scores, whole.scores[order])


@settings(max_examples=30, deadline=None)
@given(
    levels=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=6, unique=True),
    clip=st.booleans(),
)
def test_a_perfect_denoiser_gives_the_image_back(levels: list[float], clip: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, 1, 2, 2)).astype(np.float32)
    noise = rng.standard_normal((1, 1, 2, 2), dtype=np.float32)
    sigma = np.array([[*sorted(levels, reverse=True), 0.0]], dtype=np.float32)
    t = np.arange(len(levels))[None]
    descent = Descent(t, np.sqrt(1 - sigma**2), sigma)
    found = descent.reconstruct(
        lambda z_t, _: np.broadcast_to(noise[0], z_t.shape), x, noise, (-1.0, 1.0) if clip else None
    )
    np.testing.assert_allclose(found[:, 0], x, atol=1e-4)


def test_fresh_noise_enters_each_step_of_an_ancestral_chain_but_the_last() -> None:
    """The denoiser calls everything noise: each predicted image is 0, what is left is the noise."""
    t = np.array([[2, 1]])
    sigma = np.array([[0.8, 0.6, 0.0]], dtype=np.float32)
    size, direction = (np.array([[v, 0]], dtype=np.float32) for v in (0.5, 0.3))
    kicks = Kicks(np.ones((2, 1, 1, 2, 2), dtype=np.float32), size, direction)
    seen = []

    def eps(z_t: np.ndarray, t: np.ndarray) -> np.ndarray:
        seen.append(z_t.mean())
        return z_t / sigma[0, 2 - t[0]]

    descent = Descent(t, np.sqrt(1 - sigma**2), sigma, kicks)
    nothing = np.zeros((1, 1, 2, 2), dtype=np.float32)
    descent.reconstruct(eps, nothing, nothing + 2)
    np.testing.assert_allclose(seen, [1.6, 0.3 * 2.0 + 0.5], rtol=1e-6)


def test_larger_images_are_taken_fewer_at_a_time(tmp_path: Path) -> None:
    assert opened(tmp_path).max_batch == 64
    wide = IMAGE.model_copy(update={"height": 512, "width": 512})
    arrays = chain() | {"noise": np.zeros((2, 1, 512, 512), dtype=np.float32)}
    assert opened(tmp_path, arrays, wide).max_batch == 1


@pytest.mark.parametrize("name", sorted(chain()))
def test_a_missing_array_is_named(tmp_path: Path, name: str) -> None:
    arrays = chain()
    del arrays[name]
    with pytest.raises(ArtifactCorrupt, match=rf"arrays\.npz.*{name}"):
        opened(tmp_path, arrays)


@pytest.mark.parametrize("name", sorted(chain()))
def test_arrays_of_different_lengths_are_refused(tmp_path: Path, name: str) -> None:
    arrays = chain()
    arrays[name] = np.concatenate([arrays[name], arrays[name][:1]])
    with pytest.raises(ArtifactCorrupt, match=r"arrays\.npz.*lacks"):
        opened(tmp_path, arrays)


def test_an_unknown_system_and_sensor_windows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactIncompatible, match="system"):
        opened(tmp_path, system="gan")
    column = Column(name="a", unit="", mean=0, std=1, low=-1, high=1)
    series = SeriesInput(columns=(column,), period_s=None, window=4)
    with pytest.raises(ArtifactIncompatible, match="images only"):
        opened(tmp_path, spec=series)
