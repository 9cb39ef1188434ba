"""A new calibration from what a model scored in use, and how sure one can be of it.

``propose`` takes what one model version scored (``observed``), with the labels people gave some of
it, makes the calibration that would replace the one in force, and says what is known of it.

*Which scores.* Not those of items labelled normal: labels are given mostly to items that were
flagged, so that their scores are no sample of anything. Instead all scores of the period but those
of items labelled anomalous, which is label-trimming (Bashari, Sesia & Romano, Robust conformal
outlier detection under contaminated reference data, ICML 2025). An anomaly that nobody labelled
stays in and takes one of the places above the threshold, as long as it scores above it: fewer items
are flagged than could be, not more. One that scores below the threshold, of k such among n,
raises the rate at which normal items are flagged, by a factor of (n + 1) / (n - k + 1) at most.
An item labelled anomalous by mistake lowers the threshold, and so raises that rate too.

*Which items.* Conformal p-values need exchangeable draws. The same image or recording sent twice
counts once. Windows of one recording or stream that share rows are thinned, as they are where an
artifact is calibrated for the first time: in order of their rows, by no score and no label. A label
``anomalous`` takes out all windows that share rows with the one that got it.

*How sure.* With k = floor(fpr (n + 1)) the threshold is the k-th largest of n scores. Its true rate
is distributed as Beta(k, n + 1 - k) (Vovk, Conditional validity of inductive conformal predictors,
ACML 2012). The number of scores above the true quantile is Binomial(n, fpr), which gives the
interval of the threshold without any assumption on the distribution (Conover, Practical
Nonparametric Statistics, 1999, ch. 3.2). Shares seen have the interval of Clopper & Pearson (1934).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.special import bdtr, betaincinv

from service.contract.calibration import Calibration
from service.contract.errors import Conflict, InvalidInput
from service.observed import ANOMALOUS, NORMAL, UNLABELLED, Observed

LEVEL: Final = 0.95
"""Confidence of every interval."""
LEAST_FPR: Final = 1e-9
"""Finer ones need more items than anybody has."""
_FEW_ITEMS = 500
_SHORT_S = 86_400.0


@dataclass(frozen=True)
class Interval:
    """Bounds at ``LEVEL``; None where there is none on that side."""

    low: float | None
    high: float | None

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies between the bounds, both included."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


@dataclass(frozen=True)
class Proposal:
    """A calibration that could replace the one in force, and what is known of it."""

    fpr: float
    calibration: Calibration
    answers: int
    distinct: int
    """Items, each counted once."""
    sample: int
    """Of these, images, and windows that share no rows; all counts below are of the sample."""
    anomalous: int
    """Labelled so, or windows that share rows with one that is; taken out."""
    normal: int
    """Labelled so."""
    began_ns: int
    ended_ns: int
    threshold_now: float | None
    """Raw score above which an item is flagged; None where the calibration in force cannot promise
    this rate.
    """
    threshold: float
    threshold_interval: Interval
    rate: float
    """Expected share of normal items flagged: (1 + scores above the threshold) / (n + 1)."""
    rate_interval: Interval
    flagged_now: int | None
    flagged: int
    unlabelled_flagged: int
    """Above the threshold in force, or the proposed one where that is None."""
    labelled_flagged: int
    false_alarms: int
    """Of those, labelled normal."""
    false_alarm_interval: Interval
    """Of the share of false alarms among labelled items that are flagged."""
    fingerprint: str
    warnings: tuple[str, ...]

    @property
    def n(self) -> int:
        """Scores of the new calibration."""
        return self.calibration.n


def propose(observed: Observed, current: Calibration, fpr: float, rows_apart: int = 1) -> Proposal:
    """What recalibrating on these items would give.

    Args:
        observed: scored by one model version.
        current: the calibration of that version.
        fpr: the share of normal items that may be flagged.
        rows_apart: see ``Observed.independent``; for images it does not matter.

    Raises:
        InvalidInput: ``fpr`` is not in [``LEAST_FPR``, 1).
        Conflict: there are fewer items than the rate needs.
    """
    if not LEAST_FPR <= fpr < 1:
        raise InvalidInput(f"fpr must be at least {LEAST_FPR:g}, and less than 1; got {fpr}")
    once = observed.distinct()
    # a window that shares rows with an anomaly is no normal one, whatever was said of it itself
    touched = once.touching(once.label == ANOMALOUS, rows_apart)
    once = replace(once, label=np.where(touched, np.int8(ANOMALOUS), once.label))
    sample = once.taken(once.independent(rows_apart))
    kept = sample.raw[sample.label != ANOMALOUS]
    check_enough(len(kept), fpr)
    new = Calibration.fit(kept)
    threshold = new.threshold(fpr)
    now = current.threshold(fpr) if fpr >= current.finest_fpr else None
    above = sample.raw > (threshold if now is None else now)
    labelled = sample.label[above & (sample.label != UNLABELLED)]
    false_alarms = int((labelled == NORMAL).sum())
    k = 1 + int((kept > threshold).sum())  # floor(fpr (n + 1)), but for equal scores
    found = Proposal(
        fpr=fpr,
        calibration=new,
        answers=observed.answers,
        distinct=len(once),
        sample=len(sample),
        anomalous=len(sample) - len(kept),
        normal=int((sample.label == NORMAL).sum()),
        began_ns=int(sample.at_ns.min()),
        ended_ns=int(sample.at_ns.max()),
        threshold_now=now,
        threshold=threshold,
        threshold_interval=quantile_interval(new, fpr),
        rate=k / (new.n + 1),
        rate_interval=rate_interval(k, new.n),
        flagged_now=None if now is None else int((sample.raw > now).sum()),
        flagged=int((sample.raw > threshold).sum()),
        unlabelled_flagged=int(above.sum()) - len(labelled),
        labelled_flagged=len(labelled),
        false_alarms=false_alarms,
        false_alarm_interval=share_interval(false_alarms, len(labelled)),
        fingerprint=sample.fingerprint,
        warnings=(),
    )
    return replace(found, warnings=tuple(_warnings(found)))


def needed(fpr: float) -> int:
    """The fewest scores that can promise a rate: 1 / (n + 1) <= fpr."""
    n = max(1, math.ceil(1 / fpr) - 2)
    while 1 / (n + 1) > fpr:
        n += 1
    return n


def check_enough(n: int, fpr: float) -> None:
    """Nothing, where n scores can promise ``fpr``.

    Raises:
        Conflict: they cannot; the message says how many more are needed.
    """
    if n < needed(fpr):
        raise Conflict(
            f"fpr {fpr:g} needs {needed(fpr)} distinct items that are not labelled anomalous (of "
            f"series: windows that share no rows); there are {n}, so {needed(fpr) - n} more are "
            f"needed" + (f"; {n} can promise {1 / (n + 1):.3g}" if n else "")
        )


def quantile_interval(calibration: Calibration, fpr: float) -> Interval:
    """Where the score lies that a share ``fpr`` of all items exceeds, in the long run."""
    n, tail = calibration.n, (1 - LEVEL) / 2
    most = min(n, math.ceil(n * fpr + 12 * math.sqrt(n * fpr) + 40))  # beyond it is no mass
    at_most = bdtr(np.arange(most + 1), n, fpr)  # P(so many or fewer scores exceed it)
    descending = calibration.scores[::-1]
    # the score is below the j-th largest of the sample where at least j of them exceed it
    j_low = int(np.flatnonzero(at_most >= 1 - tail)[0]) + 1
    rare = np.flatnonzero(at_most <= tail)
    j_high = int(rare[-1]) + 1 if len(rare) else 0
    return Interval(
        float(descending[j_low - 1]) if j_low <= n else None,
        float(descending[j_high - 1]) if j_high else None,
    )


def rate_interval(k: int, n: int) -> Interval:
    """Where the rate of false alarms lies with the k-th largest of n scores for a threshold."""
    quantile = _beta(k, n + 1 - k)
    return Interval(quantile((1 - LEVEL) / 2), quantile((1 + LEVEL) / 2))


def share_interval(hits: int, n: int) -> Interval:
    """Clopper and Pearson's interval of a share of which ``hits`` in ``n`` were seen."""
    low = _beta(hits, n - hits + 1)((1 - LEVEL) / 2) if hits else 0.0
    high = _beta(hits + 1, n - hits)((1 + LEVEL) / 2) if hits < n else 1.0
    return Interval(low, high)


def _beta(a: int, b: int) -> Callable[[float], float]:
    """The quantile function of a beta distribution."""
    return lambda p: float(betaincinv(a, b, p))


def _warnings(found: Proposal) -> list[str]:
    told = []
    allowed = found.fpr * found.n
    if found.unlabelled_flagged > allowed / 2:
        told.append(
            f"{found.unlabelled_flagged} flagged items are not labelled, and the new threshold "
            f"leaves about {allowed:.0f} above it: anomalies among them raise it, so that fewer "
            f"are found; label them first"
        )
    if found.n < _FEW_ITEMS:
        told.append(
            f"{found.n} items are few: see how wide the intervals are; {_FEW_ITEMS} or more are "
            f"better"
        )
    if (found.ended_ns - found.began_ns) / 1e9 < _SHORT_S:
        told.append(
            "the items are of less than a day: what changes with the hour, the shift or the "
            "weather is not in them"
        )
    if found.threshold_now is not None and found.threshold_interval.holds(found.threshold_now):
        told.append(
            "the threshold in force lies within the interval of the proposed one: these items "
            "give no reason to recalibrate"
        )
    return told
