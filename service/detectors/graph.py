"""What the families share whose whole score is one static graph: x -> score and what explains it.

The second output is a ``reconstruction`` of the input, of which the map is |x - x_hat| (its mean
over the channels of an image), or the map itself (``residual``), where the score has no
reconstruction: a share of a distance, say. Everything else a family has is baked into the graph.
"""

from time import perf_counter
from typing import ClassVar, Self

import numpy as np
from jaxtyping import Float32
from pydantic import ValidationError

from service.contract.errors import ArtifactIncompatible
from service.contract.manifest import ImageInput
from service.contract.store import Artifact
from service.detectors.base import Detection, Params
from service.runtime import Runtime, Session

GRAPH = "score.onnx"


class GraphDetector:
    """One static graph over an open artifact; a family subclasses it and names its ``Params``."""

    Params: ClassVar[type[Params]] = Params
    max_batch = 64

    def __init__(self, graph: Session, *, image: bool) -> None:
        self._graph = graph
        self._image = image
        self._explained = "residual" if "residual" in graph.outputs else "reconstruction"

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        try:
            cls.Params.model_validate(artifact.manifest.params)
        except ValidationError as error:
            raise ArtifactIncompatible(f"{artifact.path}: params: {error}") from error
        graph = runtime.session(artifact.file(GRAPH))
        opened = cls(graph, image=isinstance(artifact.manifest.input, ImageInput))
        graph.require(["x"], ["score", opened._explained])
        return opened

    def detect(self, x: Float32[np.ndarray, "N ..."], *, maps: bool) -> Detection:
        started = perf_counter()
        scores, explained = self._graph.run(["score", self._explained], {"x": x})
        inferred = perf_counter()
        if not maps:
            return Detection(scores.astype(np.float64), None, {"infer": inferred - started})
        residual = explained
        if self._explained == "reconstruction":
            residual = np.abs(x - explained)
            if self._image:
                residual = residual.mean(axis=1)  # N H W
        phases = {"infer": inferred - started, "postprocess": perf_counter() - inferred}
        return Detection(scores.astype(np.float64), residual, phases)
