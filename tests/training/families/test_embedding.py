"""The family ``embedding``: own and given backbones, each score, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from service.contract.errors import InvalidInput
from service.contract.manifest import ImageInput
from service.contract.store import open_artifact
from service.detectors.embedding_members import smooth_resize, surprise
from service.runtime import Runtime
from service.scoring import Scorer, self_test
from training.__main__ import app
from training.config import load_data, make_config
from training.families.base import PreparedData
from training.families.embedding import Embedding, EmbeddingConfig
from training.families.embedding.augment import Views, view
from training.families.embedding.bank import coreset
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


def test_exported_files_score_as_the_torch_network_does(data: PreparedData, tmp_path: Path) -> None:
    members = ("knn", "whitened", "pixels", "mahalanobis", "patches")
    model = fitted(data, tmp_path, score="combined", combined=members)
    Embedding().export(model, data, tmp_path)
    session = Runtime(threads=1).session(tmp_path / "backbone.onnx")
    x = data.validation[:7]
    for ours, theirs in zip(
        session.run(model.backbone.outputs, {"x": x}), model.backbone.blocks(x), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    found = Embedding().reference_scores(model, tmp_path, x)
    assert found.maps is not None
    assert found.maps.shape == (7, 16, 16)


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
    held_out = np.sort(np.random.default_rng(0).normal(size=50))
    found = surprise(held_out, np.linspace(-3, 30, 200))
    assert (np.diff(found) >= 0).all()
    assert (np.diff(found)[60:] > 0).all()
    assert surprise(held_out, held_out[-1:]) == pytest.approx(np.log(51))


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
