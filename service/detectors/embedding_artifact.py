"""What the family ``embedding`` writes and reads: names of files, params, arrays and banks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64
from pydantic import Field

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible, DetectorFailure
from service.contract.manifest import ImageInput
from service.detectors.base import Params
from service.detectors.embedding_members import (
    Blocks,
    Gaussian,
    Nearest,
    PatchBank,
    places_of,
    pooled,
)
from service.runtime import NeighbourIndex, Runtime

BACKBONE, ARRAYS = "backbone.onnx", "arrays.npz"
PATCH_INDEX = "patches.faiss"

NearestMember = Literal["knn", "whitened", "pixels"]
Member = NearestMember | Literal["mahalanobis", "patches"]
NEAREST: tuple[NearestMember, ...] = ("knn", "whitened", "pixels")


class EmbeddingParams(Params):
    """What scoring needs besides the arrays."""

    backbone: Literal["own", "given"]
    input: str
    """Of the graph."""
    outputs: tuple[str, ...] = Field(min_length=1)
    """Of the graph: the blocks, in order."""
    members: tuple[Member, ...] = Field(min_length=1)
    """More than one: combined."""
    combine: Literal["sum", "max"] = "sum"
    neighbours: int = Field(ge=1, description="K of the nearest")
    locality: float = Field(ge=0, le=1)
    radius: dict[NearestMember, float] = Field(default_factory=dict)
    """Of the members that search for neighbours; see ``Nearest``."""
    nearest_block: dict[NearestMember, int] = Field(default_factory=dict)
    nearest_grid: dict[NearestMember, int] = Field(default_factory=dict)
    top: float = Field(gt=0, le=1, description="share of the furthest places")
    selection: dict[str, float] = Field(default_factory=dict)
    """AUROC of each member on held-out normals against synthetic anomalies; decides nothing."""


@dataclass(frozen=True)
class Parts:
    """What a detector is made of; training builds one of torch parts, ``open`` one of files."""

    params: EmbeddingParams
    size: tuple[int, int]
    """(H, W) of the input."""
    blocks: Callable[[Float32[np.ndarray, "N C H W"]], Blocks]
    nearest: Mapping[NearestMember, Nearest]
    gaussian: Gaussian | None
    patches: PatchBank | None
    held_out: Mapping[Member, Float64[np.ndarray, "2 K"]]
    """By member the curve of its held-out scores, see ``surprise``; empty where there is one."""


@dataclass(frozen=True)
class Files:
    """The arrays of an artifact, and where its other files lie."""

    arrays: Mapping[str, np.ndarray]
    file: Callable[[str], Path]


def index_file(member: NearestMember) -> str:
    """The name of the bank of a member."""
    return f"{member}.faiss"


def read_parts(
    params: EmbeddingParams,
    spec: ImageInput,
    blocks: Callable[[Float32[np.ndarray, "N C H W"]], Blocks],
    files: Files,
    runtime: Runtime,
) -> Parts:
    """The parts of an artifact's files around a backbone.

    Raises:
        ArtifactCorrupt: a file or an array is missing, or they do not fit each other.
        ArtifactIncompatible: they do not fit what the backbone gives.
    """
    a = files.arrays
    blank = np.zeros((1, *spec.shape), dtype=np.float32)
    try:
        given = blocks(blank)
        near = {
            member: _nearest(params, member, files, runtime)
            for member in NEAREST
            if member in params.members
        }
        gaussian = patches = None
        if "mahalanobis" in params.members:
            count = range(len(params.outputs))
            gaussian = Gaussian(
                [a[f"centres_{i}"] for i in count], [a[f"precision_{i}"] for i in count]
            )
        if "patch_mean" in a:
            path = files.file(PATCH_INDEX)
            index = runtime.index(path)
            if a["patch_mean"].shape != a["patch_weight"].shape:
                raise ArtifactCorrupt(f"{files.file(ARRAYS)}: patch_mean and patch_weight differ")
            _agree(path, index, a["patch_mean"].size, 1)
            patches = PatchBank(a["patch_mean"], a["patch_weight"], index, params.top)
        elif "patches" in params.members:
            raise KeyError("patch_mean")
        several = params.members if len(params.members) > 1 else ()
        held_out = {member: a[f"held_out_{member}"] for member in several}
        if any(curve.ndim != 2 or len(curve) != 2 or not curve.size for curve in held_out.values()):
            raise ArtifactCorrupt(f"{files.file(ARRAYS)}: held-out scores are no curves")
    except KeyError as error:
        raise ArtifactCorrupt(f"{files.file(ARRAYS)}: lacks {error}") from error
    except DetectorFailure as error:
        path = files.file(BACKBONE)
        raise ArtifactIncompatible(f"{path}: does not take the input ({error})") from error
    parts = Parts(params, (spec.shape[1], spec.shape[2]), blocks, near, gaussian, patches, held_out)
    wrong = _misfits(parts, blank, given)
    if wrong:
        raise ArtifactIncompatible(
            f"{files.file(ARRAYS)}: those of {', '.join(wrong)} are not as wide as what {BACKBONE} "
            "gives"
        )
    return parts


def _nearest(
    params: EmbeddingParams, member: NearestMember, files: Files, runtime: Runtime
) -> Nearest:
    mean, typical = (files.arrays[f"{member}_{name}"] for name in ("mean", "typical"))
    matrix = files.arrays.get(f"{member}_matrix")
    path = files.file(index_file(member))
    index = runtime.index(path)
    if matrix is not None and matrix.shape[:-1] != mean.shape:
        raise ArtifactCorrupt(f"{files.file(ARRAYS)}: mean and matrix of {member} do not fit")
    width = mean.size if matrix is None else matrix.shape[1]
    _agree(path, index, width + 1, params.neighbours, typical)
    block, grid = params.nearest_block[member], params.nearest_grid[member]
    radius, sizes = params.radius[member], (params.neighbours, params.locality)
    return Nearest(block, grid, mean, matrix, radius, index, typical, *sizes)


def _agree(
    path: Path, index: NeighbourIndex, width: int, least: int, of_each: np.ndarray | None = None
) -> None:
    if index.dimension != width or index.size < least:
        raise ArtifactCorrupt(f"{path}: {index.size} rows of {index.dimension}, not of {width}")
    if of_each is not None and of_each.shape != (index.size,):
        raise ArtifactCorrupt(f"{path}: {index.size} rows, but {of_each.shape} typical distances")


def _misfits(parts: Parts, x: Float32[np.ndarray, "1 C H W"], given: Blocks) -> list[Member]:
    """The members whose arrays are not as wide as what the backbone gives of ``x``."""
    wrong: list[Member] = []
    for member, near in parts.nearest.items():
        blocks = [x] if member == "pixels" else given
        fits = near.block < len(blocks)
        width = pooled(blocks[near.block], near.grid).shape[1] if fits else 0
        if not fits or near.mean.shape != (width,):
            wrong.append(member)
    if parts.gaussian is not None:
        widths = [pooled(block).shape[1] for block in given]
        both = zip(parts.gaussian.centres, parts.gaussian.precisions, strict=True)
        if [(c.shape[-1], p.shape) for c, p in both] != [(w, (w, w)) for w in widths]:
            wrong.append("mahalanobis")
    if parts.patches is not None:
        maps = [block for block in given if block.ndim == 4]
        width = places_of(given)[0].shape[1] if maps else 0
        if parts.patches.mean.shape != (width,):
            wrong.append("patches")
    return wrong
