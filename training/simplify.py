"""Fewer operators for the same numbers: what the exporter leaves of GroupNorm and of reshapes.

The exporter computes each shape from the batch size anew, and scales and shifts in two passes what
GroupNorm has normalised. In a denoiser of small images these take a tenth of the time, in int8 a
fifth.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper, shape_inference


def simplify(path: Path) -> None:
    """The ONNX file at ``path`` computes the same with fewer operators."""
    model = onnx.load(str(path))
    _fix_shapes(model)
    _join_affine(model.graph)
    _drop_unused(model.graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _fix_shapes(model: onnx.ModelProto) -> None:
    """Reshapes to computed shapes of which one axis is the batch get that shape as a constant."""
    graph = model.graph
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]  # 0: not known
        for value in [*inferred.value_info, *inferred.output]
        if value.type.tensor_type.HasField("shape")
    }
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        shape = shapes.get(node.output[0], [])
        if node.op_type == "Reshape" and node.input[1] not in constants and shape.count(0) == 1:
            fixed = np.array([size or -1 for size in shape], dtype=np.int64)
            name = f"{node.output[0]}.shape"
            graph.initializer.append(numpy_helper.from_array(fixed, name))
            node.input[1] = name


def _join_affine(graph: onnx.GraphProto) -> None:
    """Scale and shift after a GroupNorm as one operator: BatchNormalization of mean 0, scale 1."""
    values = {t.name: t for t in graph.initializer}
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)

    def only_user(node: NodeProto, kind: str) -> tuple[NodeProto, np.ndarray] | None:
        found = users[node.output[0]]
        if len(found) != 1 or found[0].op_type != kind:
            return None
        weights = [numpy_helper.to_array(values[n]) for n in found[0].input if n in values]
        return (found[0], weights[0]) if weights else None

    for norm in [node for node in graph.node if node.op_type == "InstanceNormalization"]:
        reshape = only_user(norm, "Reshape")
        scaled = only_user(reshape[0], "Mul") if reshape else None
        shifted = only_user(scaled[0], "Add") if scaled else None
        if reshape is None or scaled is None or shifted is None:
            continue
        scale, shift = scaled[1], shifted[1]
        channels = scale.size
        if scale.shape[-3:] != (channels, 1, 1) or shift.shape[-3:] != (channels, 1, 1):
            continue
        joined = shifted[0].output[0]
        numbers = {
            "scale": scale.reshape(-1),
            "shift": shift.reshape(-1),
            "mean": np.zeros(channels, scale.dtype),
            "variance": np.ones(channels, scale.dtype),
        }
        names = [f"{joined}.{key}" for key in numbers]
        for name, value in zip(names, numbers.values(), strict=True):
            graph.initializer.append(numpy_helper.from_array(value, name))
        node = helper.make_node(
            "BatchNormalization", [reshape[0].output[0], *names], [joined], epsilon=0.0
        )
        graph.node.insert(list(graph.node).index(shifted[0]), node)
        graph.node.remove(shifted[0])
        graph.node.remove(scaled[0])


def _drop_unused(graph: onnx.GraphProto) -> None:
    while True:
        used = {name for node in graph.node for name in node.input}
        used |= {value.name for value in graph.output}
        unused = [node for node in graph.node if not used.intersection(node.output)]
        if not unused:
            break
        for node in unused:
            graph.node.remove(node)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
