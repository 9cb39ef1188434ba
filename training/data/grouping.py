"""Groups of near-duplicate images, and splits that keep a group on one side.

Two photographs of one object in different splits make a memorising detector look good. Images whose
16 x 16 thumbnails lie close are linked, and linked images share a group (single linkage). Pixels as
they are find copies; thumbnails of zero mean and unit norm also find the same object under another
exposure, but link all images of a fixed camera that sees alike parts.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

THUMBNAIL = 16
NEAR = 0.2
"""L2 distance of thumbnails below which two images are near-duplicates."""
_FLAT = 16.0 / 255
"""Norm below which a centred thumbnail is only quantisation noise."""
_CHUNK = 512


def thumbnails(
    images: UInt8[np.ndarray, "N H W C"], any_exposure: bool = False
) -> Float64[np.ndarray, "N D"]:
    """Area-averaged 16 x 16 thumbnails as vectors, values in [0, 1] over sqrt(C).

    Args:
        images: of one size.
        any_exposure: subtract each thumbnail's mean, then scale it to norm 1.
    """
    n, _, _, c = images.shape
    out = np.empty((n, c, THUMBNAIL, THUMBNAIL), dtype=np.float32)
    for i, image in enumerate(images):
        for j in range(c):
            plane = Image.fromarray(image[:, :, j]).convert("F")
            out[i, j] = np.asarray(plane.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    x: np.ndarray = out.reshape(n, -1).astype(np.float64) / (255.0 * np.sqrt(c))
    if any_exposure:
        x -= x.mean(axis=1, keepdims=True)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _FLAT)
    return x


def near_duplicate_groups(
    images: UInt8[np.ndarray, "N H W C"], distance: float = NEAR, any_exposure: bool = False
) -> Int64[np.ndarray, " N"]:
    """The group number of each image, 0..G-1; images linked by a chain of near-duplicates share it.

    Distances are computed in strips, so that 10,000 images need a few seconds and 100 MB.
    """
    x = thumbnails(images, any_exposure)
    n = len(x)
    square = np.einsum("nd,nd->n", x, x)
    rows, columns = [np.arange(n)], [np.arange(n)]
    for start in range(0, n, _CHUNK):
        stop = min(start + _CHUNK, n)
        d2 = square[start:stop, None] + square[None, start:] - 2.0 * x[start:stop] @ x[start:].T
        i, j = np.nonzero(d2 < distance**2)
        # only who hangs together in this strip is kept: links may be far more than images
        label = _components(i + start, j + start, n)
        member = np.unique(np.concatenate([i, j])) + start
        _, first, inverse = np.unique(label[member], return_index=True, return_inverse=True)
        rows.append(member)
        columns.append(member[first][inverse])
    return _components(np.concatenate(rows), np.concatenate(columns), n)


def merge_groups(a: Int64[np.ndarray, " N"], b: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """The finest grouping that keeps together what either of two groupings keeps together."""
    i = np.arange(len(a))
    first_a, first_b = (np.unique(g, return_index=True, return_inverse=True) for g in (a, b))
    rows, columns = np.tile(i, 2), np.concatenate([f[1][f[2]] for f in (first_a, first_b)])
    return _components(rows, columns, len(a))


def split_groups(
    groups: Int64[np.ndarray, " N"], shares: Sequence[float], seed: int
) -> list[Int64[np.ndarray, " M"]]:
    """Indices of the items of each split, ascending; no group is in two splits.

    Groups come in random order, and each goes to a split drawn in proportion to the items that the
    splits still miss (where it fits, if it fits anywhere): sizes come near the shares, and which
    groups a split holds depends on nothing but the seed and the groups' sizes.

    Args:
        groups: the group of each item.
        shares: positive, they sum to 1.
        seed: of the random order.
    """
    if min(shares) <= 0 or abs(sum(shares) - 1.0) > 1e-9:
        raise ValueError(f"shares must be positive and sum to 1, got {list(shares)}")
    rng = np.random.default_rng(seed)
    names, sizes = np.unique(groups, return_counts=True)
    lacking = np.array(shares) * len(groups)
    split_of = np.empty(len(names), dtype=np.int64)
    for g in rng.permutation(len(names)):
        fits = np.where(lacking >= sizes[g] - 0.5, lacking, 0.0)
        if fits.sum() > 0:
            chosen = int(rng.choice(len(shares), p=fits / fits.sum()))
        else:
            chosen = int(np.argmax(lacking))
        split_of[g] = chosen
        lacking[chosen] -= sizes[g]
    item_split = split_of[np.searchsorted(names, groups)]
    return [np.flatnonzero(item_split == s) for s in range(len(shares))]


def _components(i: np.ndarray, j: np.ndarray, n: int) -> Int64[np.ndarray, " N"]:
    graph = coo_array((np.ones(len(i), dtype=bool), (i, j)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
