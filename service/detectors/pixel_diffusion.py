"""Scores by diffusion of pixels: what a denoiser of normal images makes of a noised image.

For each of P pairs of a time and a noise the image is noised and denoised, in one step or several;
the pair's error is the mean squared difference from the image, less the mean and over the deviation
that it has on validation normals. The score is the mean over the pairs. Noise and schedule are
numbers in the artifact: scoring draws nothing.

Source: Graham et al., Denoising Diffusion Models for Out-of-Distribution Detection, 2023 (several
times, normalised errors); Wyatt et al., AnoDDPM, 2022 (one time, simplex noise): the same formula
with other arrays.
"""

from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float32, Float64
from pydantic import Field, ValidationError

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible
from service.contract.manifest import ImageInput
from service.contract.store import Artifact
from service.detectors.base import Detection, Params
from service.detectors.denoising import Descent, Eps, Kicks, mean_square
from service.runtime import Runtime, Session

NETWORK, ARRAYS = "eps.onnx", "arrays.npz"
System = Literal["anoddpm", "ddpm_ood", "dit"]
_PIXELS_AT_ONCE = 1 << 18


class PixelDiffusionParams(Params):
    """The range of the pixels; the other members describe how the arrays came about."""

    system: System
    low: float
    """Lowest and highest value of a training image: predicted clean images are kept within."""
    high: float
    ts: list[int] = Field(min_length=1)
    noises: int = Field(ge=1)
    steps: int = Field(ge=1)
    """Of the denoiser, from each of ``ts`` to a clean image."""
    ancestral: bool
    """Whether each step adds fresh noise."""


@dataclass(frozen=True)
class PixelChain:
    """P pairs of a time and a noise, and the way from each to a clean image."""

    descent: Descent
    noise: Float32[np.ndarray, "P C H W"]
    error_mean: Float64[np.ndarray, " P"]
    error_std: Float64[np.ndarray, " P"]

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> Self:
        """The chain of the members of ``arrays.npz``."""
        a = arrays
        kicks = None
        if "kick_noise" in a:
            kicks = Kicks(a["kick_noise"], a["kick_size"], a["kick_direction"])
        descent = Descent(a["t"], a["signal"], a["sigma"], kicks)
        return cls(descent, a["noise"], a["error_mean"], a["error_std"])

    def arrays(self) -> dict[str, np.ndarray]:
        """The members of ``arrays.npz``."""
        d = self.descent
        found = {"t": d.t, "signal": d.signal, "sigma": d.sigma, "noise": self.noise}
        found |= {"error_mean": self.error_mean, "error_std": self.error_std}
        if d.kicks is not None:
            k = d.kicks
            found |= {"kick_noise": k.noise, "kick_size": k.size, "kick_direction": k.direction}
        return found

    def residuals(
        self, eps: Eps, x: Float32[np.ndarray, "N C H W"], clip: tuple[float, float]
    ) -> Float32[np.ndarray, "N P C H W"]:
        """What denoising changes in each image, pair by pair."""
        return self.descent.reconstruct(eps, x, self.noise, clip) - x[:, None]

    def scores(self, residuals: Float32[np.ndarray, "N P C H W"]) -> Float64[np.ndarray, " N"]:
        """The normalised errors' mean over the pairs."""
        normalised = (mean_square(residuals, 2) - self.error_mean) / self.error_std
        return np.asarray(normalised.mean(axis=1))


def residual_maps(residuals: Float32[np.ndarray, "N P C H W"]) -> Float32[np.ndarray, "N H W"]:
    """Mean magnitude over pairs and channels."""
    return np.asarray(np.abs(residuals).mean(axis=(1, 2)))


class PixelDiffusionDetector:
    """A denoiser of pixels over an open artifact."""

    Params: ClassVar[type[Params]] = PixelDiffusionParams

    def __init__(
        self, network: Session, chain: PixelChain, clip: tuple[float, float], max_batch: int
    ) -> None:
        self.max_batch = max_batch
        self._network = network
        self._chain = chain
        self._clip = clip

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        try:
            params = PixelDiffusionParams.model_validate(artifact.manifest.params)
        except ValidationError as error:
            raise ArtifactIncompatible(f"{artifact.path}: params: {error}") from error
        spec = artifact.manifest.input
        if not isinstance(spec, ImageInput):
            raise ArtifactIncompatible(f"{artifact.path}: pixel_diffusion reads images only")
        network = runtime.session(artifact.file(NETWORK))
        network.require(["x_t", "t"], ["eps"])
        chain = _checked(artifact, spec)
        pixels = spec.shape[1] * spec.shape[2] * len(chain.noise)
        most = max(1, min(64, _PIXELS_AT_ONCE // pixels))
        return cls(network, chain, (params.low, params.high), most)

    def detect(self, x: Float32[np.ndarray, "N C H W"], *, maps: bool) -> Detection:
        started = perf_counter()
        residuals = self._chain.residuals(self._eps, x, self._clip)
        inferred = perf_counter()
        scores = self._chain.scores(residuals)
        found = residual_maps(residuals) if maps else None
        phases = {"infer": inferred - started, "postprocess": perf_counter() - inferred}
        return Detection(scores, found, phases)

    def _eps(self, x_t: np.ndarray, t: np.ndarray) -> Float32[np.ndarray, "M C H W"]:
        (eps,) = self._network.run(["eps"], {"x_t": x_t, "t": t})
        return eps


def _checked(artifact: Artifact, spec: ImageInput) -> PixelChain:
    arrays = artifact.arrays(ARRAYS)
    if "t" not in arrays or arrays["t"].ndim != 2:
        raise ArtifactCorrupt(f"{artifact.path / ARRAYS}: lacks 't' of 2 axes")
    pairs, steps = arrays["t"].shape
    shapes = {
        "signal": (pairs, steps + 1),
        "sigma": (pairs, steps + 1),
        "noise": (pairs, *spec.shape),
        "error_mean": (pairs,),
        "error_std": (pairs,),
    }
    if "kick_noise" in arrays:
        shapes["kick_noise"] = (steps, pairs, *spec.shape)
        shapes |= {"kick_size": (pairs, steps), "kick_direction": (pairs, steps)}
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            raise ArtifactCorrupt(f"{artifact.path / ARRAYS}: lacks {name!r} of shape {shape}")
    return PixelChain.of(arrays)
