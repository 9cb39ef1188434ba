"""Scores of vectors by their nearest neighbours in a bank of normal ones; nothing is trained.

``knn``     mean distance to the K nearest
``lof``     how much sparser the place is than the places of the K nearest (local outlier factor)
``dte_np``  the diffusion time at which noise would put a normal vector as far away as the K nearest
            are, by the most probable of T times

======================  ==================================================================
name here               name in the paper
======================  ==================================================================
reach, k_distance       reach-dist_k, k-distance (Breunig et al.)
density                 lrd, local reachability density
variance                sigma_t^2 = 1 - alpha_bar_t (Livernoche et al.)
======================  ==================================================================

Sources: Ramaswamy, Rastogi & Shim, Efficient algorithms for mining outliers, SIGMOD 2000, with the
mean of the K distances as PyOD has it; Breunig, Kriegel, Ng & Sander, LOF, SIGMOD 2000;
Livernoche, Jain, Hezaveh & Ravanbakhsh, On Diffusion Modeling for Anomaly Detection, ICLR 2024,
section 4.1 (non-parametric estimate).

*Differs from the source in*: LOF is asked of new vectors only, against densities of the bank.
``dte_np`` ranks as the mean squared distance does, in T steps, and stands still at T - 1 once that
distance exceeds the largest variance, so that ``knn`` is never worse; the released code takes the
posterior's mean in the place of its mode.
"""

from time import perf_counter
from typing import ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float32, Float64, Int64
from pydantic import Field, ValidationError

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible
from service.contract.store import Artifact
from service.detectors.base import Detection, Params
from service.runtime import NeighbourIndex, Runtime

INDEX, DENSITY = "index.faiss", "density.npz"
BETA_FIRST, BETA_LAST = 1e-4, 0.01
LEAST_REACH = 1e-10
"""Added to a mean reach, as scikit-learn does: copies of one vector have a density then."""
# the index ranks by rounded distances: a few more are fetched and ranked exactly
_SPARE = 8
_MAX_CELLS = 2**22

NeighbourScore = Literal["knn", "lof", "dte_np"]


class NeighboursParams(Params):
    """What scoring needs besides the bank."""

    score: NeighbourScore
    neighbours: int = Field(ge=1, description="K")
    times: int = Field(default=300, ge=2, description="T of dte_np")


class NeighboursDetector:
    """Nearest neighbours over a flat FAISS index, which is the bank as well."""

    Params: ClassVar[type[Params]] = NeighboursParams

    def __init__(
        self,
        params: NeighboursParams,
        index: NeighbourIndex,
        k_distance: Float64[np.ndarray, " B"],
        density: Float64[np.ndarray, " B"],
    ) -> None:
        """A detector of parts; ``k_distance`` and ``density`` are empty where LOF is not asked."""
        self.params = params
        self.index = index
        self.k_distance, self.density = k_distance, density
        cells = (params.neighbours + _SPARE) * index.dimension
        self.max_batch = max(1, min(256, _MAX_CELLS // cells))

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        """The detector of an artifact's files; see ``Detector.open``."""
        try:
            params = NeighboursParams.model_validate(artifact.manifest.params)
        except ValidationError as error:
            raise ArtifactIncompatible(f"{artifact.path}: params: {error}") from error
        index = runtime.index(artifact.file(INDEX))
        if (index.dimension,) != artifact.manifest.input.shape:
            raise ArtifactIncompatible(
                f"{artifact.path}: {INDEX} holds vectors of {index.dimension} numbers, the input "
                f"is {artifact.manifest.input.shape}"
            )
        if index.size < params.neighbours:
            raise ArtifactIncompatible(
                f"{artifact.path}: {index.size} items cannot give {params.neighbours} neighbours"
            )
        empty = np.empty(0)
        if params.score != "lof":
            return cls(params, index, empty, empty)
        arrays = artifact.arrays(DENSITY)
        found = [arrays.get(name, empty) for name in ("k_distance", "density")]
        if any(a.shape != (index.size,) or a.dtype != np.float64 for a in found):
            raise ArtifactCorrupt(f"{artifact.path / DENSITY}: not {index.size} numbers each")
        return cls(params, index, *found)

    def detect(self, x: Float32[np.ndarray, "N D"], *, maps: bool) -> Detection:
        """Raw scores; the residual of a feature is its mean squared distance to the neighbours."""
        t0 = perf_counter()
        ids, square = nearest(self.index, x, self.params.neighbours)
        t1 = perf_counter()
        scores = self._scores(ids, np.sqrt(square), x.shape[1])
        residual = None
        if maps:
            off = self.index.rows(ids) - x[:, None, :]
            residual = np.square(off, dtype=np.float32).mean(axis=1)
        phases = {"search": t1 - t0, "postprocess": perf_counter() - t1}
        return Detection(scores, residual, phases)

    def _scores(
        self, ids: Int64[np.ndarray, "N K"], distance: Float64[np.ndarray, "N K"], d: int
    ) -> Float64[np.ndarray, " N"]:
        match self.params.score:
            case "knn":
                return np.asarray(distance.mean(axis=1))
            case "lof":
                own = reachability_density(distance, self.k_distance[ids])
                return np.asarray(self.density[ids].mean(axis=1) / own)
            case "dte_np":
                return most_probable_time(np.square(distance).mean(axis=1), d, self.params.times)


def nearest(
    index: NeighbourIndex, x: Float32[np.ndarray, "N D"], count: int
) -> tuple[Int64[np.ndarray, "N K"], Float64[np.ndarray, "N K"]]:
    """Row numbers and exact squared distances of the nearest, nearest first; ties by row."""
    _, ids = index.search(x, min(count + _SPARE, index.size))
    off = index.rows(ids).astype(np.float64) - x[:, None, :]
    square = np.square(off).sum(axis=2)
    order = np.lexsort((ids, square))[:, :count]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(square, order, axis=1)


def reachability_density(
    distance: Float64[np.ndarray, "N K"], k_distance: Float64[np.ndarray, "N K"]
) -> Float64[np.ndarray, " N"]:
    """One over the mean reach: the distance, but no less than the neighbour's own k-distance."""
    reach = np.maximum(distance, k_distance).mean(axis=1)
    return np.asarray(1.0 / (reach + LEAST_REACH))


def most_probable_time(
    square: Float64[np.ndarray, " N"], d: int, times: int
) -> Float64[np.ndarray, " N"]:
    """The time t = 0..T-1 whose variance is most probable, given mean squared distances.

    The posterior of the variance v is InvGamma(d / 2 - 1, square / 2): its logarithm is
    -(d / 2) ln v - square / (2 v), and what does not depend on v.
    """
    beta = np.linspace(BETA_FIRST, BETA_LAST, times)
    variance = 1.0 - np.cumprod(1.0 - beta)  # T
    log_posterior = -0.5 * d * np.log(variance) - 0.5 * square[:, None] / variance  # N T
    return log_posterior.argmax(axis=1).astype(np.float64)
