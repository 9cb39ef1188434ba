"""NLN: an item is anomalous when the training items nearest in latent space do not look like it.

The input (or each of its overlapping patches) is encoded; its K nearest latents of a bank of normal
training items are found, and two things are measured: the pixel error e to the *decoded*
neighbours, and the latent distance d to them, relative to how far those neighbours lie from their
own. Decoded neighbours are kept in the bank as uint8, so that scoring needs one encoder pass and no
decoder; where a bank would be too large, the decoder is run on the neighbours found instead.

Source: Mesarcik, Ranguelova, Boonstra & van Nieuwpoort, Improving novelty detection using the
reconstructions of nearest neighbours, Array 2022, eq. 4.

======================  =======================================
name here               name in the paper
======================  =======================================
z, latents              z = f(x), Z
decoded                 x̂^k = g(z^k)
e, d, alpha             first and second term of eq. 4, alpha
======================  =======================================

*Differs from the source in*: neighbours are weighted by 1 - d_k / d_(K+1) instead of equally, so
that the score stays continuous where the K-th neighbour changes; d can be divided by the neighbours'
own distance to the power gamma; e and d are scaled by quantiles of held-out normal items instead of
the extremes of the test set; patches overlap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from pydantic import Field, ValidationError

from service.contract.errors import ArtifactCorrupt, ArtifactIncompatible
from service.contract.manifest import Frozen, ImageInput
from service.contract.store import Artifact
from service.detectors.base import Detection, Params
from service.runtime import NeighbourIndex, Runtime

ENCODER, DECODER, INDEX = "encoder.onnx", "decoder.onnx", "index.faiss"
LATENTS, BANK, DENSITY = "latents.npy", "bank.npy", "density.npy"

# the index may rank by rounded distances: a few more are fetched and ranked exactly
_SPARE = 8
_MAX_CELLS = 2**23


class Choice(Frozen):
    """One row of the selection: how well a setting told synthetic anomalies from held-out normals."""

    alpha: float
    gamma: float
    e_top: float
    d_top: float
    auroc: float


class NlnParams(Params):
    """What scoring needs besides the arrays."""

    patch_height: int = Field(ge=1, description="H of the input: no patches, whole images")
    patch_width: int = Field(ge=1)
    stride: int = Field(ge=1)
    latent: int = Field(ge=1)
    neighbours: int = Field(ge=1, description="K")
    position_weight: float = Field(default=0.0, ge=0)
    gamma: float = Field(ge=0, description="power of the local density that d is divided by")
    alpha: float = Field(ge=0, le=1, description="weight of e; 1 - alpha is that of d")
    e_top: float = Field(gt=0, le=1, description="share of the largest pixels whose mean is e")
    d_top: float = Field(gt=0, le=1, description="share of the largest patches whose mean is d")
    e_low: float = 0.0
    e_high: float = 1.0
    d_low: float = 0.0
    d_high: float = 1.0
    map_alpha: float = Field(ge=0, le=1, description="weight of e in the residual map")
    d_to_e: float = Field(default=1.0, gt=0, description="pixels of e per unit of d, in the map")
    smooth: float = Field(ge=0, description="sigma of the Gaussian over the maps, in pixels")
    decoded: Literal["bank", "decoder"]
    index: Literal["flat", "hnsw", "ivfpq"]
    selection: list[Choice] = Field(default_factory=list)

    @property
    def patch(self) -> tuple[int, int]:
        """(h, w) of what is encoded."""
        return (self.patch_height, self.patch_width)


@dataclass(frozen=True)
class Measured:
    """The two terms, before they are scaled and joined."""

    e: Float32[np.ndarray, "N H W"]
    d: Float32[np.ndarray, "N P"]
    phases_s: dict[str, float]


class NlnDetector:
    """Nearest latent neighbours over an ONNX encoder, a FAISS index and a bank."""

    Params: ClassVar[type[Params]] = NlnParams

    def __init__(
        self,
        params: NlnParams,
        shape: tuple[int, int, int],
        encode: Callable[[Float32[np.ndarray, "M C H W"]], Float32[np.ndarray, "M Z"]],
        index: NeighbourIndex,
        latents: Float[np.ndarray, "B Z"],
        density: Float32[np.ndarray, " B"],
        decode: Callable[[Int64[np.ndarray, " J"]], UInt8[np.ndarray, "J C H W"]],
    ) -> None:
        """A detector of parts: training builds one of torch parts, ``open`` one of files."""
        self.params = params
        self.shape = shape
        self._encode, self._index, self._latents = encode, index, latents
        self._density, self._decode = density, decode
        c, h, w = shape
        ph, pw = params.patch
        self.origins = [(t, s) for t in _starts(h, ph, params.stride) for s in _starts(w, pw, params.stride)]
        self._cover = np.zeros((h, w), dtype=np.float32)
        for top, left in self.origins:
            self._cover[top : top + ph, left : left + pw] += 1
        self._blur = _gaussian(h, params.smooth), _gaussian(w, params.smooth)
        cells = len(self.origins) * (params.neighbours + 3) * c * ph * pw
        self.max_batch = max(1, min(256, _MAX_CELLS // cells))

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        """The detector of an artifact's files; see ``Detector.open``."""
        try:
            params = NlnParams.model_validate(artifact.manifest.params)
        except ValidationError as error:
            raise ArtifactIncompatible(f"{artifact.path}: params of nln: {error}") from error
        spec = artifact.manifest.input
        if not isinstance(spec, ImageInput):
            raise ArtifactIncompatible(f"{artifact.path}: nln reads images, not {spec.kind}")
        encoder = runtime.session(artifact.file(ENCODER))
        encoder.require(["x"], ["z"])
        index = runtime.index(artifact.file(INDEX))
        latents = _load(artifact, LATENTS, np.float16, (index.size, index.dimension))
        density = _load(artifact, DENSITY, np.float32, (index.size,))
        patch = (spec.shape[0], *params.patch)
        if tuple(encoder.inputs["x"][1:]) != patch:
            raise ArtifactIncompatible(f"{artifact.path}: the encoder does not read {patch}")
        if index.size <= params.neighbours:
            raise ArtifactIncompatible(
                f"{artifact.path}: {index.size} items cannot give {params.neighbours} neighbours"
            )

        def encode(x: Float32[np.ndarray, "M C H W"]) -> Float32[np.ndarray, "M Z"]:
            return encoder.run(["z"], {"x": x})[0]

        if params.decoded == "bank":
            bank = _load(artifact, BANK, np.uint8, (index.size, *patch))

            def decode(ids: Int64[np.ndarray, " J"]) -> UInt8[np.ndarray, "J C H W"]:
                return np.asarray(bank[ids])
        else:
            decoder = runtime.session(artifact.file(DECODER))
            decoder.require(["z"], ["x"])

            def decode(ids: Int64[np.ndarray, " J"]) -> UInt8[np.ndarray, "J C H W"]:
                unique, inverse = np.unique(ids, return_inverse=True)
                z = np.asarray(latents[unique, : params.latent], dtype=np.float32)
                return to_levels(decoder.run(["x"], {"z": z})[0])[inverse.reshape(-1)]

        return cls(params, spec.shape, encode, index, latents, density, decode)

    def detect(self, x: Float32[np.ndarray, "N C H W"], *, maps: bool) -> Detection:
        """Raw scores and residual maps; see ``Detector.detect``."""
        found = self.measure(x)
        started = perf_counter()
        p = self.params
        e = top_mean(found.e.reshape(len(x), -1), p.e_top)
        d = top_mean(found.d, p.d_top)
        scores = join(p, e, d)
        residual = self.residual(found) if maps else None
        found.phases_s["postprocess"] += perf_counter() - started
        return Detection(scores, residual, found.phases_s)

    def measure(self, x: Float32[np.ndarray, "N C H W"]) -> Measured:
        """Pixel errors to the decoded neighbours and latent distances to them."""
        p = self.params
        n, count = len(x), len(self.origins)
        t0 = perf_counter()
        cut = self.cut(x)
        z = self.embed(cut)
        t1 = perf_counter()
        ids, distance, weight = self.neighbours(z)
        t2 = perf_counter()
        near = (weight * self._density[ids]).sum(axis=1)
        d = (weight * distance).sum(axis=1) / near**p.gamma
        error = np.zeros(cut.shape, dtype=np.float32)
        for k in range(p.neighbours):
            decoded = self._decode(ids[:, k]).astype(np.float32)
            decoded *= np.float32(1 / 255)
            decoded -= cut
            np.abs(decoded, out=decoded)
            decoded *= weight[:, k].astype(np.float32)[:, None, None, None]
            error += decoded
        e = self._assemble(error.mean(axis=1).reshape(n, count, *p.patch))
        phases = {"infer": t1 - t0, "search": t2 - t1, "postprocess": perf_counter() - t2}
        return Measured(self._smooth(e), d.reshape(n, count).astype(np.float32), phases)

    def cut(
        self, x: Float32[np.ndarray, "N C H W"]
    ) -> Float32[np.ndarray, "M C h w"]:
        """The patches of each item, row by row, item after item; M = N P."""
        ph, pw = self.params.patch
        parts = [x[:, :, t : t + ph, s : s + pw] for t, s in self.origins]
        return np.stack(parts, axis=1).reshape(-1, x.shape[1], ph, pw)

    def embed(self, patches: Float32[np.ndarray, "M C h w"]) -> Float32[np.ndarray, "M Z"]:
        """What the index holds: latents, and the weighted places of the patches where wanted."""
        z = self._encode(patches)
        weight = self.params.position_weight
        if weight == 0:
            return z
        places = np.array(self.origins, dtype=np.float32) / np.float32(max(self.shape[1:]))
        repeated = np.tile(places * np.float32(weight), (len(z) // len(self.origins), 1))
        return np.concatenate([z, repeated], axis=1)

    def neighbours(
        self, z: Float32[np.ndarray, "M Z"]
    ) -> tuple[Int64[np.ndarray, "M K"], Float64[np.ndarray, "M K"], Float64[np.ndarray, "M K"]]:
        """Row numbers, exact distances and weights of the K nearest bank items."""
        k = self.params.neighbours
        _, ids = self._index.search(z, min(k + 1 + _SPARE, self._index.size))
        # -1 (an approximate index found fewer) is ranked last
        near = np.asarray(self._latents[np.maximum(ids, 0)], dtype=np.float32)
        square = np.square(near - z[:, None, :], dtype=np.float32).sum(axis=2, dtype=np.float64)
        distance = np.where(ids < 0, np.inf, np.sqrt(square))
        order = np.lexsort((ids, distance))[:, : k + 1]
        ids = np.take_along_axis(ids, order, axis=1)
        distance = np.take_along_axis(distance, order, axis=1)
        return ids[:, :k], distance[:, :k], taper(distance)

    def residual(self, found: Measured) -> Float32[np.ndarray, "N H W"]:
        """The map: error to the decoded neighbours, and the distances of the patches over a pixel."""
        p = self.params
        if p.map_alpha == 1 or len(self.origins) == 1:
            return found.e
        spread = np.broadcast_to(found.d[:, :, None, None], (*found.d.shape, *p.patch))
        d = self._smooth(self._assemble(spread))
        return np.asarray(p.map_alpha * found.e + (1 - p.map_alpha) * p.d_to_e * d, np.float32)

    def _assemble(self, parts: Float32[np.ndarray, "N P h w"]) -> Float32[np.ndarray, "N H W"]:
        """Patches put back in place, averaged where they overlap."""
        out = np.zeros((len(parts), *self.shape[1:]), dtype=np.float32)
        ph, pw = self.params.patch
        for i, (top, left) in enumerate(self.origins):
            out[:, top : top + ph, left : left + pw] += parts[:, i]
        return out / self._cover

    def _smooth(self, maps: Float32[np.ndarray, "N H W"]) -> Float32[np.ndarray, "N H W"]:
        if self.params.smooth == 0:
            return maps
        rows, columns = self._blur
        return np.asarray(rows @ maps @ columns.T)


def join(params: NlnParams, e: np.ndarray, d: np.ndarray) -> Float64[np.ndarray, " N"]:
    """alpha e + (1 - alpha) d, each scaled so that held-out normals lie mostly in [0, 1]."""
    scaled_e = (e - params.e_low) / (params.e_high - params.e_low)
    scaled_d = (d - params.d_low) / (params.d_high - params.d_low)
    return np.asarray(params.alpha * scaled_e + (1 - params.alpha) * scaled_d, dtype=np.float64)


def top_mean(values: Float[np.ndarray, "N V"], share: float) -> Float64[np.ndarray, " N"]:
    """The mean of each row's largest values, at least one of them."""
    count = max(1, round(share * values.shape[1]))
    if count < values.shape[1]:
        values = np.partition(values, -count, axis=1)[:, -count:]
    # sorted, so that the sum does not depend on the order partition left
    return np.asarray(np.sort(values, axis=1).mean(axis=1, dtype=np.float64))


def taper(distance: Float64[np.ndarray, "M K1"]) -> Float64[np.ndarray, "M K"]:
    """Weights of the K nearest that fall to nothing at the distance of the next one; sum 1."""
    limit = np.where(np.isfinite(distance[:, -1:]), distance[:, -1:], distance[:, -2:-1])
    weight = 1 + 1e-6 - distance[:, :-1] / np.maximum(limit, 1e-12)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def to_levels(decoded: Float[np.ndarray, "J C h w"]) -> UInt8[np.ndarray, "J C h w"]:
    """Decoded items as the bank holds them: [0, 1] in 256 levels."""
    return np.rint(np.clip(decoded, 0, 1) * 255).astype(np.uint8)


def _starts(size: int, patch: int, stride: int) -> list[int]:
    """Patch origins along one side; the last patch ends at the border."""
    return sorted({*range(0, size - patch + 1, stride), size - patch})


def _gaussian(size: int, sigma: float) -> Float32[np.ndarray, "V V"]:
    """A matrix that smooths along one side; rows sum to 1, so borders are not darkened."""
    if sigma == 0:
        return np.eye(size, dtype=np.float32)
    place = np.arange(size)
    kernel = np.exp(-0.5 * ((place[:, None] - place[None]) / sigma) ** 2)
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True), dtype=np.float32)


def _load(
    artifact: Artifact, name: str, dtype: type, shape: tuple[int, ...]
) -> np.ndarray:
    """A memory-mapped array of the artifact, its kind and shape checked."""
    path = artifact.file(name)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactCorrupt(f"{path}: not a readable array ({error})") from error
    if array.dtype != dtype or array.shape != shape:
        raise ArtifactCorrupt(
            f"{path}: {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}"
        )
    return np.asarray(array)
