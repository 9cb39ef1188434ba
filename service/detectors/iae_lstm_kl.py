"""Scores by the hypersphere models: one static graph x -> (score, reconstruction).

The distance of the latent z to a fixed centre is the anomaly score; a decoder shares the latent,
so that |x - x_hat| says where. Everything, the centre included, is in the graph.

Source: Huang et al., Improved AutoEncoder with LSTM Module and KL Divergence for Anomaly
Detection, IEEE TIM 2024, eq. 17 (score). The residual map is not in the paper.
"""

from time import perf_counter
from typing import ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float32
from pydantic import Field, ValidationError

from service.contract.errors import ArtifactIncompatible
from service.contract.manifest import ImageInput
from service.contract.store import Artifact
from service.detectors.base import Detection, Params
from service.runtime import Runtime, Session

GRAPH = "score.onnx"
ScoreVariant = Literal["svdd", "reconstruction", "combined"]


class IaeLstmKlParams(Params):
    """Numbers that describe the graph; none of them is needed to run it."""

    score: ScoreVariant
    boundary: Literal["hard", "soft"]
    latent: int
    radius: float
    selection: dict[str, float] = Field(default_factory=dict)
    """AUROC of each score variant on held-out normals against synthetic anomalies."""


class IaeLstmKlDetector:
    """A hypersphere model over an open artifact."""

    Params: ClassVar[type[Params]] = IaeLstmKlParams
    max_batch = 64

    def __init__(self, graph: Session, *, image: bool) -> None:
        self._graph = graph
        self._image = image

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        try:
            IaeLstmKlParams.model_validate(artifact.manifest.params)
        except ValidationError as error:
            raise ArtifactIncompatible(f"{artifact.path}: params: {error}") from error
        graph = runtime.session(artifact.file(GRAPH))
        graph.require(["x"], ["score", "reconstruction"])
        return cls(graph, image=isinstance(artifact.manifest.input, ImageInput))

    def detect(self, x: Float32[np.ndarray, "N ..."], *, maps: bool) -> Detection:
        started = perf_counter()
        scores, x_hat = self._graph.run(["score", "reconstruction"], {"x": x})
        inferred = perf_counter()
        if not maps:
            return Detection(scores.astype(np.float64), None, {"infer": inferred - started})
        residual = np.abs(x - x_hat)
        if self._image:
            residual = residual.mean(axis=1)  # N H W
        phases = {"infer": inferred - started, "postprocess": perf_counter() - inferred}
        return Detection(scores.astype(np.float64), residual, phases)
