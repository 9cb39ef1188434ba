"""How well residual maps find the pixels of a defect, with intervals over images.

Values come from scikit-learn. AUPRO follows Bergmann et al., The MVTec Anomaly Detection Dataset,
IJCV 2021: the mean overlap with each region (8-connected) against the false-positive rate of
pixels, integrated up to a rate of 0.3 and divided by it. IoU is over all pixels of all images, at a
threshold from normal data alone (``iou``) and, as Mesarcik et al., Array 2022, print it, at the one
that these very masks say is best (``iou_oracle``): no user can set that one. Intervals are
percentile intervals of a bootstrap of images, those with and without a marked pixel apart: pixels
of one image hang together.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.ndimage import label as label_regions
from sklearn.metrics import auc, jaccard_score, roc_curve

from service.contract.errors import InvalidInput
from service.contract.manifest import Metric
from training.metrics import check_ranking, joined, with_interval

AUPRO_MAX_FPR = 0.3
MAX_PIXELS = 30_000_000
"""Beyond this a seeded choice of images is measured: sorting more would need several GB."""
_BINS = 1024
_DRAWS = 100
"""Resamples computed at once."""


def pixel_metrics(
    maps: Float[np.ndarray, "N H W"],
    masks: Bool[np.ndarray, "N H W"],
    *,
    threshold: float | None = None,
    split: str = "test",
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, Metric]:
    """``pixel_auroc``, ``aupro``, ``iou_oracle`` and, given a threshold, ``iou`` over all pixels
    of all images.

    Args:
        maps: residuals, higher = more anomalous, in the frame of the masks.
        masks: ground truth; images without a marked pixel count as normal throughout.
        threshold: residual above which a pixel is called anomalous; never chosen on these masks.
        split: what the images are; goes into each metric.
        n_boot: bootstrap resamples of images; 0 gives no intervals.
        seed: of the resamples, and of the choice of images above ``MAX_PIXELS``.

    Raises:
        InvalidInput: shapes differ, residuals are not finite, or no pixel (or every one) is marked.
    """
    maps, masks = np.asarray(maps, dtype=np.float32), np.asarray(masks, dtype=bool)
    if maps.shape != masks.shape:
        raise InvalidInput(
            f"maps {maps.shape} and masks {masks.shape} must have the same shape [N, H, W]"
        )
    note = ""
    if maps.size > MAX_PIXELS:
        keep = max(2, MAX_PIXELS // maps[0].size)
        chosen = np.sort(np.random.default_rng(seed).permutation(len(maps))[:keep])
        note = f"{keep} of {len(maps)} images, drawn by seed"
        maps, masks = maps[chosen], masks[chosen]
    flat, truth = maps.ravel(), masks.ravel()
    check_ranking(flat, truth.astype(np.int64))
    shares = _region_shares(masks)
    fpr, tpr, at = roc_curve(truth, flat)
    values = {
        "pixel_auroc": float(auc(fpr, tpr)),
        "aupro": _aupro(truth, flat, shares.ravel()),
    }
    notes = {"pixel_auroc": note, "aupro": joined(note, f"up to fpr {AUPRO_MAX_FPR}, normalised")}
    # scikit-learn counts the threshold itself as found; here only what is above it is
    best = float(np.nextafter(at[np.argmax(tpr - fpr)], np.float32(-np.inf), dtype=np.float32))
    found = {"iou_oracle": maps > best}
    said = f"at residual {best:.4g}, chosen on these masks by the largest TPR - FPR: optimistic"
    notes["iou_oracle"] = joined(note, said)
    if threshold is not None:
        found["iou"] = maps > threshold
        notes["iou"] = joined(note, f"at residual {threshold:.4g}, set on normal data")
    for name, marked in found.items():
        values[name] = float(jaccard_score(truth, marked.ravel(), zero_division=0.0))
    draws = _resampled(maps, masks, shares, tuple(found.values()), n_boot=n_boot, seed=seed)
    return {
        name: with_interval(
            value,
            draws[:, i],
            n=len(maps),
            split=split,
            note=notes[name],
            how="bootstrap of images",
        )
        for i, (name, value) in enumerate(values.items())
    }


def _region_shares(masks: np.ndarray) -> Float64[np.ndarray, "N H W"]:
    """1 / size of its region for each marked pixel, 1 elsewhere: as weights, they make the
    true-positive rate of the pixels the mean overlap of the regions.
    """
    shares = np.ones(masks.shape)
    for mask, share in zip(masks, shares, strict=True):
        regions, _ = label_regions(mask, structure=np.ones((3, 3)))
        share[mask] = 1.0 / np.bincount(regions.ravel())[regions[mask]]
    return shares


def _aupro(truth: np.ndarray, residuals: np.ndarray, shares: np.ndarray) -> float:
    fpr, pro, _ = roc_curve(truth, residuals, sample_weight=shares)
    return _area_up_to(fpr, pro)


def _area_up_to(fpr: np.ndarray, tpr: np.ndarray) -> float:
    stop = int(np.searchsorted(fpr, AUPRO_MAX_FPR, side="right"))
    edge = np.interp(AUPRO_MAX_FPR, fpr, tpr)
    area = auc(np.append(fpr[:stop], AUPRO_MAX_FPR), np.append(tpr[:stop], edge))
    return float(area) / AUPRO_MAX_FPR


def _resampled(
    maps: np.ndarray,
    masks: np.ndarray,
    shares: np.ndarray,
    found: tuple[np.ndarray, ...],
    *,
    n_boot: int,
    seed: int,
) -> Float64[np.ndarray, "B M"]:
    """Pixel AUROC, AUPRO and the IoU of each ``found`` for resampled images; the former two from
    histograms of each image's residuals over ``_BINS`` quantiles: pixels share a bin only where
    they nearly share a residual.
    """
    n = len(maps)
    rng = np.random.default_rng(seed)
    sample = rng.choice(maps.ravel(), size=min(maps.size, 500_000), replace=False)
    edges = np.unique(np.quantile(sample, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bins = len(edges) + 1
    # residual counts of each image, highest first: normal pixels, marked ones, those by region
    counts = np.empty((n, 3, bins), dtype=np.float32)
    for i in range(n):
        bin_of = bins - 1 - np.searchsorted(edges, maps[i], side="right")
        counts[i, 0] = np.bincount(bin_of[~masks[i]], minlength=bins)
        counts[i, 1] = np.bincount(bin_of[masks[i]], minlength=bins)
        counts[i, 2] = np.bincount(bin_of[masks[i]], weights=shares[i][masks[i]], minlength=bins)
    has_region = masks.any(axis=(1, 2))
    figures = np.full((n_boot, 2 + len(found)), np.nan)
    strata = [np.flatnonzero(s) for s in (has_region, ~has_region) if s.any()]
    if has_region.sum() < 2:
        return figures
    both = np.stack([(f & masks).sum(axis=(1, 2)) for f in found], axis=1)  # N F
    either = np.stack([(f | masks).sum(axis=(1, 2)) for f in found], axis=1)
    for first in range(0, n_boot, _DRAWS):
        times = np.zeros((min(_DRAWS, n_boot - first), n), dtype=np.float32)
        for row in times:
            for stratum in strata:
                np.add.at(row, stratum[rng.integers(len(stratum), size=len(stratum))], 1)
        sums = (times @ counts.reshape(n, -1)).reshape(-1, 3, bins)
        curves = np.cumsum(sums, axis=2, dtype=np.float64)
        curves = np.pad(curves / curves[:, :, -1:], ((0, 0), (0, 0), (1, 0)))
        for row, (fpr, tpr, pro) in zip(figures[first:], curves, strict=False):
            row[:2] = auc(fpr, tpr), _area_up_to(fpr, pro)
        figures[first : first + _DRAWS, 2:] = (times @ both) / np.maximum(times @ either, 1.0)
    return figures
