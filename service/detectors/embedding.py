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

from collections.abc import Mapping
from time import perf_counter
from typing import ClassVar, Self

import numpy as np
from jaxtyping import Float32, Float64
from pydantic import ValidationError

from service.contract.errors import ArtifactIncompatible
from service.contract.manifest import ImageInput
from service.contract.store import Artifact
from service.detectors.base import Detection, Params
from service.detectors.embedding_artifact import (
    ARRAYS,
    BACKBONE,
    NEAREST,
    EmbeddingParams,
    Files,
    Member,
    Parts,
    read_parts,
)
from service.detectors.embedding_members import Blocks, smooth_resize, surprise
from service.runtime import Runtime


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

        files = Files(artifact.arrays(ARRAYS), artifact.file)
        return cls(read_parts(params, spec, blocks, files, runtime))

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
