"""Scores by latent diffusion: normal images survive being noised and denoised, novel ones do not.

An encoder gives the latent z of an image. Either z is noised once and the clean latent predicted in
one shot, for several (t, noise) pairs in one batch; or z is noised to t0 and denoised in S
deterministic steps (DDIM), for J noises in one batch. The score is the error of that in latent
space, in pixels after decoding, or a classifier's doubt that image and reconstruction show the same
category. Noise and schedule are numbers in the artifact: scoring draws nothing.

Source: Wang & Tavakkoli, Latent Diffusion Based Multi-class Anomaly Detection: sections on the
latent model and the pair classifier; Song, Meng & Ermon, Denoising Diffusion Implicit Models, 2021,
eq. 12 with eta = 0; Graham et al., Denoising Diffusion Models for Out-of-Distribution Detection,
2023 (errors normalised by their mean and deviation on validation normals).

Name here - name in the papers: ``signal`` sqrt(alpha_bar_t); ``sigma`` sqrt(1 - alpha_bar_t);
``eps`` predicted noise; ``z_0`` predicted clean latent.
"""

from time import perf_counter
from typing import ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float32, Float64
from pydantic import Field, ValidationError

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible
from service.contract.manifest import ImageInput
from service.contract.store import Artifact
from service.detectors.base import Detection, Params
from service.detectors.denoising import Descent, mean_square
from service.runtime import Runtime, Session

ENCODER, UNET, DECODER = "encoder.onnx", "unet.onnx", "decoder.onnx"
CLASSIFIER, EDGES, ARRAYS = "pair_classifier.onnx", "edges.onnx", "arrays.npz"
ScoreVariant = Literal["one_shot", "reconstruction", "latent_reconstruction", "classifier"]
Precision = Literal["float32", "int8"]
DecoderTarget = Literal["image", "edges"]
_DECODED = ("reconstruction", "classifier")
_PIXELS_AT_ONCE = 1 << 18

_RANKS = {
    "pair_t": 1,
    "pair_signal": 1,
    "pair_sigma": 1,
    "pair_noise": 4,
    "pair_mean": 1,
    "pair_std": 1,
    "start_noise": 4,
    "ddim_t": 1,
    "signal": 1,
    "sigma": 1,
}


class DiffusionParams(Params):
    """Which score is computed; the other members describe how the arrays came about."""

    variant: ScoreVariant
    ts: list[int] = Field(min_length=1)
    noises: int = Field(ge=1)
    t0: int = Field(ge=1)
    ddim_steps: int = Field(ge=1)
    starts: int = Field(ge=1)
    precision: Precision = "float32"
    """Of the denoiser's convolutions."""
    decoder_target: DecoderTarget = "image"
    """What the decoder draws, and what it is compared with."""
    selection: dict[ScoreVariant, float] = Field(default_factory=dict)
    """AUROC of each score variant on held-out normals against synthetic anomalies."""


class DiffusionDetector:
    """A latent diffusion model over an open artifact."""

    Params: ClassVar[type[Params]] = DiffusionParams

    def __init__(
        self,
        variant: ScoreVariant,
        sessions: dict[str, Session],
        arrays: dict[str, np.ndarray],
        max_batch: int,
    ) -> None:
        self.variant = variant
        self.max_batch = max_batch
        self._sessions = sessions
        self._arrays = arrays
        self._pairs, self._starts = _descents(arrays)

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        try:
            params = DiffusionParams.model_validate(artifact.manifest.params)
        except ValidationError as error:
            raise ArtifactIncompatible(f"{artifact.path}: params: {error}") from error
        spec = artifact.manifest.input
        if not isinstance(spec, ImageInput):
            raise ArtifactIncompatible(f"{artifact.path}: the diffusion family reads images only")
        graphs = {
            ENCODER: (["x"], ["z"]),
            UNET: (["z_t", "t"], ["eps"]),
            DECODER: (["z"], ["x_hat"]),
        }
        if params.variant == "classifier":
            graphs[CLASSIFIER] = (["x", "x_hat"], ["logit"])
        if params.decoder_target == "edges":
            graphs[EDGES] = (["x"], ["edges"])
        sessions = {}
        for name, (inputs, outputs) in graphs.items():
            sessions[name] = runtime.session(artifact.file(name))
            sessions[name].require(inputs, outputs)
        arrays = _checked(artifact)
        copies = max(len(arrays["pair_t"]), len(arrays["start_noise"]))
        pixels = spec.shape[1] * spec.shape[2] * copies
        return cls(params.variant, sessions, arrays, max(1, min(64, _PIXELS_AT_ONCE // pixels)))

    def detect(self, x: Float32[np.ndarray, "N C H W"], *, maps: bool) -> Detection:
        started = perf_counter()
        (z,) = self._sessions[ENCODER].run(["z"], {"x": x})
        if self.variant == "one_shot":
            scores, z_0 = self._one_shot(z, maps=maps)
        else:
            z_0 = self._starts.reconstruct(self._eps, z, self._arrays["start_noise"])  # N J Z h w
            scores = mean_square(z_0 - z[:, None])
        residuals = None
        if maps or self.variant in _DECODED:
            starts = z_0.shape[1]
            (x_hat,) = self._sessions[DECODER].run(
                ["x_hat"], {"z": np.ascontiguousarray(z_0.reshape(-1, *z_0.shape[2:]))}
            )
            target = x
            if EDGES in self._sessions:
                (target,) = self._sessions[EDGES].run(["edges"], {"x": x})
            drawn = x_hat.reshape(len(x), starts, *target.shape[1:])
            residual = drawn - target[:, None]  # N J D H W
            if self.variant == "reconstruction":
                scores = mean_square(residual)
            elif self.variant == "classifier":
                feeds = {"x": np.repeat(x, starts, axis=0), "x_hat": x_hat}
                (logit,) = self._sessions[CLASSIFIER].run(["logit"], feeds)
                scores = -logit.reshape(len(x), starts).mean(axis=1, dtype=np.float64)
            if maps:
                residuals = np.abs(residual).mean(axis=(1, 2))
        return Detection(scores, residuals, {"infer": perf_counter() - started})

    def _one_shot(
        self, z: Float32[np.ndarray, "N Z h w"], *, maps: bool
    ) -> tuple[Float64[np.ndarray, " N"], Float32[np.ndarray, "N J Z h w"]]:
        """Scores and, for the map, the clean latents predicted from the lowest t."""
        a = self._arrays
        z_0 = self._pairs.reconstruct(self._eps, z, a["pair_noise"])  # N P Z h w
        errors = mean_square(z_0 - z[:, None], 2)  # N P
        scores = ((errors - a["pair_mean"]) / a["pair_std"]).mean(axis=1)
        return scores, z_0[:, a["pair_t"] == a["pair_t"].min()] if maps else z_0

    def _eps(self, z_t: np.ndarray, t: np.ndarray) -> Float32[np.ndarray, "M Z h w"]:
        (eps,) = self._sessions[UNET].run(["eps"], {"z_t": z_t, "t": t})
        return eps


def _descents(arrays: dict[str, np.ndarray]) -> tuple[Descent, Descent]:
    """One step from each pair's time; the chain from t0, for any number of starts."""
    a = arrays
    clean = np.ones_like(a["pair_signal"])
    pairs = Descent(
        a["pair_t"][:, None],
        np.stack([a["pair_signal"], clean], axis=1),
        np.stack([a["pair_sigma"], 0 * clean], axis=1),
    )
    return pairs, Descent(a["ddim_t"][None], a["signal"][None], a["sigma"][None])


def _checked(artifact: Artifact) -> dict[str, np.ndarray]:
    arrays = artifact.arrays(ARRAYS)
    for name, rank in _RANKS.items():
        if name not in arrays or arrays[name].ndim != rank:
            raise ArtifactCorrupt(f"{artifact.path / ARRAYS}: lacks {name!r} of {rank} axes")
    a = arrays
    pairs = {len(a[name]) for name in _RANKS if name.startswith("pair_")}
    steps = {len(a["ddim_t"]) + 1, len(a["signal"]), len(a["sigma"])}
    if (
        len(pairs) != 1
        or len(steps) != 1
        or a["pair_noise"].shape[1:] != a["start_noise"].shape[1:]
    ):
        raise ArtifactCorrupt(f"{artifact.path / ARRAYS}: its arrays do not fit each other")
    return arrays
