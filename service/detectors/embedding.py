"""Images judged by the features that a network sees in them, against those of a normal bank.

The backbone is an ONNX graph: one trained on the normal images alone, or a user's own. Its outputs,
vectors or feature maps, are judged by

``knn``          distance between the directions of vectors to the nearest of the bank, over how far
                 those are from their own neighbours to the power ``locality``; of the last block
                 (of an own backbone: what its contrastive loss compared)
``whitened``     the same of whitened vectors, whose length counts as well
``pixels``       the same of the input itself on a coarse grid: what one class of centred objects
                 needs no network for
``mahalanobis``  distance from the mean under the covariance, block by block, summed (Gaussian AD);
                 of several centres the nearest
``patches``      distance of each place's features to the nearest of a bank of places; the mean of
                 the furthest places
``combined``     several of these: the sum (Fisher), or the largest, of the -log conformal p-values
                 that each has among held-out normal images

The residual map is that of the patches under every score: which places have features that no place
of a normal image has. It is as coarse as the feature map, and no gradient of the score. A backbone
that gives vectors alone says nothing about places: its map is the score, spread evenly.

Sources: Bergman, Cohen & Hoshen, Deep Nearest Neighbor Anomaly Detection, 2020 (kNN); Rippel,
Mertens & Merhof, Modeling the Distribution of Normal Data in Pre-Trained Deep Features, ICPR 2020
(Gaussian AD); Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022
(patches); Fisher, Statistical Methods for Research Workers, 1932 (sum of -log p).

*Differs from the source in*: directions, whitening and division by the neighbours' own distance (as
LOF does it) in ``knn`` and ``whitened``; a mean of the furthest places in the place of PatchCore's
re-weighted largest one, no 3x3 pooling; p-values without steps, as members are dependent
the sum is only a score, and calibrated like any other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float32, Float64
from pydantic import Field, ValidationError

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible
from service.contract.manifest import ImageInput
from service.contract.store import Artifact
from service.detectors.base import Detection, Params
from service.detectors.embedding_members import (
    Blocks,
    Gaussian,
    Nearest,
    PatchBank,
    smooth_resize,
    surprise,
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
    held_out: Mapping[Member, Float64[np.ndarray, " n"]]
    """Sorted scores of held-out normals, by member; empty where there is one member."""


class EmbeddingDetector:
    """Judges of a backbone's features."""

    Params: ClassVar[type[Params]] = EmbeddingParams
    max_batch = 64

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.params = parts.params

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        """The detector of an artifact's files; see ``Detector.open``."""
        try:
            params = EmbeddingParams.model_validate(artifact.manifest.params)
        except ValidationError as error:
            raise ArtifactIncompatible(f"{artifact.path}: params: {error}") from error
        spec = artifact.manifest.input
        if not isinstance(spec, ImageInput):
            raise ArtifactIncompatible(f"{artifact.path}: embedding reads images, not {spec.kind}")
        graph = runtime.session(artifact.file(BACKBONE))
        graph.require([params.input], params.outputs)

        def blocks(x: Float32[np.ndarray, "N C H W"]) -> Blocks:
            return graph.run(params.outputs, {params.input: x})

        return cls(read_parts(params, spec, blocks, artifact.path, runtime))

    def detect(self, x: Float32[np.ndarray, "N C H W"], *, maps: bool) -> Detection:
        """Raw scores and residual maps; see ``Detector.detect``."""
        t0 = perf_counter()
        blocks = self.parts.blocks(x)
        t1 = perf_counter()
        far = self._distances(blocks) if maps else None
        scores = self.join(self._members(x, blocks, far))
        t2 = perf_counter()
        residual = self._residual(scores, far) if maps else None
        phases = {"infer": t1 - t0, "search": t2 - t1, "postprocess": perf_counter() - t2}
        return Detection(scores, residual, phases)

    def measure(self, x: Float32[np.ndarray, "N C H W"]) -> dict[Member, Float64[np.ndarray, " N"]]:
        """The score of each member, not joined."""
        return self._members(x, self.parts.blocks(x), None)

    def _distances(self, blocks: Blocks) -> Float64[np.ndarray, "N h w"] | None:
        return None if self.parts.patches is None else self.parts.patches.distances(blocks)

    def _members(
        self,
        x: Float32[np.ndarray, "N C H W"],
        blocks: Blocks,
        far: Float64[np.ndarray, "N h w"] | None,
    ) -> dict[Member, Float64[np.ndarray, " N"]]:
        parts = self.parts
        found: dict[Member, Float64[np.ndarray, " N"]] = {}
        for member in self.params.members:
            if member == "pixels":
                found[member] = parts.nearest[member].scores([x])
            elif member in NEAREST:
                found[member] = parts.nearest[member].scores(blocks)
            elif member == "mahalanobis" and parts.gaussian is not None:
                found[member] = parts.gaussian.scores(blocks)
            elif parts.patches is not None:
                distances = parts.patches.distances(blocks) if far is None else far
                found[member] = parts.patches.scores(distances)
        return found

    def join(self, found: Mapping[Member, Float64[np.ndarray, " N"]]) -> Float64[np.ndarray, " N"]:
        """The one score of several members, or of one as it is."""
        if len(found) == 1:
            return next(iter(found.values()))
        each = np.stack([surprise(self.parts.held_out[m], s) for m, s in found.items()])
        return np.asarray(each.sum(axis=0) if self.params.combine == "sum" else each.max(axis=0))

    def _residual(
        self, scores: Float64[np.ndarray, " N"], far: Float64[np.ndarray, "N h w"] | None
    ) -> Float32[np.ndarray, "N H W"]:
        height, width = self.parts.size
        if far is None:
            even = np.broadcast_to(np.maximum(scores, 0)[:, None, None], (len(scores), 1, 1))
            return np.tile(even.astype(np.float32), (1, height, width))
        rows = smooth_resize(height, far.shape[1])
        columns = smooth_resize(width, far.shape[2])
        return np.asarray(rows @ far.astype(np.float32) @ columns.T)


def read_parts(
    params: EmbeddingParams,
    spec: ImageInput,
    blocks: Callable[[Float32[np.ndarray, "N C H W"]], Blocks],
    folder: Path,
    runtime: Runtime,
) -> Parts:
    """The parts of a folder's files around a backbone.

    Raises:
        ArtifactCorrupt: a file is missing or its arrays do not fit each other.
    """
    try:
        with np.load(folder / ARRAYS, allow_pickle=False) as npz:
            a = dict(npz)
        near = {
            member: _nearest(params, member, a, folder, runtime)
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
            index = runtime.index(folder / PATCH_INDEX)
            _agree(folder / PATCH_INDEX, index, len(a["patch_mean"]), 1)
            patches = PatchBank(a["patch_mean"], a["patch_weight"], index, params.top)
        elif "patches" in params.members:
            raise KeyError("patch_mean")
        several = params.members if len(params.members) > 1 else ()
        held_out = {member: a[f"held_out_{member}"] for member in several}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise ArtifactCorrupt(f"{folder / ARRAYS}: not the arrays needed ({error})") from error
    size = spec.shape[1:]
    return Parts(params, (size[0], size[1]), blocks, near, gaussian, patches, held_out)


def index_file(member: NearestMember) -> str:
    """The name of the bank of a member."""
    return f"{member}.faiss"


def _nearest(
    params: EmbeddingParams,
    member: NearestMember,
    a: Mapping[str, np.ndarray],
    folder: Path,
    runtime: Runtime,
) -> Nearest:
    mean, matrix, typical = (a[f"{member}_{name}"] for name in ("mean", "matrix", "typical"))
    path = folder / index_file(member)
    index = runtime.index(path)
    _agree(path, index, matrix.shape[1] + 1, params.neighbours, typical)
    block, grid, radius = (
        of[member] for of in (params.nearest_block, params.nearest_grid, params.radius)
    )
    sizes = params.neighbours, params.locality
    return Nearest(int(block), int(grid), mean, matrix, radius, index, typical, *sizes)


def _agree(
    path: Path, index: NeighbourIndex, width: int, least: int, of_each: np.ndarray | None = None
) -> None:
    if index.dimension != width or index.size < least:
        raise ArtifactCorrupt(f"{path}: {index.size} rows of {index.dimension}, not of {width}")
    if of_each is not None and of_each.shape != (index.size,):
        raise ArtifactCorrupt(f"{path}: {index.size} rows, but {of_each.shape} typical distances")
