"""Scores of vectors by three detectors that ask for no network, as PyOD fits them.

``ocsvm``    how far outside the smooth hull of the training vectors: one static graph
``iforest``  how few random cuts set a vector apart: arrays of trees
``copod``    how far out in the tails of each feature, all features taken together: sorted columns

The residual of a feature is never negative: of ``ocsvm`` its squared distance to the mean of the
support vectors, weighted as the kernel weighs them (the score's gradient points away from there);
of ``iforest`` by how much cuts of that feature shortened the vector's ways through the trees below
what was expected before each (cuts that lengthened them are left out); of ``copod`` its term of the
score, which the terms add up to.

Sources: Schölkopf et al., Estimating the support of a high-dimensional distribution, Neural
Computation 2001; Liu, Ting & Zhou, Isolation forest, ICDM 2008; Li et al., COPOD: copula-based
outlier detection, ICDM 2020. Ways split by feature: Saabas, Interpreting random forests, 2014, for
predictions of trees.

*Differs from the source in*: COPOD's tails are those of the training vectors and the vector itself,
its skewness that of the training vectors, so that a score does not depend on what else is scored;
PyOD joins the whole batch to the training vectors. A feature that never varied has no skewness and
counts as unskewed; older PyOD gave NaN, and every score was 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar, Literal, Protocol, Self

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int32
from pydantic import Field, ValidationError

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible
from service.contract.store import Artifact
from service.detectors.base import Detection, Params
from service.detectors.graph import GraphDetector
from service.runtime import Runtime

FOREST, TAILS = "forest.npz", "tails.npz"

ClassicSystem = Literal["iforest", "ocsvm", "copod"]


class ClassicParams(Params):
    """What scoring needs besides graph or arrays."""

    system: ClassicSystem
    offset: float = Field(default=0.0, description="iforest: added to the score in (0, 1)")
    typical_path: float = Field(
        default=1.0, gt=0, description="iforest: mean way through a tree of random cuts"
    )


class _Scores(Protocol):
    """One system over its files."""

    def detect(self, x: Float32[np.ndarray, "N D"], *, maps: bool) -> Detection: ...


class ClassicDetector:
    """One of the three systems over an open artifact."""

    Params: ClassVar[type[Params]] = ClassicParams
    max_batch = 64

    def __init__(self, system: _Scores) -> None:
        self._system = system

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        """The detector of an artifact's files; see ``Detector.open``."""
        try:
            params = ClassicParams.model_validate(artifact.manifest.params)
        except ValidationError as error:
            raise ArtifactIncompatible(f"{artifact.path}: params: {error}") from error
        systems: dict[ClassicSystem, Callable[[], _Scores]] = {
            "ocsvm": lambda: _Support.open(artifact, runtime),
            "iforest": lambda: Forest.read(artifact, params),
            "copod": lambda: Tails.read(artifact),
        }
        return cls(systems[params.system]())

    def detect(self, x: Float32[np.ndarray, "N D"], *, maps: bool) -> Detection:
        """Raw scores and residuals; see ``Detector.detect``."""
        return self._system.detect(x, maps=maps)


class _Support(GraphDetector):
    Params: ClassVar[type[Params]] = ClassicParams


@dataclass(frozen=True)
class Forest:
    """Isolation trees as arrays: T trees of at most M nodes each, the root first.

    A leaf is its own left and right child.
    """

    feature: Int32[np.ndarray, "T M"]
    threshold: Float64[np.ndarray, "T M"]
    """Left where the value is not above it."""
    left: Int32[np.ndarray, "T M"]
    right: Int32[np.ndarray, "T M"]
    path: Float64[np.ndarray, "T M"]
    """Expected cuts from the root until a vector that got here is alone."""
    depth: int
    """Cuts on the longest way."""
    offset: float
    typical_path: float

    @classmethod
    def read(cls, artifact: Artifact, params: ClassicParams) -> Self:
        """The trees of an artifact, checked: no child leads out of its tree."""
        arrays, d = artifact.arrays(FOREST), artifact.manifest.input.shape[0]
        names = ("feature", "threshold", "left", "right", "path")
        kinds = (np.int32, np.float64, np.int32, np.int32, np.float64)
        try:
            found = [arrays[name] for name in names]
            depth = int(arrays["depth"])
        except (KeyError, TypeError) as error:
            raise ArtifactCorrupt(f"{artifact.path / FOREST}: lacks {error}") from error
        shape = found[0].shape
        fits = len(shape) == 2 and 0 not in shape
        fits = fits and all(
            a.shape == shape and a.dtype == kind for a, kind in zip(found, kinds, strict=True)
        )
        limits = (d, None, shape[-1], shape[-1], None)
        if not fits or any(
            limit is not None and (a.min() < 0 or a.max() >= limit)
            for a, limit in zip(found, limits, strict=True)
        ):
            raise ArtifactCorrupt(f"{artifact.path / FOREST}: not trees over {d} features")
        feature, threshold, left, right, path = found
        return cls(feature, threshold, left, right, path, depth, params.offset, params.typical_path)

    def detect(self, x: Float32[np.ndarray, "N D"], *, maps: bool) -> Detection:
        started = perf_counter()
        n, d = x.shape
        tree = np.arange(len(self.feature))
        item = np.arange(n)[:, None]
        node = np.zeros((n, len(tree)), dtype=np.int32)  # N T
        shortened = np.zeros(n * d)
        for _ in range(self.depth):
            feature = self.feature[tree, node]
            goes_left = x[item, feature] <= self.threshold[tree, node]
            after = np.where(goes_left, self.left[tree, node], self.right[tree, node])
            if maps:
                gain = np.maximum(self.path[tree, node] - self.path[tree, after], 0.0)
                place = (item * d + feature).ravel()
                shortened += np.bincount(place, weights=gain.ravel(), minlength=n * d)
            node = after
        mean_path = self.path[tree, node].mean(axis=1)
        scores = np.exp2(-mean_path / self.typical_path) + self.offset
        residual = (shortened.reshape(n, d) / len(tree)).astype(np.float32) if maps else None
        return Detection(scores, residual, {"infer": perf_counter() - started})


@dataclass(frozen=True)
class Tails:
    """Each feature's training values in order, and the sign of its skewness."""

    columns: Float32[np.ndarray, "D B"]
    skew: Int8[np.ndarray, " D"]

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """The columns of an artifact, checked."""
        arrays, d = artifact.arrays(TAILS), artifact.manifest.input.shape[0]
        columns, skew = (arrays.get(name, np.empty(0)) for name in ("columns", "skew"))
        fits = columns.dtype == np.float32 and columns.ndim == 2 and len(columns) == d
        if not fits or skew.dtype != np.int8 or skew.shape != (d,):
            raise ArtifactCorrupt(f"{artifact.path / TAILS}: not columns of {d} features")
        return cls(columns, skew)

    def detect(self, x: Float32[np.ndarray, "N D"], *, maps: bool) -> Detection:
        started = perf_counter()
        size = self.columns.shape[1]
        below, above = np.empty(x.shape), np.empty(x.shape)
        for d, column in enumerate(self.columns):
            below[:, d] = np.searchsorted(column, x[:, d], side="right")
            above[:, d] = size - np.searchsorted(column, x[:, d], side="left")
        # the vector itself is one more on either side
        left, right = (np.log((size + 1) / (count + 1)) for count in (below, above))
        skewed = np.where(self.skew < 0, left, np.where(self.skew > 0, right, left + right))
        terms = np.maximum(skewed, (left + right) / 2)  # N D
        residual = terms.astype(np.float32) if maps else None
        return Detection(terms.sum(axis=1), residual, {"infer": perf_counter() - started})
