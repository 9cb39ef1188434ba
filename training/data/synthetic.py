"""Anomalies made from normal items: what choices are made on where real anomalies must not be seen.

Images get a patch cut from another image (Li et al., CutPaste, CVPR 2021, who cut from the same
image) or a patch of noise; sensor windows get a fault of one or a few sensors; vectors get some
features of another one, or shifted ones. Item i depends on the seed, on i, and on the item it takes
from, never on the order of work.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float32, UInt8

_TRIES = 8
_VISIBLE = 8.0
"""Mean change of a patch in grey levels below which another place is tried: on a black background a
black patch is no anomaly."""

Anomalous = tuple[UInt8[np.ndarray, "N H W C"], Bool[np.ndarray, "N H W"]]
_Patch = Literal["cut", "gaussian", "uniform", "constant"]
_Fault = Literal["offset", "drift", "stuck", "noise", "decoupled"]


def cut_paste(images: UInt8[np.ndarray, "N H W C"], seed: int) -> Anomalous:
    """Each image with a patch of another one pasted elsewhere, and which pixels changed.

    Patches measure 10-40 % of a side.
    """
    return _patched(images, seed, ("cut",))


def noise_patches(images: UInt8[np.ndarray, "N H W C"], seed: int) -> Anomalous:
    """Each image with a patch of Gaussian, uniform or constant values, and which pixels changed."""
    return _patched(images, seed, ("gaussian", "uniform", "constant"))


def synthetic_anomalies(images: UInt8[np.ndarray, "N H W C"], seed: int) -> Anomalous:
    """Even items as ``cut_paste``, odd ones as ``noise_patches`` would make them."""
    out, masks = cut_paste(images, seed)
    noisy, noisy_masks = noise_patches(images, seed)
    out[1::2], masks[1::2] = noisy[1::2], noisy_masks[1::2]
    return out, masks


def _patched(images: np.ndarray, seed: int, kinds: tuple[_Patch, ...]) -> Anomalous:
    n, height, width, _ = images.shape
    out, masks = images.copy(), np.zeros((n, height, width), dtype=bool)
    for i, image in enumerate(images):
        rng = np.random.default_rng((seed, i))
        kind = kinds[rng.integers(len(kinds))]
        strongest = -1.0
        for _ in range(_TRIES):
            other = images[(i + rng.integers(1, n)) % n] if n > 1 else image
            rows, columns = _extent(height, rng), _extent(width, rng)
            patch = _patch(kind, image[rows, columns], other, rng)
            change = np.abs(patch.astype(np.int16) - image[rows, columns])
            if change.mean() > strongest:
                strongest = float(change.mean())
                out[i] = image
                out[i, rows, columns] = patch
            if strongest >= _VISIBLE:
                break
        masks[i] = (out[i] != image).any(axis=-1)
    return out, masks


def _extent(side: int, rng: np.random.Generator) -> slice:
    length = max(1, round(side * rng.uniform(0.1, 0.4)))
    start = int(rng.integers(side - length + 1))
    return slice(start, start + length)


def _patch(
    kind: _Patch, under: np.ndarray, other: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """What is put over the pixels ``under``; ``other`` is the image to cut from."""
    match kind:
        case "cut":
            height, width = under.shape[:2]
            top = rng.integers(other.shape[0] - height + 1)
            left = rng.integers(other.shape[1] - width + 1)
            return other[top : top + height, left : left + width]
        case "gaussian":
            noise = rng.normal(0.0, rng.uniform(20, 80), under.shape)
            return np.clip(under + noise, 0, 255).astype(np.uint8)
        case "uniform":
            return rng.integers(0, 256, under.shape, dtype=np.uint8)
        case "constant":
            value = rng.integers(0, 256, under.shape[2], dtype=np.uint8)
            return np.broadcast_to(value, under.shape)


def synthetic_series_anomalies(
    windows: Float32[np.ndarray, "W L D"], seed: int
) -> tuple[Float32[np.ndarray, "W L D"], Bool[np.ndarray, "W L D"]]:
    """Each window with a fault in one to a quarter of its sensors, and which values changed.

    The faults, drawn at random: an offset, a drift, a stuck reading, a burst of noise, or a sensor
    that has lost touch with the others (its readings of another window). Offsets, drifts and noise
    measure 1 to 4 standard deviations of the sensor over all windows.
    """
    w, length, d = windows.shape
    spread = windows.std(axis=(0, 1), dtype=np.float64)
    spread = np.where(spread > 0, spread, 1.0)
    faults = get_args(_Fault)
    out = windows.copy()
    for i, window in enumerate(windows):
        rng = np.random.default_rng((seed, i))
        for _ in range(_TRIES):
            fault = faults[rng.integers(len(faults))]
            sensors = rng.choice(d, size=rng.integers(1, max(1, d // 4) + 1), replace=False)
            onset = int(rng.integers(0, length // 2 + 1))
            other = windows[(i + rng.integers(1, w)) % w] if w > 1 else window[::-1]
            size = spread[sensors] * rng.uniform(1, 4) * rng.choice([-1, 1], len(sensors))
            out[i, onset:, sensors] = _faulty(
                fault, window[onset:, sensors], other[onset:, sensors], size, rng
            ).T
            if (out[i] != window).any():  # a sensor that stood still anyway cannot be stuck
                break
    return out, out != windows


def synthetic_vector_anomalies(
    vectors: Float32[np.ndarray, "N D"], seed: int
) -> tuple[Float32[np.ndarray, "N D"], Bool[np.ndarray, "N D"]]:
    """Each vector with a tenth to a half of its features wrong, and which values changed.

    Even items get those features from another vector: each value is normal, together they are not.
    Odd ones, and all where there is nothing to exchange, are shifted by 1 to 4 standard deviations
    of each feature, up or down.
    """
    n, d = vectors.shape
    spread = vectors.std(axis=0, dtype=np.float64)
    spread = np.where(spread > 0, spread, 1.0)
    out = vectors.copy()
    for i, vector in enumerate(vectors):
        rng = np.random.default_rng((seed, i))
        share = rng.uniform(0.1, 0.5)
        features = rng.choice(d, size=max(1, round(share * d)), replace=False)
        if i % 2 == 0 and n > 1 and d > 1:
            for other in (i + rng.integers(1, n, _TRIES)) % n:
                out[i, features] = vectors[other, features]
                if (out[i] != vector).any():
                    break
        if (out[i] == vector).all():
            size = rng.uniform(1, 4, len(features)) * rng.choice([-1, 1], len(features))
            out[i, features] = vector[features] + size * spread[features]
    return out, out != vectors


def _faulty(
    fault: _Fault, x: np.ndarray, other: np.ndarray, size: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The readings ``x`` [T, D] under a fault; ``size`` [D] carries the sensors' units."""
    match fault:
        case "offset":
            return np.asarray(x + size)
        case "drift":
            return np.asarray(x + np.linspace(0, 1, len(x))[:, None] * size)
        case "stuck":
            return np.broadcast_to(x[:1], x.shape)
        case "noise":
            return np.asarray(x + rng.normal(0.0, 1.0, x.shape) * size)
        case "decoupled":
            return other
