"""Where features come from: a network trained here, or a user's own ONNX file."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from service.contract.errors import AnomalyError, InvalidInput
from service.detectors.embedding_artifact import BACKBONE
from service.detectors.embedding_members import Blocks
from service.runtime import Runtime, Session
from training.export import export_onnx
from training.networks.embedding import EmbeddingNet

OWN_INPUT = "x"


class StageGraph(nn.Module):
    """What is exported of an own backbone: x -> the named outputs."""

    def __init__(self, net: EmbeddingNet, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.stages, self.head = net.stages, net.head
        self.wanted = [output_names(net).index(name) for name in outputs]

    def forward(self, x: Float[Tensor, "N C H W"]) -> tuple[Tensor, ...]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        found.append(self.head(x.mean(dim=(2, 3))))
        return tuple(found[i] for i in self.wanted)


def output_names(net: EmbeddingNet) -> list[str]:
    """``stage1``, ``stage2``, ..., ``projected`` of an own backbone."""
    return [*(f"stage{i + 1}" for i in range(len(net.stages))), "projected"]


@dataclass(frozen=True)
class Backbone:
    """A source of features and how to write it down."""

    input: str
    outputs: tuple[str, ...]
    blocks: Callable[[Float32[np.ndarray, "N C H W"]], Blocks]
    write: Callable[[Path], None]


def own_backbone(net: EmbeddingNet, wanted: tuple[str, ...], shape: tuple[int, ...]) -> Backbone:
    """The trained network; by default its last two stages and the projection.

    Raises:
        InvalidInput: an output that it has not.
    """
    names = output_names(net)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise InvalidInput(f"[model] outputs: no {', '.join(unknown)}; there are {names}")
    outputs = wanted or tuple(names[-3:])
    graph = StageGraph(net, outputs).eval()

    def blocks(x: Float32[np.ndarray, "N C H W"]) -> Blocks:
        with torch.inference_mode():
            return [block.numpy() for block in graph(torch.as_tensor(x))]

    def write(folder: Path) -> None:
        example = torch.zeros(2, *shape)
        export_onnx(graph, {OWN_INPUT: example}, outputs, folder / BACKBONE)

    return Backbone(OWN_INPUT, outputs, blocks, write)


def given_backbone(
    path: Path, wanted: tuple[str, ...], some: Float32[np.ndarray, "N C H W"]
) -> Backbone:
    """A user's ONNX file, tried out on some inputs.

    Raises:
        InvalidInput: it cannot be read alone, does not take such inputs in batches of any size, or
            its outputs are no features of each item.
    """
    if not path.is_file():
        raise InvalidInput(f"[model] backbone {path}: no such file")
    try:
        session = Runtime(threads=1).session(path)
    except AnomalyError as error:
        raise InvalidInput(
            f"[model] backbone {path}: not a graph that onnxruntime can load on its own; weights "
            "in files beside it have to be stored in it"
        ) from error
    name = _checked_input(path, session, some.shape[1:])
    outputs = _checked_outputs(path, session, name, wanted, some)

    def blocks(x: Float32[np.ndarray, "N C H W"]) -> Blocks:
        return session.run(outputs, {name: x})

    def write(folder: Path) -> None:
        shutil.copyfile(path, folder / BACKBONE)

    return Backbone(name, outputs, blocks, write)


def _checked_input(path: Path, session: Session, shape: tuple[int, ...]) -> str:
    if len(session.inputs) != 1:
        raise InvalidInput(
            f"[model] backbone {path}: inputs {list(session.inputs)}; one is expected, images"
        )
    name, takes = next(iter(session.inputs.items()))
    fits = len(takes) == 4 and all(
        not isinstance(side, int) or side == is_side
        for side, is_side in zip(takes[1:], shape, strict=True)
    )
    if not fits:
        raise InvalidInput(
            f"[model] backbone {path}: its input {name} is {list(takes)}, [input] gives "
            f"[N, {', '.join(map(str, shape))}]; set [input] height and width, "
            "or the size and channels of [data]"
        )
    if isinstance(takes[0], int):
        raise InvalidInput(
            f"[model] backbone {path}: its batch size is fixed at {takes[0]}; export it with a "
            "dynamic first axis"
        )
    return name


def _checked_outputs(
    path: Path, session: Session, name: str, wanted: tuple[str, ...], some: np.ndarray
) -> tuple[str, ...]:
    unknown = set(wanted) - set(session.outputs)
    if unknown:
        raise InvalidInput(
            f"[model] outputs: {path} has no {', '.join(sorted(unknown))}; it has "
            f"{', '.join(session.outputs)}"
        )
    asked = wanted or session.outputs
    try:
        both, first = (session.run(asked, {name: some[:n]}) for n in (2, 1))
    except AnomalyError as error:
        raise InvalidInput(f"[model] backbone {path}: cannot score images: {error}") from error
    usable = []
    for output, two, one in zip(asked, both, first, strict=True):
        featured = two.dtype == np.float32 and two.ndim in (2, 4) and len(two) == 2
        if featured and np.isfinite(two).all():
            if not np.allclose(two[:1], one, rtol=1e-3, atol=1e-4):
                raise InvalidInput(
                    f"[model] backbone {path}: {output} of an image depends on the others of its "
                    "batch; export it in inference mode"
                )
            usable.append(output)
        elif wanted:
            raise InvalidInput(
                f"[model] outputs: {output} of {path} is {two.dtype} {list(two.shape)} for two "
                "images; finite float32 [N, F] or [N, F, h, w] is expected"
            )
    if not usable:
        raise InvalidInput(f"[model] backbone {path}: no output is float32 [N, F] or [N, F, h, w]")
    return tuple(usable)
