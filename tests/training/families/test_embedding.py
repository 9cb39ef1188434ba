"""The family ``embedding``: own and given backbones, each score, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError
from scipy.spatial.distance import cdist
from sklearn.covariance import ShrunkCovariance
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from typer.testing import CliRunner

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible, InvalidInput
from service.contract.manifest import ImageInput, Manifest
from service.contract.store import Artifact, open_artifact
from service.detectors.embedding import EmbeddingDetector
from service.detectors.embedding_artifact import ARRAYS
from service.detectors.embedding_members import places_of, smooth_resize, surprise
from service.runtime import Runtime
from service.scoring import Scorer, self_test
from training.__main__ import app
from training.config import load_data, make_config
from training.coreset import coreset
from training.families.base import PreparedData
from training.families.embedding import Embedding, EmbeddingConfig
from training.families.embedding.augment import Views, view
from training.families.embedding.bank import (
    Features,
    gather,
    place_weights,
    places_at,
    surprise_curve,
    whitening,
)
from training.run import Run

SPEC = ImageInput(height=16, width=16, channels=1, mean=(0.0,), std=(1.0,))


def backbone_file(
    path: Path,
    size: int = 16,
    *,
    channels: int = 1,
    batch: str | int = "N",
    extra: bool = False,
    mixes: bool = False,
) -> Path:
    """A random convolution with a ReLU: a feature map, and its mean over the places."""
    kernel = np.random.default_rng(0).normal(size=(12, channels, 5, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "kernel"], ["c"], strides=[4, 4], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["c"], ["places"]),
        helper.make_node("GlobalAveragePool", ["places"], ["p"]),
        helper.make_node("Flatten", ["p"], ["vector"]),
    ]
    if mixes:
        axes = numpy_helper.from_array(np.array([0], np.int64), "first")
        nodes[3] = helper.make_node("Flatten", ["p"], ["flat"])
        nodes += [
            helper.make_node("ReduceMean", ["flat", "first"], ["all"], keepdims=1),
            helper.make_node("Sub", ["flat", "all"], ["vector"]),
        ]
    side = size // 4
    outputs = [
        helper.make_tensor_value_info("places", TensorProto.FLOAT, [batch, 12, side, side]),
        helper.make_tensor_value_info("vector", TensorProto.FLOAT, [batch, 12]),
    ]
    if extra:
        nodes.append(helper.make_node("Shape", ["pixels"], ["shape"]))
        outputs.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [4]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, channels, size, size])],
        outputs,
        [numpy_helper.from_array(kernel, "kernel"), *([axes] if mixes else [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def blobs(n: int, seed: int, *, odd: bool = False) -> np.ndarray:
    """A bright bar that stands, or lies where it is odd, somewhere on noise."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 0.1, (n, 1, 16, 16)).astype(np.float32)
    for i, place in enumerate(rng.integers(2, 12, n)):
        x[i, 0, 3:13, place : place + 2] = 1
    return np.ascontiguousarray(x.transpose(0, 1, 3, 2)) if odd else x


@pytest.fixture(scope="module")
def data() -> PreparedData:
    return PreparedData(SPEC, blobs(160, 0), blobs(60, 1), blobs(60, 2, odd=True))


def fitted(data: PreparedData, tmp_path: Path, **settings: Any) -> Any:
    config = EmbeddingConfig(**{"steps": 10, "width": 8, "batch_size": 32, **settings})
    return Embedding().fit(config, data, Run(tmp_path / "run", progress=False))


def test_a_users_own_backbone_serves_from_the_command_line(
    digit_folder: Path, tmp_path: Path
) -> None:
    given = backbone_file(tmp_path / "tiny.onnx", 32, channels=3, extra=True)
    models = tmp_path / "models"
    settings = {
        "backbone": given,
        "score": "combined",
        "combined": '["knn", "mahalanobis", "patches"]',
        "bank_patches": 200,
    }
    result = CliRunner().invoke(
        app,
        [
            *("fit", "--family=embedding", f"--images={digit_folder}", "--name=mine"),
            *("--size=32", "--quiet", f"--runs={tmp_path / 'runs'}", f"--models={models}"),
            *(f"--set=model.{key}={value}" for key, value in settings.items()),
        ],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    artifact = open_artifact(models, "mine", 1)
    assert artifact.file("backbone.onnx").read_bytes() == given.read_bytes()
    scorer = Scorer.open(artifact, Runtime(threads=1))
    self_test(scorer, artifact)
    source = {"name": "folder", "path": str(digit_folder), "size": 32}
    digits = load_data(make_config({"name": "x", "family": "nln", "data": source}, "test"), None)
    found = scorer.score_images(digits.test)
    assert roc_auc_score(digits.test_labels, found.raw) > 0.8


@pytest.mark.parametrize("score", ["knn", "whitened", "pixels", "mahalanobis", "patches"])
def test_each_score_tells_lying_bars_from_standing_ones(
    data: PreparedData, tmp_path: Path, score: str
) -> None:
    given = backbone_file(tmp_path / "tiny.onnx")
    model = fitted(data, tmp_path, backbone=str(given), score=score, clusters=2)
    assert model.parts.params.selection[score] > 0.9


def served(model: Any, data: PreparedData, folder: Path) -> EmbeddingDetector:
    """The detector of exported files."""
    params = Embedding().export(model, data, folder).model_dump(mode="json")
    return opened(folder, params)


def opened(folder: Path, params: dict[str, Any]) -> EmbeddingDetector:
    files = dict.fromkeys((path.name for path in folder.iterdir()), "")
    manifest = Manifest.model_construct(params=params, input=SPEC, files=files)
    return EmbeddingDetector.open(Artifact(folder, manifest, ""), Runtime(threads=1))


def test_an_own_backbone_gives_the_same_features_scores_and_maps_when_exported(
    data: PreparedData, tmp_path: Path
) -> None:
    members = ("knn", "whitened", "pixels", "mahalanobis", "patches")
    model = fitted(data, tmp_path, score="combined", combined=members)
    detector = served(model, data, tmp_path)
    x = data.validation[:7]
    for ours, theirs in zip(detector.parts.blocks(x), model.backbone.blocks(x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    expected = Embedding().reference_scores(model, tmp_path, x)
    found = detector.detect(x, maps=True)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3, atol=1e-3)
    assert found.maps is not None
    assert found.maps.shape == (7, 16, 16)
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-3, atol=1e-3)


def test_knn_is_scikit_learns_of_directions(data: PreparedData, tmp_path: Path) -> None:
    given = backbone_file(tmp_path / "tiny.onnx")
    model = fitted(data, tmp_path, backbone=str(given), score="knn", locality=0.0)
    x = data.validation
    train, items = (normalize(model.backbone.blocks(some)[-1]) for some in (data.train, x))
    distance, _ = NearestNeighbors(n_neighbors=5).fit(train).kneighbors(items)
    found = served(model, data, tmp_path).detect(x, maps=False)
    np.testing.assert_allclose(found.scores, distance.mean(axis=1), rtol=1e-4, atol=1e-6)


def test_locality_divides_by_how_far_the_neighbours_are_from_theirs(
    data: PreparedData, tmp_path: Path
) -> None:
    given = backbone_file(tmp_path / "tiny.onnx")
    model = fitted(data, tmp_path, backbone=str(given), score="knn", locality=1.0)
    x = data.validation
    train, items = (normalize(model.backbone.blocks(some)[-1]) for some in (data.train, x))
    search = NearestNeighbors(n_neighbors=5).fit(train)
    typical = search.kneighbors()[0].mean(axis=1)
    typical = np.maximum(typical / np.median(typical), 0.1)
    distance, ids = search.kneighbors(items)
    expected = distance.mean(axis=1) / typical[ids].mean(axis=1)
    found = served(model, data, tmp_path).detect(x, maps=False)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-3)


def test_mahalanobis_is_scikit_learns_of_the_shrunk_covariance(
    data: PreparedData, tmp_path: Path
) -> None:
    given = backbone_file(tmp_path / "tiny.onnx")
    model = fitted(data, tmp_path, backbone=str(given), score="mahalanobis", outputs=("vector",))
    x = data.validation
    train, items = (model.backbone.blocks(some)[0].astype(float) for some in (data.train, x))
    expected = ShrunkCovariance(shrinkage=0.1).fit(train).mahalanobis(items)
    found = served(model, data, tmp_path).detect(x, maps=False)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-3)


def test_whitened_vectors_are_those_of_a_pca(data: PreparedData, tmp_path: Path) -> None:
    given = backbone_file(tmp_path / "tiny.onnx")
    settings = {"backbone": str(given), "outputs": ("vector",), "score": "whitened"}
    model = fitted(
        data, tmp_path, **settings, ridge=0.0, components=4, radius=1e4, locality=0.0, neighbours=1
    )
    train, items = (model.backbone.blocks(x)[0] for x in (data.train, data.validation))
    pca = PCA(4, whiten=True).fit(train)
    search = NearestNeighbors(n_neighbors=1).fit(pca.transform(train))
    expected = search.kneighbors(pca.transform(items))[0][:, 0]
    found = served(model, data, tmp_path).detect(data.validation, maps=False).scores
    # with a large radius the sphere is flat, and distances are those of the vectors but for it
    found *= model.parts.nearest["whitened"].radius
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.05)


def test_of_many_features_the_wanted_components_are_those_of_the_full_decomposition() -> None:
    rng = np.random.default_rng(0)
    scale = 0.7 ** np.arange(30)
    mixed = rng.normal(size=(200, 30)) * scale @ rng.normal(size=(30, 1500))
    z = mixed.astype(np.float32)
    mean, matrix = whitening(z, ridge=0.0, components=5)
    pca = PCA(5, svd_solver="full", whiten=True).fit(z)
    ours, theirs = (z - mean) @ matrix, pca.transform(z)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=2e-2)


def test_patches_are_the_brute_force_distances_to_the_bank(
    data: PreparedData, tmp_path: Path
) -> None:
    given = backbone_file(tmp_path / "tiny.onnx")
    settings = {"score": "patches", "bank_patches": 300, "top": 1e-6}
    model = fitted(data, tmp_path, backbone=str(given), **settings)
    x = data.validation[:9]
    kept = model.indexes["patches.faiss"].reconstruct_n(0, 300)
    patches = model.parts.patches
    places = model.backbone.blocks(x)[0].transpose(0, 2, 3, 1).reshape(-1, 12)
    distance = cdist((places - patches.mean) * patches.weight, kept).min(axis=1).reshape(9, -1)
    found = served(model, data, tmp_path).detect(x, maps=False)
    np.testing.assert_allclose(found.scores, distance.max(axis=1), rtol=1e-3, atol=1e-4)


def test_candidates_are_rows_of_all_the_places() -> None:
    rng = np.random.default_rng(0)
    blocks = [
        rng.normal(size=shape).astype(np.float32) for shape in ((6, 3, 7, 5), (6, 4, 4, 3), (6, 2))
    ]
    every, grid = places_of(blocks)
    assert grid == (7, 5)
    some = rng.permutation(len(every))[:50]
    np.testing.assert_array_equal(places_at(blocks, some), every[some])


def test_the_backbone_sees_each_training_image_once(data: PreparedData) -> None:
    seen = []

    def blocks(x: np.ndarray) -> list[np.ndarray]:
        seen.append(len(x))
        return [x, x.reshape(len(x), -1)]

    rng = np.random.default_rng(0)
    found = gather(blocks, data.train, [(0, 2), (1, 1), (0, 1)], 100, rng)
    assert sum(seen) == len(data.train) + 2  # two are looked at for their shapes
    assert {key: z.shape for key, z in found.pooled.items()} == {
        (0, 2): (160, 4),
        (1, 1): (160, 256),
        (0, 1): (160, 1),
    }
    assert found.places.shape == (100, 1)


def test_a_channel_that_is_dead_among_normal_images_does_not_drown_the_others() -> None:
    rng = np.random.default_rng(0)
    places = rng.normal(size=(500, 4)).astype(np.float32)
    places[:, 2] *= 1e-9
    _, weight = place_weights(Features({}, places, [4]))
    assert weight[2] == pytest.approx(100 * np.median(weight[[0, 1, 3]]), rel=0.2)


def test_broken_artifacts_are_refused(data: PreparedData, tmp_path: Path) -> None:
    given = backbone_file(tmp_path / "tiny.onnx")
    model = fitted(data, tmp_path / "fit", backbone=str(given))
    folder = tmp_path / "artifact"
    folder.mkdir()
    params = Embedding().export(model, data, folder).model_dump(mode="json")
    opened(folder, params)
    with np.load(folder / ARRAYS) as npz:
        arrays = dict(npz)
    for wrong, error, said in (
        ({"knn_mean": np.zeros(3)}, ArtifactCorrupt, "knn.faiss"),
        ({"knn_typical": np.ones(3)}, ArtifactCorrupt, "typical"),
        ({"whitened_mean": np.zeros(3)}, ArtifactCorrupt, "whitened do not fit"),
        ({"patch_weight": np.ones(3, np.float32)}, ArtifactCorrupt, "patch_weight"),
        (
            {"whitened_mean": np.zeros(9), "whitened_matrix": np.ones((9, 12))},
            ArtifactIncompatible,
            "whitened",
        ),
    ):
        np.savez(folder / ARRAYS, **{**arrays, **wrong})
        with pytest.raises(error, match=said):
            opened(folder, params)
    del arrays["held_out_knn"]
    np.savez(folder / ARRAYS, **arrays)
    with pytest.raises(ArtifactCorrupt, match="held_out_knn"):
        opened(folder, params)
    (folder / ARRAYS).write_bytes(b"junk")
    with pytest.raises(ArtifactCorrupt, match="npz"):
        opened(folder, params)


def test_the_map_points_at_what_no_normal_image_has(data: PreparedData, tmp_path: Path) -> None:
    given = backbone_file(tmp_path / "tiny.onnx")
    model = fitted(data, tmp_path, backbone=str(given))
    Embedding().export(model, data, tmp_path)
    x = data.validation[:1].copy()
    x[0, 0, 8:, :8] = np.indices((8, 8)).sum(axis=0) % 2 * 3
    found = Embedding().reference_scores(model, tmp_path, x)
    assert found.maps is not None
    row, column = np.unravel_index(found.maps[0].argmax(), (16, 16))
    assert row >= 8
    assert column < 8


@pytest.mark.parametrize(
    ("made", "settings", "said"),
    [
        ({"size": 32}, {}, "height and width"),
        ({"batch": 1}, {}, "dynamic first axis"),
        ({"mixes": True}, {}, "depends on the others of its batch"),
        ({}, {"outputs": ("nothing",)}, "has no nothing"),
        ({"extra": True}, {"outputs": ("shape",)}, "expected"),
        ({}, {"outputs": ("vector",), "score": "patches"}, "no feature map"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(
    data: PreparedData,
    tmp_path: Path,
    made: dict[str, Any],
    settings: dict[str, Any],
    said: str,
) -> None:
    given = backbone_file(tmp_path / "tiny.onnx", **made)
    with pytest.raises(InvalidInput, match=said):
        fitted(data, tmp_path, backbone=str(given), **settings)


def test_files_that_are_no_graph_are_refused(data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file"):
        fitted(data, tmp_path, backbone=str(tmp_path / "none.onnx"))
    (tmp_path / "junk.onnx").write_text("junk")
    with pytest.raises(InvalidInput, match="not a graph"):
        fitted(data, tmp_path, backbone=str(tmp_path / "junk.onnx"))


def test_a_backbone_of_vectors_alone_has_an_even_map(data: PreparedData, tmp_path: Path) -> None:
    given = backbone_file(tmp_path / "tiny.onnx")
    model = fitted(data, tmp_path, backbone=str(given), outputs=("vector",), score="knn")
    Embedding().export(model, data, tmp_path)
    found = Embedding().reference_scores(model, tmp_path, data.validation[:3])
    assert found.maps is not None
    assert (found.maps == found.maps[:, :1, :1]).all()


def test_copies_among_the_training_images_do_no_harm(tmp_path: Path) -> None:
    same = PreparedData(SPEC, np.repeat(blobs(2, 0), 20, axis=0), blobs(20, 1))
    model = fitted(same, tmp_path)
    assert all(np.isfinite(scores).all() for scores in model.parts.held_out.values())


def test_surprise_grows_with_the_score_and_never_ties_beyond_the_held_out() -> None:
    held_out = np.random.default_rng(0).normal(size=50)
    curve = surprise_curve(held_out)
    found = surprise(curve, np.linspace(-3, 30, 200))
    assert (np.diff(found) >= 0).all()
    assert (np.diff(found)[60:] > 0).all()
    assert surprise(curve, np.array([held_out.max()])) == pytest.approx(np.log(51))


def test_surprise_is_the_log_p_value_up_to_its_steps() -> None:
    rng = np.random.default_rng(0)
    held_out, scores = rng.gamma(2.0, size=2000), rng.gamma(2.0, size=300)
    p = (1 + (held_out >= scores[:, None]).sum(axis=1)) / 2001
    found = surprise(surprise_curve(held_out), scores)
    np.testing.assert_allclose(found[p > 0.02], -np.log(p[p > 0.02]), atol=0.05)


def test_rounding_is_no_other_surprise_where_held_out_scores_are_almost_equal() -> None:
    held_out = np.concatenate([np.linspace(1, 2, 30), np.linspace(1, 2, 30) + 1e-9])
    scores = np.linspace(1, 2, 1000)
    curve = surprise_curve(held_out)
    np.testing.assert_allclose(surprise(curve, scores), surprise(curve, scores + 1e-6), atol=1e-3)


@pytest.mark.parametrize("level", [0.0, 3.0])
def test_where_held_out_scores_are_equal_another_member_still_counts(level: float) -> None:
    uniform = np.random.default_rng(0).uniform(1, 2, 50)
    equal, spread = surprise_curve(np.full(50, level)), surprise_curve(uniform)
    nudged = np.array([level + 1e-6, level + 0.5, level + 0.5, level + 1.0])
    joined = surprise(equal, nudged) + surprise(spread, np.array([1.5, 1.5, 4.0, 1.5]))
    assert (joined < 100).all()
    assert joined[1] < joined[3]  # its own order stays
    assert joined[2] > joined[3]  # the other's word is heard


def test_a_bank_too_small_for_its_neighbours_is_refused() -> None:
    with pytest.raises(ValidationError, match="neighbours"):
        EmbeddingConfig(bank_items=6, neighbours=5)
    EmbeddingConfig(bank_items=7, neighbours=5)


def test_a_constant_stays_constant_when_resized() -> None:
    for side, cells in ((28, 7), (16, 1), (5, 8)):
        np.testing.assert_allclose(smooth_resize(side, cells).sum(axis=1), 1, rtol=1e-6)


def test_the_coreset_reaches_every_cluster() -> None:
    rng = np.random.default_rng(0)
    crowded = np.concatenate([rng.normal(0, 0.01, (500, 2)), [[9.0, 0.0], [0.0, 9.0]]])
    chosen = coreset(crowded.astype(np.float32), 5)
    assert {500, 501} <= set(chosen.tolist())


def test_views_are_the_image_but_for_what_is_asked() -> None:
    x, blank = torch.as_tensor(blobs(6, 0)), torch.zeros(1, 1, 1)
    nothing = Views(degrees=0, scale=0, shear=0, shift=0, erase=0)
    assert torch.equal(view(x, nothing, blank), x)
    still = nothing.model_copy(update={"degrees": 1e-6})  # through the affine grid
    assert torch.allclose(view(x, still, blank), x, atol=1e-4)
    erased = view(x, nothing.model_copy(update={"erase": 1.0}), blank)
    changed = (erased != x).flatten(1)
    assert changed.any(dim=1).all()
    assert (erased[erased != x] == 0).all()
