"""From torch modules to ONNX files: named inputs, a dynamic batch axis, a checked graph."""

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

OPSET = 18


def export_onnx(
    module: nn.Module,
    example: dict[str, torch.Tensor],
    outputs: tuple[str, ...],
    path: Path,
    *,
    half: bool = False,
) -> None:
    """``module(**example)`` as an ONNX file whose first axes are the batch.

    Args:
        module: in eval mode; takes the inputs by these names and returns one tensor or a tuple.
        example: one example tensor per input, batch first (2 items, so that the batch axis is
            not taken for a constant).
        outputs: names of what it returns, in order.
        path: where to write.
        half: store as float16, widened on load, each large weight that loses nothing by it;
            computing stays float32. Call ``fold_batchnorm`` and ``round_to_half`` first: weights
            that the exporter itself has to fold stay float32.
    """
    module.eval()
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of torchvision operators that nothing here uses
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # deprecations inside the exporter itself
            torch.onnx.export(
                module,
                kwargs=example,
                f=str(path),
                input_names=list(example),
                output_names=list(outputs),
                dynamic_shapes={name: {0: torch.export.Dim("N")} for name in example},
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                optimize=True,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    model = onnx.load(str(path))
    if half:
        _store_half(model)
    for node in model.graph.node:  # the exporter records where on this machine the code lay
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """Each BatchNorm that directly follows a convolution or Linear in a Sequential, merged into it.

    Changes ``module``, which must be in eval mode, and returns it; its outputs stay the same.
    """
    for child in module.children():
        fold_batchnorm(child)
    if isinstance(module, nn.Sequential):
        for i in range(len(module) - 1):
            first, second = module[i], module[i + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                module[i] = fuse_conv_bn_eval(first, second)
            elif isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.BatchNorm2d):
                module[i] = fuse_conv_bn_eval(first, second, transpose=True)
            elif isinstance(first, nn.Linear) and isinstance(second, nn.BatchNorm1d):
                module[i] = fuse_linear_bn_eval(first, second)
            else:
                continue
            module[i + 1] = nn.Identity()
    return module


def round_to_half(module: nn.Module) -> None:
    """Each parameter and buffer that ``export_onnx(half=True)`` narrows, rounded in place."""
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.dtype == torch.float32 and tensor.numel() >= _SMALLEST_HALF:
                tensor.copy_(tensor.half().float())


_SMALLEST_HALF = 1024


def _store_half(model: onnx.ModelProto) -> None:
    graph = model.graph
    casts = []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < _SMALLEST_HALF or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    for node in reversed(casts):
        graph.node.insert(0, node)
