"""How well scores rank items, and how often normal ones are flagged, with how sure that is.

Values come from scikit-learn. Intervals of ranking figures are percentile intervals of a bootstrap
stratified by class, as pROC does (Robin et al., BMC Bioinformatics 2011; Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, ch. 13); items that hang together (overlapping windows) are
drawn as one block. Where all resamples give the same figure, as they do where the classes are
perfectly apart, that says nothing of how sure it is: AUROC then gets an exact interval
(``separated``), the other figures none.

Intervals of false-alarm rates lie around the promise, not around what was seen: they hold 99 % of
what an honest promise gives. ``binomial`` takes the threshold's true rate to be the promise;
``beta_binomial`` allows for the finite calibration set as well, whose threshold has a true rate
distributed as Beta(k, n + 1 - k) with k = floor(fpr (n + 1)) (Vovk, Conditional validity of
inductive conformal predictors, ACML 2012).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.stats import betabinom, binom
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from service.contract.errors import FieldError, InvalidInput
from service.contract.manifest import Metric

LEVEL = 0.95
PROMISE_LEVEL = 0.99


def image_metrics(
    scores: Float[np.ndarray, " N"],
    labels: Int64[np.ndarray, " N"],
    *,
    split: str = "test",
    blocks: Int64[np.ndarray, " N"] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    note: str = "",
) -> dict[str, Metric]:
    """``auroc``, ``auprc`` and ``fpr_at_95_tpr`` of images or windows, label 1 = anomalous.

    ``fpr_at_95_tpr`` is the share of normal items at or above the highest score that at least 95 %
    of the anomalous ones reach.

    Args:
        scores: raw scores, higher = more anomalous.
        labels: 0 or 1; both must occur.
        split: what the items are; goes into each metric.
        blocks: items with the same number are resampled together; default each by itself. The
            blocks of the two classes are drawn apart.
        n_boot: bootstrap resamples; 0 gives no intervals.
        seed: of the resamples.
        note: put before the note on the interval.

    Raises:
        InvalidInput: scores are not finite, labels not 0 and 1, or a class is missing.
    """
    scores = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(labels)
    check_ranking(scores, labels)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    values = {
        "auroc": float(roc_auc_score(labels, scores)),
        "auprc": float(average_precision_score(labels, scores)),
        "fpr_at_95_tpr": float(fpr[np.argmax(tpr >= 0.95)]),
    }
    draws = _resampled_figures(scores, labels, blocks, n_boot, seed)
    how = "bootstrap of blocks by class" if blocks is not None else "bootstrap by class"
    found = {
        name: with_interval(value, draws[:, i], n=len(scores), split=split, note=note, how=how)
        for i, (name, value) in enumerate(values.items())
    }
    if not np.isnan(draws).any() and len(draws) and round(values["auroc"], 12) in (0.0, 1.0):
        units = np.arange(len(scores)) if blocks is None else blocks
        pairs = min(len(np.unique(units[labels == c])) for c in (0, 1))
        found["auroc"] = separated(found["auroc"], pairs, note)
    return found


def separated(auroc: Metric, pairs: int, note: str = "") -> Metric:
    """The AUROC of classes that are perfectly apart, with an interval that is honest.

    AUROC is the chance that an anomalous item is above a normal one. Items paired off, each in one
    pair, are independent trials of that, and all of them came out alike: the interval of Clopper &
    Pearson (Biometrika 26, 1934) then ends at (alpha / 2) ** (1 / pairs). It holds whatever the
    distributions are, and is wide, for it uses each item once.

    Args:
        auroc: 1, or 0.
        pairs: items (or blocks) of the rarer class.
        note: put before the note on the interval.
    """
    end = ((1 - LEVEL) / 2) ** (1 / pairs)
    low, high = (end, 1.0) if auroc.value > 0.5 else (0.0, 1 - end)
    how = f"perfectly apart: exact (Clopper-Pearson) on {pairs} independent pairs"
    update = {"low": low, "high": high, "level": LEVEL, "note": joined(note, how)}
    return auroc.model_copy(update=update)


@dataclass(frozen=True)
class FalseAlarms:
    """How often normal items were flagged where a rate of at most ``fpr`` was promised."""

    fpr: float
    rate: float
    n: int
    n_calibration: int
    binomial: tuple[float, float]
    """Holds the rate seen in 99 % of cases when the true rate is ``fpr``."""
    beta_binomial: tuple[float, float]
    """The same when the threshold comes from ``n_calibration`` exchangeable scores."""
    overlap: float = 1.0
    """Items that share rows with each other; the intervals count ``n / overlap``."""

    @property
    def verdict(self) -> Literal["inside", "inside beta-binomial", "above", "below"]:
        """Where the rate lies; the beta-binomial interval is asked when the binomial is left."""
        if self.binomial[0] <= self.rate <= self.binomial[1]:
            return "inside"
        if self.beta_binomial[0] <= self.rate <= self.beta_binomial[1]:
            return "inside beta-binomial"
        return "above" if self.rate > self.fpr else "below"

    def metric(self, split: str) -> Metric:
        """The rate as a manifest's figure; its interval is the binomial one around the promise."""
        low, high = self.beta_binomial
        note = (
            f"interval: binomial {PROMISE_LEVEL:.0%} around the promise {self.fpr:g}; allowing for "
            f"the {self.n_calibration} calibration scores (beta-binomial) {low:.4f} to {high:.4f}"
        )
        if self.overlap > 1:
            note += f"; {self.overlap:g} neighbouring items share rows and count as one"
        return Metric(
            value=self.rate,
            low=self.binomial[0],
            high=self.binomial[1],
            level=PROMISE_LEVEL,
            n=self.n,
            split=split,
            note=note,
        )


def false_alarm_rate(
    p_values: Float64[np.ndarray, " N"],
    fpr: float,
    n_calibration: int,
    *,
    overlap: float = 1.0,
) -> FalseAlarms:
    """The share of normal items with p <= fpr beside what the promise allows.

    Args:
        p_values: of normal items that neither the detector nor the calibration has seen.
        fpr: the promised rate; at least 1 / (n_calibration + 1).
        n_calibration: scores behind the p-values.
        overlap: how many neighbouring items share rows (window / stride); the intervals take so
            many for one. Calibration items share none.

    Raises:
        InvalidInput: no p-values, one outside (0, 1], or an fpr that cannot be promised.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if len(p) == 0 or not ((p > 0) & (p <= 1)).all():
        raise InvalidInput("p_values must be a non-empty vector of numbers in (0, 1]")
    k = int(np.floor(fpr * (n_calibration + 1) + 1e-9))
    if not 0 < fpr < 1 or k < 1:
        raise InvalidInput(
            f"fpr {fpr} cannot be promised by {n_calibration} calibration scores; "
            f"allowed: {1 / (n_calibration + 1):.6g} up to 1",
            (FieldError("/fpr", f"must be at least {1 / (n_calibration + 1):.6g}"),),
        )
    m = max(1, round(len(p) / overlap))
    tails = np.array([(1 - PROMISE_LEVEL) / 2, (1 + PROMISE_LEVEL) / 2])
    low, high = binom.ppf(tails, m, fpr) / m
    above, below = k, n_calibration + 1 - k
    wide_low, wide_high = betabinom.ppf(tails, m, above, below) / m
    return FalseAlarms(
        fpr=fpr,
        rate=float((p <= fpr).mean()),
        n=len(p),
        n_calibration=n_calibration,
        binomial=(float(low), float(high)),
        beta_binomial=(float(wide_low), float(wide_high)),
        overlap=overlap,
    )


def false_alarms(
    p_values: Float64[np.ndarray, " N"],
    fprs: Sequence[float] = (0.01, 0.05),
    *,
    n_calibration: int,
    split: str = "test normals",
) -> dict[str, Metric]:
    """``false_alarm_rate_at_<fpr>`` for each rate that ``n_calibration`` scores can promise."""
    return {
        f"false_alarm_rate_at_{fpr:g}": false_alarm_rate(p_values, fpr, n_calibration).metric(split)
        for fpr in fprs
        if fpr >= 1 / (n_calibration + 1)
    }


def check_ranking(scores: np.ndarray, labels: np.ndarray) -> None:
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InvalidInput(
            f"scores {scores.shape} and labels {labels.shape} must be vectors of one length"
        )
    if not np.isfinite(scores).all():
        raise InvalidInput("scores must be finite; NaN or infinity was found")
    if not np.isin(labels, (0, 1)).all():
        raise InvalidInput("labels must be 0 (normal) or 1 (anomalous)")
    if labels.min(initial=1) == labels.max(initial=0):
        raise InvalidInput("ranking needs normal and anomalous items; one kind is missing")


def with_interval(
    value: float, draws: np.ndarray, *, n: int, split: str, note: str, how: str
) -> Metric:
    if len(draws) == 0 or np.isnan(draws).any():
        reason = "" if len(draws) == 0 else "no interval: too few independent items"
        return Metric(value=value, n=n, split=split, note=joined(note, reason))
    if np.ptp(draws) < 1e-12:
        reason = "no interval: all resamples give the same"
        return Metric(value=value, n=n, split=split, note=joined(note, reason))
    # a percentile interval of a skewed figure can miss the value itself by a hair; never show that
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Metric(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        level=LEVEL,
        n=n,
        split=split,
        note=joined(note, f"{how}, {len(draws)} resamples"),
    )


def joined(*notes: str) -> str:
    return "; ".join(n for n in notes if n)


def _resampled_figures(
    scores: np.ndarray, labels: np.ndarray, blocks: np.ndarray | None, n_boot: int, seed: int
) -> Float64[np.ndarray, "B 3"]:
    """AUROC, average precision and FPR at 95 % TPR of each resample; NaN if a class is one block.

    A resample is a weight per item. On items sorted once, weights give every figure by cumulative
    sums (equal to scikit-learn's with ``sample_weight``), which needs no sort per resample.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(-scores, kind="stable")
    positive = labels[order] == 1
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of equal scores
    blocks = np.arange(len(scores)) if blocks is None else blocks
    strata = []
    for members in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        _, block_of = np.unique(blocks[order][members], return_inverse=True)
        strata.append((members, block_of, int(block_of.max()) + 1))
    figures = np.full((n_boot, 3), np.nan)
    if any(count == 1 for _, _, count in strata):
        return figures
    weight = np.empty(len(scores))
    for b in range(n_boot):
        for members, block_of, count in strata:
            times = np.bincount(rng.integers(count, size=count), minlength=count)
            weight[members] = times[block_of]
        tp = np.cumsum(np.where(positive, weight, 0.0))[last]
        fp = np.cumsum(np.where(positive, 0.0, weight))[last]
        tpr, fpr = tp / tp[-1], fp / fp[-1]
        precision = tp / np.maximum(tp + fp, 1.0)
        figures[b, 0] = np.trapezoid(np.append(0.0, tpr), np.append(0.0, fpr))
        figures[b, 1] = np.sum(np.diff(tpr, prepend=0.0) * precision)
        figures[b, 2] = fpr[np.argmax(tpr >= 0.95)]
    return figures
