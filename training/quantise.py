"""int8 graphs: convolutions whose activations and weights are rounded to 8 bits.

The range of each activation is found on normal items (static quantisation). Ranges that are found
at each run (dynamic quantisation) would be those of the whole batch, and an item's score would
depend on its neighbours.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

Feeds = dict[str, np.ndarray]


def quantise_convolutions(path: Path, feeds: Sequence[Feeds]) -> None:
    """The ONNX file at ``path`` computes its convolutions in int8; everything else stays float32.

    Args:
        path: a graph; it is replaced.
        feeds: inputs as scoring makes them from normal items.
    """
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        wide, made = Path(folder, "wide.onnx"), Path(folder, "int8.onnx")
        widen(path, wide)
        root.setLevel(logging.ERROR)  # it warns, on the root logger, of a step that helps nothing
        try:
            quantize_static(
                wide,
                made,
                Reader(feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                # 7 bits: processors without VNNI add pairs of products in 16 bits, and would clip
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            root.setLevel(level)
        onnx.checker.check_model(onnx.load(str(made)))
        made.replace(path)


def widen(path: Path, to: Path) -> None:
    """The graph with the weights that are stored as float16 as float32 ones, written to ``to``."""
    model = onnx.load(str(path))
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Cast" and node.input[0] in weights:
            values = numpy_helper.to_array(weights[node.input[0]]).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            graph.initializer.remove(weights[node.input[0]])
            graph.node.remove(node)
    onnx.save(model, str(to))


class Reader(CalibrationDataReader):
    """Feeds one by one, as onnxruntime asks for them."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._left: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._left, None)
