"""What the families share whose whole score is one static graph: x -> score and what explains it.

The second output is a ``reconstruction`` of the input, of which the map is |x - x_hat| (its mean
over the channels of an image), or the map itself (``residual``), where the score has no
reconstruction: a share of a distance, say. Everything else a family has is baked into the graph.
Where a map costs many times what a score does, it is a graph of its own in a second file, which
runs only where maps are asked for: ``score.onnx`` has ``score`` alone then.
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
RESIDUAL_GRAPH = "residual.onnx"
"""x -> residual; of the artifacts whose map is apart."""


class GraphDetector:
    """A static graph over an open artifact; a family subclasses it and names its ``Params``."""

    Params: ClassVar[type[Params]] = Params
    max_batch = 64

    def __init__(self, graph: Session, *, image: bool, residual: Session | None = None) -> None:
        """A detector of a graph that gives scores and, unless ``residual`` does, what explains
        them.
        """
        self._graph = graph
        self._residual = residual
        self._image = image
        self._explained = "residual" if "residual" in graph.outputs else "reconstruction"
        self._outputs = ["score"] if residual is not None else ["score", self._explained]

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        try:
            cls.Params.model_validate(artifact.manifest.params)
        except ValidationError as error:
            raise ArtifactIncompatible(f"{artifact.path}: params: {error}") from error
        graph, residual = runtime.session(artifact.file(GRAPH)), None
        if RESIDUAL_GRAPH in artifact.manifest.files:
            residual = runtime.session(artifact.file(RESIDUAL_GRAPH))
            residual.require(["x"], ["residual"])
        image = isinstance(artifact.manifest.input, ImageInput)
        opened = cls(graph, image=image, residual=residual)
        graph.require(["x"], opened._outputs)
        return opened

    def detect(self, x: Float32[np.ndarray, "N ..."], *, maps: bool) -> Detection:
        started = perf_counter()
        found = self._graph.run(self._outputs, {"x": x})
        if maps and self._residual is not None:
            found += self._residual.run(["residual"], {"x": x})
        inferred = perf_counter()
        scores = found[0].astype(np.float64)
        if not maps:
            return Detection(scores, None, {"infer": inferred - started})
        residual = found[1]
        if self._residual is None and self._explained == "reconstruction":
            residual = np.abs(x - residual)
            if self._image:
                residual = residual.mean(axis=1)  # N H W
        phases = {"infer": inferred - started, "postprocess": perf_counter() - inferred}
        return Detection(scores, residual, phases)
