"""The way of a score: prepare -> detect -> calibrate. Start reading here.

The same ``Scorer`` answers requests, calibrates and evaluates at publishing, and records and
re-checks the golden examples. It is synchronous, knows no web, and is safe to share by threads.
"""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Self

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from service.contract.calibration import Calibration
from service.contract.errors import (
    ArtifactCorrupt,
    ArtifactIncompatible,
    DetectorFailure,
    SelfTestFailed,
)
from service.contract.manifest import ImageInput, Manifest, SeriesInput, VectorInput
from service.contract.preprocess import Windows, prepare_images, prepare_series, prepare_vectors
from service.contract.store import CALIBRATION, GOLDEN, Artifact
from service.detectors import DETECTORS
from service.detectors.base import Detector
from service.runtime import Runtime


@dataclass(frozen=True)
class Scores:
    """What a batch of items scored."""

    raw: Float64[np.ndarray, " N"]
    p_value: Float64[np.ndarray, " N"]
    maps: Float32[np.ndarray, "N ..."] | None
    """Residuals in the frame of the model input: [N, H, W], [N, L, D] or [N, D]."""
    phases_s: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> Float64[np.ndarray, " N"]:
        """Calibrated score in [0, 1): 1 - p."""
        return 1.0 - self.p_value

    @property
    def finite(self) -> bool:
        """Whether every raw score and residual is a number."""
        if not np.isfinite(self.raw).all():
            return False
        return self.maps is None or bool(np.isfinite(self.maps).all())

    def part(self, first: int, end: int) -> "Scores":
        """The scores of items ``first`` to ``end``."""
        maps = None if self.maps is None else self.maps[first:end]
        return Scores(self.raw[first:end], self.p_value[first:end], maps)


class Scorer:
    """An artifact ready to score."""

    def __init__(
        self, manifest: Manifest, detector: Detector, calibration: Calibration, digest: str = ""
    ) -> None:
        self.manifest = manifest
        self.detector = detector
        self.calibration = calibration
        self.digest = digest
        self.shape = manifest.input.shape
        """(C, H, W), (L, D) or (D,) of a prepared item."""

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        """The scorer of a verified artifact; its golden examples are not yet re-scored.

        Raises:
            ArtifactIncompatible: the family is unknown here, or its params do not fit.
            ArtifactCorrupt: a file is not what it should be; the message names it.
        """
        manifest = artifact.manifest
        arrays = artifact.arrays(CALIBRATION)
        try:
            calibration = Calibration(arrays["scores"])
        except KeyError as error:
            raise ArtifactCorrupt(f"{artifact.path / CALIBRATION}: lacks {error}") from error
        except ArtifactCorrupt as error:
            raise ArtifactCorrupt(f"{artifact.path / CALIBRATION}: {error}") from error
        if calibration.n != manifest.calibration.n:
            raise ArtifactCorrupt(f"{artifact.path / CALIBRATION}: n differs from the manifest's")
        return cls(manifest, open_detector(artifact, runtime), calibration, artifact.digest)

    def score(self, x: Float32[np.ndarray, "N ..."], *, maps: bool = False) -> Scores:
        """Scores of prepared inputs ([N, C, H, W], [N, L, D], [N, D]), in bounded sub-batches.

        Raises:
            DetectorFailure: a runtime failed.
        """
        scores, found_maps, phases = run_detector(self.detector, x, maps=maps)
        if len(scores) != len(x) or (found_maps is not None and len(found_maps) != len(x)):
            raise DetectorFailure(f"{self.manifest.name}: {len(scores)} scores for {len(x)} items")
        started = perf_counter()
        p_value = self.calibration.p_value(scores)
        phases["postprocess"] = phases.get("postprocess", 0.0) + perf_counter() - started
        return Scores(scores, p_value, found_maps, phases)

    def score_images(self, images: UInt8[np.ndarray, "N H W C"], *, maps: bool = False) -> Scores:
        """Scores of raw images of one size."""
        return self.score(prepare_images(self.image_input, images), maps=maps)

    def score_series(
        self,
        rows: Float64[np.ndarray, "T D"],
        timestamps_s: Float64[np.ndarray, " T"] | None = None,
        stride: int | None = None,
        *,
        maps: bool = True,
    ) -> tuple[Windows, Scores]:
        """The windows of a recording and the scores of the scorable ones, in order."""
        windows = prepare_series(self.series_input, rows, timestamps_s, stride)
        return windows, self.score(windows.values[windows.scorable], maps=maps)

    def score_vectors(self, vectors: Float64[np.ndarray, "N D"], *, maps: bool = False) -> Scores:
        """Scores of raw vectors, features in the manifest's order; every value must be finite."""
        return self.score(prepare_vectors(self.vector_input, vectors), maps=maps)

    @property
    def image_input(self) -> ImageInput:
        """The manifest's input rule, which must be one for images."""
        spec = self.manifest.input
        assert isinstance(spec, ImageInput)
        return spec

    @property
    def series_input(self) -> SeriesInput:
        """The manifest's input rule, which must be one for series."""
        spec = self.manifest.input
        assert isinstance(spec, SeriesInput)
        return spec

    @property
    def vector_input(self) -> VectorInput:
        """The manifest's input rule, which must be one for vectors."""
        spec = self.manifest.input
        assert isinstance(spec, VectorInput)
        return spec


def open_detector(artifact: Artifact, runtime: Runtime) -> Detector:
    """The detector of the artifact's family.

    Raises:
        ArtifactIncompatible: the family is unknown here.
    """
    family = artifact.manifest.family
    if family not in DETECTORS:
        raise ArtifactIncompatible(
            f"{artifact.path}: family {family!r} is unknown; known are {', '.join(DETECTORS)}"
        )
    return DETECTORS[family].open(artifact, runtime)


def run_detector(
    detector: Detector, x: Float32[np.ndarray, "N ..."], *, maps: bool
) -> tuple[Float64[np.ndarray, " N"], Float32[np.ndarray, "N ..."] | None, dict[str, float]]:
    """Raw scores, maps and seconds by phase, in sub-batches of at most ``detector.max_batch``."""
    if 0 < len(x) <= detector.max_batch:
        found = detector.detect(x, maps=maps)
        return found.scores, found.maps, dict(found.phases_s)
    phases: dict[str, float] = {}
    parts = [
        detector.detect(x[i : i + detector.max_batch], maps=maps)
        for i in range(0, len(x), detector.max_batch)
    ]
    for part in parts:
        for phase, seconds in part.phases_s.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    scores = np.concatenate([np.empty(0), *(part.scores for part in parts)])
    found_maps = [part.maps for part in parts if part.maps is not None]
    return scores, np.concatenate(found_maps) if found_maps else None, phases


def contributions(maps: np.ndarray) -> np.ndarray:
    """Share of each column in each window's residual, [W, L, D] -> [W, D], or of each feature in
    each vector's, [N, D] -> [N, D]; rows sum to 1.
    """
    kept = np.clip(maps, 0, None)
    by_column = kept.sum(axis=1, dtype=np.float64) if kept.ndim == 3 else kept.astype(np.float64)
    total = by_column.sum(axis=1, keepdims=True)
    equal = 1.0 / by_column.shape[1]
    return np.asarray(np.where(total > 0, by_column / np.where(total > 0, total, 1), equal))


def golden_scores(scorer: Scorer, golden: dict[str, np.ndarray]) -> Scores:
    """The scores of the raw inputs in a golden file: ``images``, ``rows`` of one recording, or
    ``vectors``.
    """
    if isinstance(scorer.manifest.input, ImageInput):
        return scorer.score_images(golden["images"], maps=True)
    if isinstance(scorer.manifest.input, VectorInput):
        return scorer.score_vectors(golden["vectors"], maps=True)
    return scorer.score_series(golden["rows"], stride=int(golden["stride"]), maps=True)[1]


def self_test(scorer: Scorer, artifact: Artifact) -> None:
    """Nothing, where the golden examples score as they did at publishing.

    Raises:
        SelfTestFailed: a score or a residual deviates by more than the manifest's tolerance.
        ArtifactCorrupt: the golden file is unreadable.
    """
    golden = artifact.arrays(GOLDEN)
    try:
        now = golden_scores(scorer, golden)
        then, then_maps = golden["scores"], golden["maps"]
    except KeyError as error:
        raise ArtifactCorrupt(f"{artifact.path / GOLDEN}: lacks {error}") from error
    rule = artifact.manifest.golden
    if now.raw.shape != then.shape or now.maps is None or now.maps.shape != then_maps.shape:
        raise SelfTestFailed(f"{artifact.path}: golden examples give other shapes than recorded")
    spread = 1.4826 * artifact.manifest.calibration.mad or 1.0
    off = np.abs(now.raw - then) / spread
    scale = max(artifact.manifest.calibration.map_scale, 1e-12)
    off_map = np.abs(now.maps - then_maps) / np.maximum(scale, np.abs(then_maps))
    for what, worst, tolerance in (
        ("score", float(off.max()), rule.score_tolerance),
        ("residual", float(off_map.max()), rule.map_tolerance),
    ):
        if not worst <= tolerance:
            raise SelfTestFailed(
                f"{artifact.path}: a golden {what} deviates by {worst:.3g} (allowed {tolerance:g})"
            )
