"""What is learned of a backbone's features of normal images: banks, whitening, covariances.

Source and what differs: see ``service.detectors.embedding``; the coreset is chosen after a random
projection, as PatchCore's is.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32, Float64, Int64
from sklearn.decomposition import PCA

from service.detectors.embedding_artifact import NearestMember
from service.detectors.embedding_members import (
    Blocks,
    Gaussian,
    Nearest,
    PatchBank,
    finest,
    on_sphere,
    pooled,
    projected,
)
from service.runtime import NeighbourIndex
from training.coreset import coreset
from training.families.embedding.config import EmbeddingConfig
from training.families.neighbours import nearest_others

_CHUNK = 256
_EXACT = 1024
"""Features whose covariance is decomposed; of more only the components that are wanted are
found."""
_SKETCH = 64
"""Numbers that are left of a place's features where the coreset is chosen."""

_POINTS = 300

Pooling = tuple[int, int]
"""Which block, and the parts a side whose means are joined."""


@dataclass(frozen=True)
class Features:
    """What one pass of a backbone over the training images leaves."""

    pooled: Mapping[Pooling, Float32[np.ndarray, "N F"]]
    places: Float32[np.ndarray, "A F"]
    """Of places of the feature maps, drawn at random; none where there is no map."""
    channels: list[int]
    """Of the maps, whose features are joined in ``places``."""


def gather(
    blocks: Callable[[np.ndarray], Blocks],
    train: Float32[np.ndarray, "N C H W"],
    wanted: Collection[Pooling],
    candidates: int,
    rng: np.random.Generator,
) -> Features:
    """Features of the training images, the backbone asked once for each.

    Args:
        blocks: the backbone.
        train: in random order.
        wanted: the poolings that members need; without any only ``candidates`` images are read.
        candidates: places that are drawn, at most.
        rng: draws them.
    """
    maps = [block for block in blocks(train[:2]) if block.ndim == 4]
    height, width = finest(maps) if maps else (0, 0)
    images = min(len(train), candidates) if maps else 0
    count = images * height * width
    drawn = np.sort(rng.choice(count, min(candidates, count), replace=False))
    vectors: dict[Pooling, list[np.ndarray]] = {key: [] for key in wanted}
    places = [np.empty((0, sum(block.shape[1] for block in maps)), np.float32)]
    for i in range(0, len(train) if wanted else images, _CHUNK):
        found = blocks(train[i : i + _CHUNK])
        for block, grid in wanted:
            vectors[block, grid].append(pooled(found[block], grid).astype(np.float32))
        first, end = np.searchsorted(drawn, np.array([i, i + _CHUNK]) * height * width)
        if end > first:
            places.append(places_at(found, drawn[first:end] - i * height * width))
    joined = {key: np.concatenate(parts) for key, parts in vectors.items()}
    return Features(joined, np.concatenate(places), [block.shape[1] for block in maps])


def places_at(blocks: Blocks, ids: Int64[np.ndarray, " A"]) -> Float32[np.ndarray, "A F"]:
    """These rows of ``places_of``, the others never made."""
    maps = [block for block in blocks if block.ndim == 4]
    height, width = finest(maps)
    item, place = np.divmod(ids, height * width)
    row, column = np.divmod(place, width)
    return np.concatenate(
        [
            block[item, :, row * block.shape[2] // height, column * block.shape[3] // width]
            for block in maps
        ],
        axis=1,
    )


def fit_nearest(
    member: NearestMember, pooling: Pooling, z: Float32[np.ndarray, "N F"], config: EmbeddingConfig
) -> tuple[Nearest, Any]:
    """A bank of pooled features, and its FAISS index."""
    mean, matrix, radius = np.zeros(z.shape[1]), None, 0.0
    if member == "pixels":
        mean, radius = z.mean(axis=0, dtype=np.float64), config.pixel_radius
    if member == "whitened":
        mean, matrix = whitening(z, config.ridge, config.components)
        radius = config.radius
    if radius:
        lengths = [
            np.linalg.norm(projected(z[i : i + _CHUNK], mean, matrix), axis=1)
            for i in range(0, len(z), _CHUNK)
        ]
        radius *= float(np.median(np.concatenate(lengths)))
    kept = z[: config.bank_items]
    bank = np.concatenate(
        [
            on_sphere(projected(kept[i : i + _CHUNK], mean, matrix), radius)
            for i in range(0, len(kept), _CHUNK)
        ]
    )
    flat = faiss.IndexFlatL2(bank.shape[1])
    flat.add(bank)
    index = NeighbourIndex(flat, threads=0)
    typical = typical_distances(index, bank, config.neighbours)
    sizes = config.neighbours, config.locality
    return Nearest(*pooling, mean, matrix, radius, index, typical, *sizes), flat


def whitening(
    z: Float32[np.ndarray, "N F"], ridge: float, components: int
) -> tuple[Float64[np.ndarray, " F"], Float64[np.ndarray, "F D"]]:
    """Mean, and principal directions over the roots of their variances plus the ridge."""
    mean = z.mean(axis=0, dtype=np.float64)
    if z.shape[1] > _EXACT:
        count = max(1, min(components, len(z) - 1))
        pca = PCA(count, svd_solver="randomized", iterated_power=4, random_state=0).fit(z)
        variance, directions = (
            found.astype(np.float64) for found in (pca.explained_variance_, pca.components_.T)
        )
    else:
        variance, directions = np.linalg.eigh(np.atleast_2d(np.cov(z.T, dtype=np.float64)))
        variance, directions = variance[::-1][:components], directions[:, ::-1][:, :components]
    floor = ridge * variance.mean() + 1e-12
    return mean, directions / np.sqrt(np.maximum(variance, 0) + floor)


def typical_distances(
    index: NeighbourIndex, bank: Float32[np.ndarray, "B D"], k: int
) -> Float64[np.ndarray, " B"]:
    """Mean distance of each bank vector to its k nearest others, over the median of these.

    Values below a tenth (copies among the training items) count as a tenth.
    """
    found = nearest_others(index, bank, k)[1].mean(axis=1)
    return np.maximum(found / max(float(np.median(found)), 1e-12), 0.1)


def fit_gaussian(every: list[Float32[np.ndarray, "N F"]], config: EmbeddingConfig) -> Gaussian:
    """Centres and the shrunk covariance around the nearest of them, block by block."""
    centres, precisions = [], []
    for z in every:
        middle = _centres(z, min(config.clusters, len(z)))
        off = np.empty(z.shape)
        for i, row in enumerate(z):
            off[i] = row - middle[((row - middle) ** 2).sum(axis=1).argmin()]
        covariance = off.T @ off / len(off)
        size = len(covariance)
        sphere = (np.trace(covariance) / size + 1e-12) * np.eye(size)
        shrunk = (1 - config.shrinkage) * covariance + config.shrinkage * sphere
        centres.append(middle)
        precisions.append(np.linalg.inv(shrunk + 1e-6 * sphere))
    return Gaussian(centres, precisions)


def _centres(z: Float32[np.ndarray, "N F"], count: int) -> Float64[np.ndarray, "K F"]:
    if count == 1:
        return z.mean(axis=0, dtype=np.float64, keepdims=True)
    means = faiss.Kmeans(z.shape[1], count, niter=20, seed=1, min_points_per_centroid=1)
    means.train(z)
    return np.asarray(means.centroids, dtype=np.float64)


def fit_patches(
    features: Features, config: EmbeddingConfig, rng: np.random.Generator
) -> tuple[PatchBank, Any]:
    """A bank of places and its FAISS index."""
    mean, weight = place_weights(features)
    candidates = (features.places - mean) * weight
    sketch = candidates
    if candidates.shape[1] > _SKETCH:
        directions = rng.standard_normal((candidates.shape[1], _SKETCH), dtype=np.float32)
        sketch = candidates @ directions
    flat = faiss.IndexFlatL2(candidates.shape[1])
    flat.add(np.ascontiguousarray(candidates[coreset(sketch, config.bank_patches)]))
    return PatchBank(mean, weight, NeighbourIndex(flat, threads=0), config.top), flat


def place_weights(
    features: Features,
) -> tuple[Float32[np.ndarray, " F"], Float32[np.ndarray, " F"]]:
    """Mean of the places, and weights by which every map weighs the same and every channel of a map
    too; one that is (nearly) dead among normal images counts no more than a hundred usual ones.
    """
    places, channels = features.places, features.channels
    spread = places.std(axis=0, dtype=np.float64)
    alive = spread[spread > 0]
    floor = 1e-2 * float(np.median(alive)) if len(alive) else 1.0
    share = np.repeat([1 / (len(channels) * size) for size in channels], channels)
    weight = np.sqrt(share) / np.maximum(spread, floor)
    return places.mean(axis=0, dtype=np.float64).astype(np.float32), weight.astype(np.float32)


def surprise_curve(scores: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "2 K"]:
    """Points of -log of the conformal p-value over a score, at held-out scores.

    Of those closer to each other than a small part of their range only one is a point: the line
    between two that are almost equal would turn rounding into another score.
    """
    scores, n = np.sort(scores), len(scores)
    span, largest = float(scores[-1] - scores[0]), float(scores[-1])
    least = max(span / _POINTS, 1e-3 * abs(largest) if span == 0 else 0.0, 1e-12)
    kept = [largest]
    for score in scores[-2::-1]:
        if kept[-1] - score >= least:
            kept.append(float(score))
    places = np.array(kept[::-1])
    # the share of the held-out that score at least as much, the item itself among them
    heights = np.log(n + 1) - np.log(n - np.searchsorted(scores, places))
    below = [[places[0] - least], [0.0]]  # where all of them do
    return np.concatenate([below, [places, heights]], axis=1)
