"""NLN: an item is anomalous when the training items nearest in latent space do not look like it.

The input (or each of its overlapping patches) is encoded; its K nearest latents of a bank of normal
training items are found, and two things are measured: the pixel error e to the *decoded*
neighbours, and the latent distance d to them, both relative to what is typical of those neighbours
themselves. Decoded neighbours are kept in the bank as uint8, so that scoring needs one encoder pass
and no decoder; where a bank would be too large, the decoder is run on the neighbours found instead.

Two systems compare features of a second encoder in the place of pixels: ``ae_res`` those of its
discriminator, ``ae_con`` latents with latents of reconstructions. Their residual maps still show
pixels. ``score = "reconstruction"`` is the plain error of x to its own reconstruction, beside which
the paper measures every system; the bank then only shows evidence.

Source: Mesarcik, Ranguelova, Boonstra & van Nieuwpoort, Improving novelty detection using the
reconstructions of nearest neighbours, Array 2022, eqs. 3 (reconstruction), 4 (pixels), 7
(``ae_res``) and 8 (``ae_con``; ``con_mode = "code"``: as the released code has it).

======================  =======================================
name here               name in the paper
======================  =======================================
z, latents              z = f(x), Z
decoded                 x̂^k = g(z^k)
e, d, alpha             first and second term of eq. 4, α
features                q of the discriminator, f_con
======================  =======================================

*Differs from the source in*: neighbours are weighted by 1 - d_k / d_(K+1) instead of equally, so
that the score stays continuous where the K-th neighbour changes; e and d are divided by the error
and distance of the neighbours to *their* neighbours, to the power gamma (0 = as in the paper), as
a coarse texture is far from everything; e and d are scaled by quantiles of held-out normal items
instead of the extremes of the test set; patches overlap; fine grain can be smoothed away first.
"""

import math
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar, Self

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from service.contract.store import Artifact
from service.detectors.base import Detection, Neighbour, Params
from service.detectors.nln_artifact import NlnParams, Parts, read_parts
from service.detectors.patches import Patches
from service.runtime import Runtime

# the index may rank by rounded distances: a few more are fetched and ranked exactly
_SPARE = 8
_MAX_CELLS = 2**23


@dataclass(frozen=True)
class Measured:
    """The two terms, before they are scaled and joined."""

    e: Float32[np.ndarray, "N V"]
    """The error of each pixel, or of each patch where features are compared."""
    d: Float32[np.ndarray, "N P"]
    pixels: Float32[np.ndarray, "N H W"] | None
    """Errors of pixels in place; None where they were not asked for and do not count."""
    phases_s: dict[str, float]


class NlnDetector:
    """Nearest latent neighbours over an ONNX encoder, a FAISS index and a bank."""

    Params: ClassVar[type[Params]] = NlnParams

    def __init__(self, parts: Parts) -> None:
        """A detector of parts: training builds one of torch parts, ``open`` one of files."""
        self.parts = parts
        self.params = params = parts.params
        self.shape = shape = parts.shape
        self.patches = Patches(shape, params.patch, params.stride, params.blur)
        cells = len(self.patches) * (params.neighbours + 3) * shape[0] * math.prod(params.patch)
        self.max_batch = max(1, min(256, _MAX_CELLS // cells))

    @classmethod
    def open(cls, artifact: Artifact, runtime: Runtime) -> Self:
        """The detector of an artifact's files; see ``Detector.open``."""
        return cls(read_parts(artifact, runtime))

    def detect(self, x: Float32[np.ndarray, "N C H W"], *, maps: bool) -> Detection:
        """Raw scores and residual maps; see ``Detector.detect``."""
        found = self.measure(x, pixels=maps)
        started = perf_counter()
        p = self.params
        scores = join(p, top_mean(found.e, p.e_top), top_mean(found.d, p.d_top))
        residual = self.residual(found) if maps else None
        found.phases_s["postprocess"] += perf_counter() - started
        return Detection(scores, residual, found.phases_s)

    def measure(self, x: Float32[np.ndarray, "N C H W"], *, pixels: bool = True) -> Measured:
        """Errors and latent distances to the neighbours, or the error of the reconstruction.

        Args:
            x: prepared images.
            pixels: whether errors of pixels are needed even where features count.
        """
        n, count = len(x), len(self.patches)
        t0 = perf_counter()
        cut = self.patches.cut(x)
        z = self.embed(cut)
        if self.params.score == "reconstruction":
            rebuilt = self._in_place(np.abs(self._rebuilt(z) - cut).mean(axis=1), n)
            phases = {"infer": perf_counter() - t0, "search": 0.0, "postprocess": 0.0}
            nowhere = np.zeros((n, count), dtype=np.float32)
            return Measured(rebuilt.reshape(n, -1), nowhere, rebuilt, phases)
        featured = self.params.compares != "pixels"
        features = self.features(cut, z) if featured else None
        t1 = perf_counter()
        ids, distance, weight = self.neighbours(z)
        t2 = perf_counter()
        own = self.own(ids, weight)
        d = ((weight * distance).sum(axis=1) / own[0]).reshape(n, count).astype(np.float32)
        place: Float32[np.ndarray, "N H W"] | None = None
        if pixels or not featured:
            error = self.error(cut, ids, weight) / own[1].astype(np.float32)[:, None, None]
            place = self._in_place(error, n)
        if features is not None:
            e = (self.feature_error(features, ids, weight) / own[2]).reshape(n, count)
        else:
            assert place is not None
            e = place.reshape(n, -1)
        phases = {"infer": t1 - t0, "search": t2 - t1, "postprocess": perf_counter() - t2}
        return Measured(e.astype(np.float32, copy=False), d, place, phases)

    def _in_place(
        self, error: Float32[np.ndarray, "M h w"], n: int
    ) -> Float32[np.ndarray, "N H W"]:
        return self.patches.assemble(error.reshape(n, len(self.patches), *self.params.patch))

    def _rebuilt(self, z: Float32[np.ndarray, "M Z"]) -> Float32[np.ndarray, "M C h w"]:
        assert self.parts.rebuild is not None
        return self.parts.rebuild(self._codes(z))

    def _codes(self, z: Float32[np.ndarray, "M Z"]) -> Float32[np.ndarray, "M L"]:
        """Without the places of the patches."""
        return np.ascontiguousarray(z[:, : self.params.latent])

    def features(
        self, cut: Float32[np.ndarray, "M C h w"], z: Float32[np.ndarray, "M Z"]
    ) -> Float32[np.ndarray, "M F"]:
        """What is compared with the bank's features: of the patches, of their latents, or these."""
        if self.parts.features is None:
            return self._codes(z)
        return self.parts.features(cut if self.params.feature_input == "x" else self._codes(z))

    def feature_error(
        self,
        features: Float32[np.ndarray, "M F"],
        ids: Int64[np.ndarray, "M K"],
        weight: Float64[np.ndarray, "M K"],
    ) -> Float64[np.ndarray, " M"]:
        """Weighted mean over neighbours, mean over features, of the absolute difference."""
        bank = self.parts.bank_features
        if bank is None:
            bank = self.parts.latents[:, : self.params.latent]
        off = np.abs(np.asarray(bank[ids], np.float32) - features[:, None]).mean(axis=2)
        return np.asarray((weight * off).sum(axis=1), dtype=np.float64)

    def embed(self, patches: Float32[np.ndarray, "M C h w"]) -> Float32[np.ndarray, "M Z"]:
        """What the index holds: latents, and the weighted places of the patches where wanted."""
        z = self.parts.encode(patches)
        weight = self.params.position_weight
        if weight == 0:
            return z
        places = np.array(self.patches.origins, dtype=np.float32) / np.float32(max(self.shape[1:]))
        repeated = np.tile(places * np.float32(weight), (len(z) // len(self.patches), 1))
        return np.concatenate([z, repeated], axis=1)

    def neighbours(
        self, z: Float32[np.ndarray, "M Z"]
    ) -> tuple[Int64[np.ndarray, "M K"], Float64[np.ndarray, "M K"], Float64[np.ndarray, "M K"]]:
        """Row numbers, exact distances and weights of the K nearest bank items."""
        k = self.params.neighbours
        ids, distance = self.nearest(z, k + 1)
        known = np.where(np.isfinite(distance), distance, 0)
        return np.maximum(ids[:, :k], 0), known[:, :k], taper(distance)

    def nearest(
        self, z: Float32[np.ndarray, "M Z"], count: int
    ) -> tuple[Int64[np.ndarray, "M K"], Float64[np.ndarray, "M K"]]:
        """Row numbers and exact distances, nearest first; -1 and infinity where fewer are found."""
        _, ids = self.parts.index.search(z, min(count + _SPARE, self.parts.index.size))
        # -1 (an approximate index found fewer) is ranked last
        near = np.asarray(self.parts.latents[np.maximum(ids, 0)], dtype=np.float32)
        square = np.square(near - z[:, None, :], dtype=np.float32).sum(axis=2, dtype=np.float64)
        distance = np.where(ids < 0, np.inf, np.sqrt(square))
        order = np.lexsort((ids, distance))[:, :count]
        return np.take_along_axis(ids, order, axis=1), np.take_along_axis(distance, order, axis=1)

    def own(
        self, ids: Int64[np.ndarray, "M K"], weight: Float64[np.ndarray, "M K"]
    ) -> Float64[np.ndarray, "T M"]:
        """What distance and errors are divided by: those typical of the neighbours themselves."""
        typical = [(weight * t[ids]).sum(axis=1) for t in self.parts.typical]
        return np.stack(typical) ** self.params.gamma

    def evidence(self, x: Float32[np.ndarray, "N C H W"], k: int) -> list[list[Neighbour]]:
        """The ``k`` nearest bank items of each image, or of its patch with the largest d."""
        n, count = len(x), len(self.patches)
        z = self.embed(self.patches.cut(x))
        ids, distance, weight = self.neighbours(z)
        d = (weight * distance).sum(axis=1) / self.own(ids, weight)[0]
        worst = d.reshape(n, count).argmax(axis=1)
        ids, distance = self.nearest(z[np.arange(n) * count + worst], k)
        height, width = self.params.patch
        seen = self.parts.decode(np.maximum(ids, 0).reshape(-1))
        pixels = seen.reshape(*ids.shape, -1, height, width)
        return [
            [
                Neighbour(float(far), int(row), picture, left, top, width, height)
                for far, row, picture in zip(distance[i], ids[i], pixels[i], strict=True)
                if row >= 0
            ]
            for i, (top, left) in enumerate(self.patches.origins[j] for j in worst)
        ]

    def error(
        self,
        cut: Float32[np.ndarray, "M C h w"],
        ids: Int64[np.ndarray, "M K"],
        weight: Float64[np.ndarray, "M K"],
    ) -> Float32[np.ndarray, "M h w"]:
        """Weighted mean over neighbours and channels of |x - x̂^k|."""
        total = np.zeros(cut.shape, dtype=np.float32)
        for k in range(ids.shape[1]):
            off = self.parts.decode(ids[:, k]).astype(np.float32)
            off *= np.float32(1 / 255)
            off -= cut
            np.abs(off, out=off)
            off *= weight[:, k].astype(np.float32)[:, None, None, None]
            total += off
        return np.asarray(total.mean(axis=1))

    def residual(self, found: Measured) -> Float32[np.ndarray, "N H W"]:
        """Error to the decoded neighbours, joined with the distances of the patches on a pixel."""
        p = self.params
        assert found.pixels is not None
        if p.map_alpha == 1 or len(self.patches) == 1:
            return found.pixels
        spread = np.broadcast_to(found.d[:, :, None, None], (*found.d.shape, *p.patch))
        d = self.patches.assemble(spread)
        return np.asarray(p.map_alpha * found.pixels + (1 - p.map_alpha) * p.d_to_e * d, np.float32)


def join(params: NlnParams, e: np.ndarray, d: np.ndarray) -> Float64[np.ndarray, " N"]:
    """The sum alpha e + (1 - alpha) d, each scaled so that most normals lie in [0, 1]."""
    scaled_e = (e - params.e_low) / (params.e_high - params.e_low)
    scaled_d = (d - params.d_low) / (params.d_high - params.d_low)
    return np.asarray(params.alpha * scaled_e + (1 - params.alpha) * scaled_d, dtype=np.float64)


def top_mean(values: Float[np.ndarray, "N V"], share: float) -> Float64[np.ndarray, " N"]:
    """The mean of each row's largest values, at least one of them."""
    count = max(1, round(share * values.shape[1]))
    if count < values.shape[1]:
        # sorted, so that the sum does not depend on the order partition left
        values = np.sort(np.partition(values, -count, axis=1)[:, -count:], axis=1)
    return np.asarray(values.mean(axis=1, dtype=np.float64))


def taper(distance: Float64[np.ndarray, "M K1"]) -> Float64[np.ndarray, "M K"]:
    """Weights of the K nearest that fall to nothing at the distance of the next one; sum 1.

    An infinite distance (an approximate index found fewer) has no weight.
    """
    found = np.isfinite(distance)
    limit = np.where(found, distance, 0).max(axis=1, keepdims=True)
    share = np.where(found, distance, limit)[:, :-1] / np.maximum(limit, 1e-12)
    weight = np.where(found[:, :-1], 1 + 1e-6 - share, 0)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))
