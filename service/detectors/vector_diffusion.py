"""Scores by diffusion models of feature vectors.

Most are one static graph: the error with which a denoiser finds the noise of the artifact in x, at
several times in one batch, gives score and residual. The time that a small network reads off x is a
score whose residual, forty times the work, is a graph of its own. The reference's own score is a
chain of denoising steps from x, for which the graph is called at every time: steps and noise are
numbers in the artifact, so that scoring draws nothing.

Source: Livernoche et al., On Diffusion Modeling for Anomaly Detection, ICLR 2024; Bhosale et al.,
Anomaly detection using diffusion-based methods; Song, Meng & Ermon, Denoising Diffusion Implicit
Models, 2021.
"""

from time import perf_counter
from typing import ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float32
from pydantic import Field, ValidationError

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible
from service.contract.store import Artifact
from service.detectors.base import Detection, Params
from service.detectors.graph import GraphDetector
from service.runtime import Runtime, Session

DENOISER, CHAIN = "denoiser.onnx", "chain.npz"
System = Literal["ddpm", "dit", "dte_categorical", "dte_inverse_gamma"]
Score = Literal["one_shot", "clean_chain", "clean_ddim", "time"]
CHAINS: tuple[Score, ...] = ("clean_chain", "clean_ddim")

_RANKS = {"t": 1, "keep": 1, "pull": 1, "jitter": 2}


class VectorDiffusionParams(Params):
    """Which score is computed, and what it was made of."""

    system: System
    score: Score
    times: list[int] = Field(default_factory=list)
    """At which the denoiser is asked; none for ``time``, whose network reads none."""
    noises: int = Field(default=1, ge=1)
    """At each of the times, in ``one_shot``."""


class VectorDiffusionDetector(GraphDetector):
    """A diffusion model of vectors over an open artifact."""

    Params: ClassVar[type[Params]] = VectorDiffusionParams

    def __init__(
        self,
        graph: Session,
        *,
        image: bool = False,
        residual: Session | None = None,
        chain: dict[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(graph, image=image, residual=residual)
        self._chain = chain

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        try:
            params = VectorDiffusionParams.model_validate(artifact.manifest.params)
        except ValidationError as error:
            raise ArtifactIncompatible(f"{artifact.path}: params: {error}") from error
        if params.score not in CHAINS:
            return super().open(artifact, runtime)
        graph = runtime.session(artifact.file(DENOISER))
        graph.require(["x_t", "t"], ["eps"])
        return cls(graph, chain=_checked(artifact))

    def detect(self, x: Float32[np.ndarray, "N D"], *, maps: bool) -> Detection:
        if self._chain is None:
            return super().detect(x, maps=maps)
        started = perf_counter()
        c, x_t = self._chain, x
        for t, keep, pull, jitter in zip(c["t"], c["keep"], c["pull"], c["jitter"], strict=True):
            (eps,) = self._graph.run(["eps"], {"x_t": x_t, "t": np.full(len(x), t)})
            x_t = keep * x_t + pull * eps + jitter
        residual = np.square(x - x_t)
        scores = residual.mean(axis=1, dtype=np.float64)
        return Detection(scores, residual if maps else None, {"infer": perf_counter() - started})


def _checked(artifact: Artifact) -> dict[str, np.ndarray]:
    arrays = artifact.arrays(CHAIN)
    for name, rank in _RANKS.items():
        if name not in arrays or arrays[name].ndim != rank:
            raise ArtifactCorrupt(f"{artifact.path / CHAIN}: lacks {name!r} of {rank} axes")
    if len({len(arrays[name]) for name in _RANKS}) != 1:
        raise ArtifactCorrupt(f"{artifact.path / CHAIN}: its arrays do not fit each other")
    width, expected = arrays["jitter"].shape[1:], artifact.manifest.input.shape
    if width != expected:
        raise ArtifactIncompatible(
            f"{artifact.path / CHAIN}: jitter of {width} numbers, the input is {expected}"
        )
    return arrays
