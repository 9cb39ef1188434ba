"""The three ways in which features of a normal bank judge those of an item; see ``embedding``."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from service.detectors.neighbours import nearest
from service.runtime import NeighbourIndex

_CELLS = 2**22
"""Numbers of the candidates of a search, which are ranked exactly, in float64: 32 MiB."""
_CANDIDATES = 9
"""Of a search for the nearest one."""

_FAR = 20.0  # see ``surprise``

Blocks = list[np.ndarray]
"""Outputs of a backbone, each [N, F] or [N, F, h, w]."""


def pooled(block: Float32[np.ndarray, "N F ..."], grid: int = 1) -> Float64[np.ndarray, "N G"]:
    """Means over grid x grid parts of a feature map; vectors stay as they are.

    A map of fewer rows or columns has each of them as a part.
    """
    if block.ndim == 2:
        return block.astype(np.float64)
    for axis in (2, 3):
        cells = min(grid, block.shape[axis])
        parts = np.array_split(block, cells, axis=axis)
        block = np.stack([part.mean(axis=axis, dtype=np.float64) for part in parts], axis=axis)
    return block.reshape(len(block), -1)


@dataclass(frozen=True)
class Nearest:
    """Distance to the nearest bank vectors, relative to how far those are from their own."""

    block: int
    """Which of the outputs."""
    grid: int
    """Parts of a feature map, along each side, whose means are joined."""
    mean: Float64[np.ndarray, " F"]
    matrix: Float64[np.ndarray, "F D"] | None
    """None: features are compared as they are."""
    radius: float
    """Joined as one more coordinate before vectors are brought to length 1: at 0 only directions
    count, a large one leaves Euclidean distances."""
    index: NeighbourIndex
    typical: Float64[np.ndarray, " B"]
    """Mean distance of each bank vector to its own neighbours, over the median of these."""
    neighbours: int
    locality: float

    def vectors(self, blocks: Blocks) -> Float32[np.ndarray, "N D1"]:
        """What the index holds of items."""
        z = pooled(blocks[self.block], self.grid)
        return on_sphere(projected(z, self.mean, self.matrix), self.radius)

    def search(
        self, blocks: Blocks, k: int
    ) -> tuple[Int64[np.ndarray, "N K"], Float64[np.ndarray, "N K"]]:
        """Rows of the bank and exact distances, nearest first."""
        ids, square = nearest(self.index, self.vectors(blocks), k)
        return ids, np.sqrt(square)

    def scores(self, blocks: Blocks) -> Float64[np.ndarray, " N"]:
        """Mean distance over (mean of what is typical of the neighbours) ^ locality."""
        ids, distance = self.search(blocks, self.neighbours)
        usual = self.typical[ids].mean(axis=1) ** self.locality
        return np.asarray(distance.mean(axis=1) / usual)


@dataclass(frozen=True)
class Gaussian:
    """Squared Mahalanobis distance to the nearest centre, summed over the blocks."""

    centres: list[np.ndarray]
    """Of each block: [K, F]."""
    precisions: list[np.ndarray]
    """Of each block: [F, F], the inverse covariance around the centres."""

    def scores(self, blocks: Blocks) -> Float64[np.ndarray, " N"]:
        total = np.zeros(len(blocks[0]))
        for block, centres, precision in zip(blocks, self.centres, self.precisions, strict=True):
            off = pooled(block)[:, None, :] - centres  # N K F
            total += np.einsum("nkf,fg,nkg->nk", off, precision, off, optimize=True).min(axis=1)
        return total


@dataclass(frozen=True)
class PatchBank:
    """Distance of each place's features to the nearest of a bank of places, wherever those lie."""

    mean: Float32[np.ndarray, " F"]
    weight: Float32[np.ndarray, " F"]
    index: NeighbourIndex
    top: float
    """Share of the furthest places whose mean is the score; at least one."""

    def distances(self, blocks: Blocks) -> Float64[np.ndarray, "N h w"]:
        places, grid = places_of(blocks)
        places = (places - self.mean) * self.weight
        size = max(1, _CELLS // (_CANDIDATES * places.shape[1]))
        parts = [
            nearest(self.index, places[i : i + size], 1)[1] for i in range(0, len(places), size)
        ]
        return np.sqrt(np.concatenate(parts)).reshape(-1, *grid)

    def scores(self, distances: Float64[np.ndarray, "N h w"]) -> Float64[np.ndarray, " N"]:
        """The mean of the furthest places of each item."""
        flat = np.sort(distances.reshape(len(distances), -1), axis=1)
        return np.asarray(flat[:, -max(1, round(self.top * flat.shape[1])) :].mean(axis=1))


def places_of(blocks: Blocks) -> tuple[Float32[np.ndarray, "M F"], tuple[int, int]]:
    """Features of all places, row by row, item after item, and the (h, w) of their grid: that of
    the finest map, the others enlarged to it and joined.
    """
    maps = [block for block in blocks if block.ndim == 4]
    grid = finest(maps)
    joined = np.concatenate([_enlarged(block, grid) for block in maps], axis=1)  # N F h w
    return joined.transpose(0, 2, 3, 1).reshape(-1, joined.shape[1]), grid


def finest(maps: Blocks) -> tuple[int, int]:
    """(h, w) of the largest of several feature maps."""
    return max((block.shape[2], block.shape[3]) for block in maps)


def _enlarged(block: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A feature map on a finer grid: each place takes the value of the place it lies in."""
    rows = np.arange(grid[0]) * block.shape[2] // grid[0]
    columns = np.arange(grid[1]) * block.shape[3] // grid[1]
    return np.asarray(block[:, :, rows][:, :, :, columns])


def surprise(
    curve: Float64[np.ndarray, "2 K"], scores: Float64[np.ndarray, " N"]
) -> Float64[np.ndarray, " N"]:
    """-log of the conformal p-value among held-out normal scores, without its steps.

    Straight lines between the points of ``curve`` (ascending scores and the values there); beyond
    the largest score it goes on growing, by one for each (largest - median), so that far items keep
    their order. From ``_FAR`` on it grows as a logarithm, and that unit is never less than a
    thousandth of the largest: one member whose held-out scores are (nearly) equal does not silence
    the others.
    """
    places, heights = curve
    largest, median = float(places[-1]), float(np.interp(np.log(2), heights, places))
    unit = max(largest - median, 1e-3 * abs(largest), 1e-12)
    beyond = np.maximum(scores - largest, 0) / unit
    capped = np.minimum(beyond, _FAR) + np.log1p(np.maximum(beyond - _FAR, 0))
    return np.asarray(np.interp(scores, places, heights) + capped)


def projected(
    z: Float[np.ndarray, "N F"],
    mean: Float64[np.ndarray, " F"],
    matrix: Float64[np.ndarray, "F D"] | None,
) -> Float64[np.ndarray, "N D"]:
    """Features less their mean, in the space of ``matrix``."""
    off = z - mean
    return off if matrix is None else np.asarray(off @ matrix)


def on_sphere(z: Float64[np.ndarray, "N D"], radius: float) -> Float32[np.ndarray, "N D1"]:
    """Unit vectors along (z, radius)."""
    z = np.concatenate([z, np.full((len(z), 1), radius)], axis=1)
    length = np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    return np.asarray(z / length, dtype=np.float32)


def smooth_resize(side: int, cells: int) -> Float32[np.ndarray, "S c"]:
    """Weights of linear interpolation from the middles of ``cells`` to the middles of pixels."""
    place = np.clip((np.arange(side) + 0.5) * cells / side - 0.5, 0, cells - 1)
    low = np.minimum(place.astype(int), max(cells - 2, 0))
    weights = np.zeros((side, cells), dtype=np.float32)
    weights[np.arange(side), low] = 1 - (place - low)
    weights[np.arange(side), np.minimum(low + 1, cells - 1)] += place - low
    return weights
