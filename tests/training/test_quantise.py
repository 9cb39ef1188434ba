"""int8 convolutions: near float32, the same whatever the batch, and smaller."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from service.contract.manifest import ImageInput
from training.export import export_onnx, round_to_half
from training.families.base import PreparedData
from training.parity import ParityError, check_ranking_parity
from training.quantise import quantise_convolutions, widen


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1)
    )
    round_to_half(network)
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    example = {"input": torch.rand(2, 1, 8, 8)}
    export_onnx(network, example, ("output",), path, half=True)
    return path


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {"input": x})[0]
    return output


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((32, 1, 8, 8), dtype=np.float32)


def test_a_quantised_graph_is_near_its_float32_one_and_does_not_mix_items(
    graph: Path, x: np.ndarray, tmp_path: Path
) -> None:
    made = tmp_path / "graph.onnx"
    made.write_bytes(graph.read_bytes())
    quantise_convolutions(made, [{"input": part} for part in np.split(x, 4)])
    exact, found = run(graph, x), run(made, x)
    assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
    np.testing.assert_array_equal(np.concatenate([run(made, one[None]) for one in x]), found)
    types = {weight.data_type for weight in onnx.load(str(made)).graph.initializer}
    assert onnx.TensorProto.INT8 in types
    assert list(tmp_path.iterdir()) == [made]


def test_widened_weights_compute_the_same(graph: Path, x: np.ndarray, tmp_path: Path) -> None:
    widen(graph, tmp_path / "wide.onnx")
    types = {w.data_type for w in onnx.load(str(tmp_path / "wide.onnx")).graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in types
    np.testing.assert_array_equal(run(tmp_path / "wide.onnx", x), run(graph, x))


class Brightness:
    """A family whose score is the mean of the pixels; torch and files may disagree."""

    def __init__(self, off: float) -> None:
        self.off = off
        self.manifest = SimpleNamespace(params={"precision": "int8"})

    def reference_scores(self, _model: object, _folder: Path, x: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(scores=x.mean(axis=(1, 2, 3)))

    def score(self, x: np.ndarray) -> SimpleNamespace:
        rng = np.random.default_rng(0)
        return SimpleNamespace(raw=x.mean(axis=(1, 2, 3)) + self.off * rng.standard_normal(len(x)))


def test_int8_is_published_only_where_it_ranks_as_float32_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    normal, bright = (rng.normal(m, 1, (200, 1, 2, 2)).astype(np.float32) for m in (0.0, 1.0))
    spec = ImageInput(height=8, width=8, channels=1, mean=(0.0,), std=(1.0,))
    data = PreparedData(spec, normal, normal, bright)
    near, far = Brightness(1e-4), Brightness(1.0)
    check_ranking_parity(near, None, tmp_path, near, data)
    with pytest.raises(ParityError, match=r"in int8 the AUROC.*allowed 0\.002"):
        check_ranking_parity(far, None, tmp_path, far, data)
    unseen = PreparedData(spec, normal, normal)
    with pytest.raises(ParityError, match="without synthetic anomalies"):
        check_ranking_parity(near, None, tmp_path, near, unseen)
