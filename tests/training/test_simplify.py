"""A simplified graph: the same numbers for any batch, by fewer operators."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from training.export import export_onnx
from training.simplify import simplify


class Block(nn.Module):
    """What a U-Net consists of: a normalised convolution, and attention over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, 16)
        self.convolution = nn.Conv2d(16, 16, 3, padding=1)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(nn.functional.silu(self.norm(x)))
        n, c, h, w = y.shape
        tokens = y.view(n, c, h * w).transpose(1, 2)
        weight = torch.softmax(tokens @ tokens.transpose(1, 2), dim=-1)
        return x + (weight @ tokens).transpose(1, 2).reshape(n, c, h, w)


def test_a_simplified_graph_computes_the_same_with_fewer_operators(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, smaller = tmp_path / "graph.onnx", tmp_path / "smaller.onnx"
    export_onnx(Block(), {"x": torch.rand(2, 16, 4, 4)}, ("y",), path)
    smaller.write_bytes(path.read_bytes())
    simplify(smaller)
    before, after = (
        Counter(node.op_type for node in onnx.load(str(p)).graph.node) for p in (path, smaller)
    )
    assert after["BatchNormalization"] == 1
    assert after["Shape"] == 0 < before["Shape"]
    assert after.total() < before.total()
    sessions = [
        ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (path, smaller)
    ]
    rng = np.random.default_rng(0)
    for size in (1, 3, 8):
        x = rng.standard_normal((size, 16, 4, 4), dtype=np.float32)
        exact, found = (session.run(None, {"x": x})[0] for session in sessions)
        np.testing.assert_allclose(found, exact, atol=1e-5)
