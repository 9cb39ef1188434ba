"""Nearest latent neighbours with a bank whose scores are known by arithmetic.

The bank holds constant images of a few grey levels, the latent of an image is its mean: an image
one grey level away from the nearest of them has that level as distance and as error.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible
from service.contract.manifest import ImageInput
from service.detectors.base import Neighbour
from service.detectors.nln import NlnDetector, taper, top_mean
from service.detectors.nln_artifact import NlnParams
from service.runtime import Runtime
from tests.artifacts import SERIES_INPUT, unpublished

SIDE = 4
LEVELS = np.array([0, 51, 102, 153, 204, 255])
PARAMS: dict[str, Any] = {
    "patch_height": SIDE, "patch_width": SIDE, "stride": SIDE, "latent": 1, "neighbours": 1,
    "gamma": 0.0, "alpha": 0.5, "e_top": 1.0, "d_top": 1.0, "map_alpha": 1.0, "blur": 0.0,
    "decoded": "bank", "index": "flat",
}  # fmt: skip
CLOSE = {"rtol": 0, "atol": 1e-3}  # latents are kept in half precision


def save_encoder(path: Path, side: int = SIDE) -> None:
    """x [N, 1, side, side] -> z [N, 1], its mean."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["z"], keepdims=0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, side, side])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path))


def save_decoder(path: Path) -> None:
    """z [N, 1] -> a constant image of that value."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["z", "ones"], ["flat"]),
            helper.make_node("Reshape", ["flat", "shape"], ["x"]),
        ],
        "g",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])],
        [
            helper.make_tensor("ones", TensorProto.FLOAT, [1, SIDE**2], [1.0] * SIDE**2),
            helper.make_tensor("shape", TensorProto.INT64, [4], [-1, 1, SIDE, SIDE]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path))


def write_files(folder: Path, typical: float = 1.0, levels: np.ndarray = LEVELS) -> None:
    latents = (levels / 255).astype(np.float16)[:, None]
    save_encoder(folder / "encoder.onnx")
    save_decoder(folder / "decoder.onnx")
    index = faiss.IndexScalarQuantizer(1, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
    index.train(latents.astype(np.float32))
    index.add(latents.astype(np.float32))
    faiss.write_index(index, str(folder / "index.faiss"))
    np.save(folder / "latents.npy", latents)
    np.save(folder / "typical.npy", np.full((2, len(levels)), typical, np.float32))
    bank = np.broadcast_to(levels[:, None, None, None], (len(levels), 1, SIDE, SIDE))
    np.save(folder / "bank.npy", bank.astype(np.uint8))


def open_detector(folder: Path, spec: Any = None, **params: Any) -> NlnDetector:
    spec = spec or ImageInput(height=SIDE, width=SIDE, channels=1, mean=(0.0,), std=(1.0,))
    artifact = unpublished(folder, "nln", spec, PARAMS | params)
    return NlnDetector.open(artifact, Runtime(threads=1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(tmp_path)
    return tmp_path


def constant(*levels: float) -> np.ndarray:
    """Images [N, 1, 4, 4], each of one grey level / 255."""
    return np.stack([np.full((1, SIDE, SIDE), level / 255, np.float32) for level in levels])


def test_an_image_like_the_bank_scores_nothing(folder: Path) -> None:
    found = open_detector(folder).detect(constant(*LEVELS), maps=True)
    np.testing.assert_allclose(found.scores, 0, **CLOSE)
    np.testing.assert_allclose(found.maps, 0, **CLOSE)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_error_and_distance_are_those_to_the_nearest_neighbour(folder: Path, alpha: float) -> None:
    detector = open_detector(folder, alpha=alpha, d_high=0.5)
    off = np.array([0.0, 10.0, 25.0]) / 255
    found = detector.detect(constant(102, 112, 127), maps=True)
    np.testing.assert_allclose(found.scores, alpha * off + (1 - alpha) * 2 * off, **CLOSE)
    assert found.maps is not None
    np.testing.assert_allclose(found.maps, np.broadcast_to(off[:, None, None], (3, 4, 4)), **CLOSE)


def test_what_is_further_away_scores_higher_without_a_ceiling(folder: Path) -> None:
    scores = open_detector(folder).detect(constant(255, 300, 400, 2000), maps=False).scores
    assert (np.diff(scores) > 0).all()
    assert scores[-1] > 1


@pytest.mark.parametrize(("gamma", "share"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.25)])
def test_neighbours_that_are_themselves_lonely_excuse_distance_and_error(
    tmp_path: Path, gamma: float, share: float
) -> None:
    write_files(tmp_path, typical=4.0)
    found = open_detector(tmp_path, gamma=gamma).detect(constant(112), maps=True)
    np.testing.assert_allclose(found.scores, share * 10 / 255, **CLOSE)


def test_several_neighbours_count_the_less_the_further_they_are(folder: Path) -> None:
    # distances 10, 41, 61 levels; the third only sets the scale of the weights
    weight = np.array([1 - 10 / 61, 1 - 41 / 61])
    expected = (weight * [10, 41]).sum() / weight.sum() / 255
    scores = open_detector(folder, neighbours=2).detect(constant(112), maps=False).scores
    np.testing.assert_allclose(scores, expected, **CLOSE)


def test_a_score_stays_continuous_where_the_last_neighbour_changes(folder: Path) -> None:
    detector = open_detector(folder, neighbours=2)
    # half-way between two levels, the second neighbour changes from one side to the other
    middle = 102 + np.array([-0.01, 0.01])
    scores = detector.detect(constant(*middle), maps=False).scores
    assert abs(scores[1] - scores[0]) < 1e-3


def test_the_decoder_gives_what_a_bank_would_hold(folder: Path) -> None:
    x = np.random.default_rng(0).random((9, 1, SIDE, SIDE), np.float32)
    banked = open_detector(folder, neighbours=3).detect(x, maps=True)
    decoded = open_detector(folder, neighbours=3, decoded="decoder").detect(x, maps=True)
    np.testing.assert_allclose(decoded.scores, banked.scores, atol=1e-6)
    np.testing.assert_allclose(decoded.maps, banked.maps, atol=1e-6)


WIDE = ImageInput(height=8, width=8, channels=1, mean=(0.0,), std=(1.0,))


def test_patches_find_where_an_image_is_odd(folder: Path) -> None:
    detector = open_detector(folder, WIDE, stride=2, d_top=0.1, map_alpha=0.5)
    x = np.full((1, 1, 8, 8), 102 / 255, np.float32)
    x[:, :, 4:, 4:] = 127 / 255
    found = detector.detect(x, maps=True)
    assert found.maps is not None
    assert found.maps[0, 4:, 4:].min() > found.maps[0, :2, :2].max() + 0.02


def test_the_place_of_a_patch_counts_where_wanted(tmp_path: Path) -> None:
    write_files(tmp_path)
    grey = np.array([102, 102, 0, 0])
    places = np.array([[0, 0], [0, 0.5], [0.5, 0], [0.5, 0.5]])  # bright above, dark below
    latents = np.concatenate([grey[:, None] / 255, 10 * places], axis=1).astype(np.float16)
    index = faiss.IndexFlatL2(3)
    index.add(latents.astype(np.float32))
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    np.save(tmp_path / "latents.npy", latents)
    np.save(tmp_path / "typical.npy", np.ones((2, 4), np.float32))
    bank = np.broadcast_to(grey[:, None, None, None], (4, 1, SIDE, SIDE)).astype(np.uint8)
    np.save(tmp_path / "bank.npy", bank)
    detector = open_detector(tmp_path, WIDE, position_weight=10.0, e_high=1.0)
    upright = np.full((1, 1, 8, 8), 102 / 255, np.float32)
    upright[:, :, 4:] = 0
    scores = detector.detect(np.concatenate([upright, upright[:, :, ::-1]]), maps=False).scores
    np.testing.assert_allclose(scores[0], 0, **CLOSE)
    assert scores[1] > 0.3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 40), size=st.integers(1, 40))
def test_a_score_does_not_depend_on_its_batch(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("levels")
    write_files(folder)
    detector = open_detector(folder, WIDE, neighbours=3, stride=2, gamma=0.5, e_top=0.2, blur=1.0)
    x = np.random.default_rng(seed).random((n, 1, 8, 8), np.float32)
    whole = detector.detect(x, maps=True)
    parts = [detector.detect(x[i : i + size], maps=True) for i in range(0, n, size)]
    np.testing.assert_allclose(np.concatenate([p.scores for p in parts]), whole.scores, rtol=1e-5)
    found = np.concatenate([p.maps for p in parts if p.maps is not None])
    np.testing.assert_allclose(found, whole.maps, atol=1e-5)


def test_an_approximate_index_that_finds_too_few_still_gives_a_score(folder: Path) -> None:
    latents = np.load(folder / "latents.npy").astype(np.float32)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(1), 1, len(latents))
    index.train(latents)
    index.add(latents)  # one list each, and only one is searched
    faiss.write_index(index, str(folder / "index.faiss"))
    found = open_detector(folder, neighbours=3, index="ivfpq").detect(constant(102, 112), maps=True)
    np.testing.assert_allclose(found.scores, [0, 10 / 255], **CLOSE)


@pytest.mark.parametrize(
    "name", ["encoder.onnx", "index.faiss", "latents.npy", "bank.npy", "typical.npy"]
)
def test_a_truncated_file_is_refused_by_name(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactCorrupt, match=name):
        open_detector(folder)


@pytest.mark.parametrize(
    "name", ["encoder.onnx", "index.faiss", "latents.npy", "bank.npy", "typical.npy"]
)
def test_a_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactCorrupt, match=name):
        open_detector(folder)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("latents.npy", np.zeros((6, 1), np.float32)),
        ("bank.npy", np.zeros((5, 1, SIDE, SIDE), np.uint8)),
        ("typical.npy", np.ones(6, np.float32)),
        ("bank.npy", np.array([{"a": 1}], dtype=object)),
    ],
)
def test_an_array_of_another_kind_is_refused_by_name(
    folder: Path, name: str, array: np.ndarray
) -> None:
    np.save(folder / name, array, allow_pickle=True)
    with pytest.raises(ArtifactCorrupt, match=name):
        open_detector(folder)


@pytest.mark.parametrize(
    "wrong", [{"alpha": 1.5}, {"neighbours": 0}, {"unheard_of": 1}, {"decoded": "pickle"}]
)
def test_params_out_of_range_are_refused(folder: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ArtifactIncompatible, match=next(iter(wrong))):
        open_detector(folder, **wrong)


def test_more_neighbours_than_items_are_refused(folder: Path) -> None:
    with pytest.raises(ArtifactIncompatible, match="6 items cannot give 6 neighbours"):
        open_detector(folder, neighbours=6)


def test_an_encoder_of_another_size_is_refused(folder: Path) -> None:
    save_encoder(folder / "encoder.onnx", side=8)
    with pytest.raises(ArtifactIncompatible, match="encoder"):
        open_detector(folder)


def test_an_artifact_for_series_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactIncompatible, match="images"):
        open_detector(folder, SERIES_INPUT)


def grey_levels(found: list[Neighbour]) -> list[int]:
    """The one grey level of each decoded picture."""
    assert all(np.ptp(n.pixels) == 0 for n in found)
    return [int(n.pixels[0, 0, 0]) for n in found]


@pytest.mark.parametrize("decoded", ["bank", "decoder"])
def test_evidence_is_the_nearest_bank_items_in_order(folder: Path, decoded: str) -> None:
    detector = open_detector(folder, decoded=decoded)
    near, far = detector.evidence(constant(112, 255), 3)
    assert grey_levels(near) == [102, 153, 51]
    assert [n.row for n in near] == [2, 3, 1]
    np.testing.assert_allclose([n.distance for n in near], np.array([10, 41, 61]) / 255, **CLOSE)
    assert grey_levels(far) == [255, 204, 153]
    assert {(n.x, n.y, n.width, n.height) for n in near} == {(0, 0, SIDE, SIDE)}
    assert near[0].pixels.shape == (1, SIDE, SIDE)


def test_evidence_of_patches_is_that_of_the_furthest(folder: Path) -> None:
    detector = open_detector(folder, WIDE, stride=2)
    x = np.full((2, 1, 8, 8), 102 / 255, np.float32)
    x[0, :, 4:, 2:6] = 127 / 255
    x[1, :, :4, 4:] = 180 / 255
    first, second = detector.evidence(x, 2)
    assert (first[0].x, first[0].y, first[0].width, first[0].height) == (2, 4, SIDE, SIDE)
    assert grey_levels(first) == [102, 153]
    assert (second[0].x, second[0].y) == (4, 0)
    assert grey_levels(second) == [204, 153]
    alone = detector.evidence(x[1:], 2)[0]
    assert [n.row for n in alone] == [n.row for n in second]


def test_evidence_is_no_more_than_the_bank_has_or_the_index_finds(folder: Path) -> None:
    assert len(open_detector(folder).evidence(constant(112), 16)[0]) == len(LEVELS)
    latents = np.load(folder / "latents.npy").astype(np.float32)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(1), 1, len(latents))
    index.train(latents)
    index.add(latents)
    faiss.write_index(index, str(folder / "index.faiss"))
    found = open_detector(folder, index="ivfpq").evidence(constant(112), 16)[0]
    assert grey_levels(found) == [102]


distances = st.lists(st.floats(0, 1e3), min_size=2, max_size=8).map(sorted)


@given(distances)
def test_weights_sum_to_one_and_do_not_grow_with_distance(found: list[float]) -> None:
    weight = taper(np.array([found]))[0]
    assert weight.sum() == pytest.approx(1)
    assert (weight >= 0).all()
    assert (np.diff(weight) <= 1e-12).all()


def test_neighbours_that_were_not_found_have_no_weight() -> None:
    weight = taper(np.array([[1.0, 2.0, np.inf, np.inf]]))[0]
    np.testing.assert_allclose(weight, [1, 0, 0], atol=1e-5)


def test_the_top_mean_takes_at_least_one_value() -> None:
    values = np.array([[1.0, 5.0, 3.0, 4.0]])
    assert top_mean(values, 1.0) == pytest.approx(3.25)
    assert top_mean(values, 0.5) == pytest.approx(4.5)
    assert top_mean(values, 0.001) == pytest.approx(5)


def test_params_survive_json() -> None:
    params = NlnParams.model_validate(PARAMS)
    assert NlnParams.model_validate_json(params.model_dump_json()) == params


def test_a_search_uses_the_threads_it_was_given_from_any_thread(tmp_path: Path) -> None:
    index = faiss.IndexFlatL2(4)
    index.add(np.eye(4, dtype=np.float32))
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    found = Runtime(threads=1).index(tmp_path / "index.faiss")

    def threads_after_a_search() -> int:
        found.search(np.zeros((1, 4), np.float32), 1)
        return int(faiss.omp_get_max_threads())

    with ThreadPoolExecutor(1) as other:
        assert other.submit(threads_after_a_search).result() == 1
