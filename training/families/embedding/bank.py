"""What is learned of a backbone's features of normal images: banks, whitening, covariances.

Source and what differs: see ``service.detectors.embedding``.
"""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from service.detectors.embedding import NearestMember
from service.detectors.embedding_members import (
    Blocks,
    Gaussian,
    Nearest,
    PatchBank,
    on_sphere,
    places_of,
    pooled,
)
from service.detectors.neighbours import nearest
from service.runtime import NeighbourIndex
from training.families.embedding.config import EmbeddingConfig

_CHUNK = 256
_CELLS = 2**26
"""Numbers of the feature maps that candidates for the bank of places are drawn from."""


def in_chunks(blocks: Callable[[np.ndarray], Blocks], x: Float32[np.ndarray, "N C H W"]) -> Blocks:
    """What ``blocks`` gives, of many images."""
    parts = [blocks(x[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK)]
    return [np.concatenate(same) for same in zip(*parts, strict=True)]


def fit_nearest(
    member: NearestMember,
    block: int,
    blocks: Callable[[np.ndarray], Blocks],
    train: Float32[np.ndarray, "N C H W"],
    config: EmbeddingConfig,
) -> tuple[Nearest, Any]:
    """A bank of the pooled features of output ``block``, and its FAISS index."""
    grid = {"knn": 1, "whitened": config.grid, "pixels": config.pixel_grid}[member]
    of = (lambda x: [x]) if member == "pixels" else blocks
    z = in_chunks(lambda x: [pooled(of(x)[block], grid)], train)[0]
    mean, matrix, radius = np.zeros(z.shape[1]), np.eye(z.shape[1]), 0.0
    if member == "pixels":
        mean = z.mean(axis=0)
        radius = config.pixel_radius * float(np.median(np.linalg.norm(z - mean, axis=1)))
    if member == "whitened":
        mean, matrix = whitening(z, config.ridge, config.components)
        length = np.linalg.norm((z - mean) @ matrix, axis=1)
        radius = config.radius * float(np.median(length))
    bank = on_sphere((z[: config.bank_items] - mean) @ matrix, radius)
    flat = faiss.IndexFlatL2(bank.shape[1])
    flat.add(bank)
    index = NeighbourIndex(flat, threads=0)
    typical = typical_distances(index, bank, config.neighbours)
    sizes = config.neighbours, config.locality
    return Nearest(block, grid, mean, matrix, radius, index, typical, *sizes), flat


def whitening(
    z: Float64[np.ndarray, "N F"], ridge: float, components: int
) -> tuple[Float64[np.ndarray, " F"], Float64[np.ndarray, "F D"]]:
    """Mean, and principal directions over the roots of their variances plus the ridge."""
    mean = z.mean(axis=0)
    variance, directions = np.linalg.eigh(np.atleast_2d(np.cov(z.T)))
    variance, directions = variance[::-1][:components], directions[:, ::-1][:, :components]
    floor = ridge * variance.mean() + 1e-12
    return mean, directions / np.sqrt(np.maximum(variance, 0) + floor)


def typical_distances(
    index: NeighbourIndex, bank: Float32[np.ndarray, "B D"], k: int
) -> Float64[np.ndarray, " B"]:
    """Mean distance of each bank vector to its k nearest others, over the median of these.

    Values below a tenth (copies among the training items) count as a tenth.
    """
    found = np.empty(len(bank))
    for start in range(0, len(bank), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(bank)))
        ids, square = nearest(index, bank[rows], k + 1)
        own = ids == rows[:, None]
        own[~own.any(axis=1), -1] = True  # itself is among more copies than neighbours
        found[rows] = np.sqrt(square[~own].reshape(len(rows), k)).mean(axis=1)
    return np.maximum(found / max(float(np.median(found)), 1e-12), 0.1)


def fit_gaussian(
    blocks: Callable[[np.ndarray], Blocks],
    train: Float32[np.ndarray, "N C H W"],
    config: EmbeddingConfig,
) -> Gaussian:
    """Centres and the shrunk covariance around the nearest of them, block by block."""
    centres, precisions = [], []
    for z in in_chunks(lambda x: [pooled(block) for block in blocks(x)], train):
        middle = _centres(z, min(config.clusters, len(z)))
        off = np.empty_like(z)
        for i, row in enumerate(z):
            off[i] = row - middle[((row - middle) ** 2).sum(axis=1).argmin()]
        covariance = off.T @ off / len(off)
        size = len(covariance)
        sphere = (np.trace(covariance) / size + 1e-12) * np.eye(size)
        shrunk = (1 - config.shrinkage) * covariance + config.shrinkage * sphere
        centres.append(middle)
        precisions.append(np.linalg.inv(shrunk + 1e-6 * sphere))
    return Gaussian(centres, precisions)


def _centres(z: Float64[np.ndarray, "N F"], count: int) -> Float64[np.ndarray, "K F"]:
    if count == 1:
        return z.mean(axis=0, keepdims=True)
    means = faiss.Kmeans(z.shape[1], count, niter=20, seed=1, min_points_per_centroid=1)
    means.train(z.astype(np.float32))
    return np.asarray(means.centroids, dtype=np.float64)


def fit_patches(
    blocks: Callable[[np.ndarray], Blocks],
    train: Float32[np.ndarray, "N C H W"],
    config: EmbeddingConfig,
    rng: np.random.Generator,
) -> tuple[PatchBank, Any] | None:
    """A bank of places and its FAISS index; None where no output is a feature map."""
    first = blocks(train[:2])
    if all(block.ndim != 4 for block in first):
        return None
    maps = [block for block in first if block.ndim == 4]
    sizes = [block.shape[1] for block in maps]
    cells = max(block[0, 0].size for block in maps) * sum(sizes)
    items = rng.permutation(len(train))[: max(2, _CELLS // cells)]
    places, _ = places_of(in_chunks(blocks, train[np.sort(items)]))
    mean, spread = places.mean(axis=0), places.std(axis=0)
    # every block weighs the same, every channel of a block too
    share = np.repeat([1 / (len(sizes) * size) for size in sizes], sizes)
    weight = np.sqrt(share) / (spread + 1e-6 * max(float(spread.max()), 1e-12))
    mean, weight = mean.astype(np.float32), weight.astype(np.float32)
    some = rng.permutation(len(places))[: config.candidate_patches]
    candidates = (places[some] - mean) * weight
    flat = faiss.IndexFlatL2(candidates.shape[1])
    flat.add(np.ascontiguousarray(candidates[coreset(candidates, config.bank_patches)]))
    return PatchBank(mean, weight, NeighbourIndex(flat, threads=0), config.top), flat


def coreset(vectors: Float[np.ndarray, "A F"], count: int) -> Int64[np.ndarray, " B"]:
    """Rows such that none is far from all of those chosen: greedily, the furthest next."""
    count = min(count, len(vectors))
    norm = np.square(vectors).sum(axis=1)
    far = np.full(len(vectors), np.inf, dtype=np.float32)
    chosen = np.zeros(count, dtype=np.int64)
    for i in range(1, count):
        last = vectors[chosen[i - 1]]
        np.minimum(far, norm + last @ last - 2 * (vectors @ last), out=far)
        chosen[i] = far.argmax()
    return np.unique(chosen)
