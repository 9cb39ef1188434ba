"""How often the drift alerts fire on items like the calibration's, and which changes they see.

    python benchmarks/drift.py

Raw scores are drawn from a normal distribution, calibrations of the sizes of the shipped models
among them; windows of 1,000 items are looked at every 50 items by the code of the service and the
limits of docker/prometheus/rules. Takes about two minutes on one core.
"""

import math
from collections.abc import Callable

import numpy as np
import report

from service.contract.calibration import Calibration
from service.drift import Reference

WINDOW, STEP, WINDOWS, CALIBRATIONS = 1000, 50, 20, 200
SIZES = (188, 1000, 3600, 9007)
FPR = 0.01
# the same numbers as in docker/prometheus/rules/recording.yml
C_ALPHA, KS_FLOOR = 2.23, 0.1
Z_LIMIT, TOO_MANY, TOO_FEW = 4.6, 2.0, 0.25

Draw = Callable[[np.random.Generator, int], np.ndarray]


def spread(n: int, m: int) -> float:
    """What both statistics are measured in: a calibration of n items and a window of m."""
    return math.sqrt((n + m) / (n * m))


def drifted(reference: Reference, ranks: np.ndarray, worth: float) -> bool:
    """Whether the rule AnomalyScoreDrift would be true, an item counting as ``worth`` of one."""
    limit = max(C_ALPHA * spread(reference.n, worth * len(ranks)), KS_FLOOR)
    return reference.ks(ranks) > limit


def far_from_promise(reference: Reference, ranks: np.ndarray, worth: float) -> bool:
    """Whether the rule AnomalyFlaggedRatio would be true."""
    ratio, promised = reference.flagged_ratio(ranks), reference.promised
    z = 2 * (math.asin(math.sqrt(ratio)) - math.asin(math.sqrt(promised)))
    z /= spread(reference.n, worth * len(ranks))
    return (z > Z_LIMIT and ratio > TOO_MANY * promised) or (
        z < -Z_LIMIT and ratio < TOO_FEW * promised
    )


def shares(n: int, draw: Draw, seed: int, windows: int, worth: float) -> tuple[float, float]:
    """Share of calibrations of n items after which either alert fires within so many windows."""
    rng = np.random.default_rng(seed)
    fired = np.zeros(2)
    for _ in range(CALIBRATIONS):
        calibration = Calibration.fit(rng.normal(size=n))
        reference = Reference.of(calibration, FPR)
        raw = draw(rng, WINDOW * windows)
        ranks = reference.ranks(1 - calibration.p_value(raw))
        ever = [False, False]
        for end in range(WINDOW, len(ranks) + 1, STEP):
            part = ranks[end - WINDOW : end]
            ever[0] = ever[0] or drifted(reference, part, worth)
            ever[1] = ever[1] or far_from_promise(reference, part, worth)
        fired += ever
    return float(fired[0] / CALIBRATIONS), float(fired[1] / CALIBRATIONS)


def alike(rho: float) -> Draw:
    """Normal items, each like the one before: an autoregression of first order."""

    def draw(rng: np.random.Generator, items: int) -> np.ndarray:
        noise = rng.normal(size=items)
        if not rho:
            return noise
        found = np.empty(items)
        last = noise[0]
        for i, step in enumerate(noise * math.sqrt(1 - rho**2)):
            last = found[i] = rho * last + step
        return found

    return draw


def shifted(by: float) -> Draw:
    """Normal items whose scores moved by so many standard deviations."""
    return lambda rng, items: rng.normal(size=items) + by


def mixed(share: float) -> Draw:
    """Normal items, and a share of items that score higher than every one of them."""
    return lambda rng, items: np.where(rng.random(items) < share, 9.0, rng.normal(size=items))


COUNTED = f"the same (0.9), counted as {WINDOW} * (1 - 0.9) / (1 + 0.9) items"
EFFECTIVE = {COUNTED: (1 - 0.9) / (1 + 0.9)}
CASES: tuple[tuple[str, Draw, int], ...] = (
    (f"normal items, {WINDOWS} windows", alike(0.0), WINDOWS),
    (f"each like the one before (0.5), {WINDOWS} windows", alike(0.5), WINDOWS),
    (f"each like the one before (0.9), {WINDOWS} windows", alike(0.9), WINDOWS),
    (COUNTED, alike(0.9), WINDOWS),
    ("scores up by 0.2 deviations", shifted(0.2), 1),
    ("scores up by 0.3 deviations", shifted(0.3), 1),
    ("scores up by 0.5 deviations", shifted(0.5), 1),
    ("scores up by 1 deviation", shifted(1.0), 1),
    ("scores down by 0.5 deviations", shifted(-0.5), 1),
    ("2 % of items anomalous", mixed(0.02), 1),
    ("5 % of items anomalous", mixed(0.05), 1),
    ("15 % of items anomalous", mixed(0.15), 1),
)


def main() -> None:
    rows, values = [], dict[str, dict[str, tuple[float, float]]]()
    for seed, (what, draw, windows) in enumerate(CASES):
        worth = EFFECTIVE.get(what, 1.0)
        found = [shares(n, draw, seed, windows, worth) for n in SIZES]
        rows.append([what, *(f"{ks:.3f} / {flagged:.3f}" for ks, flagged in found)])
        values[what] = {str(n): pair for n, pair in zip(SIZES, found, strict=True)}
        print(rows[-1])
    head = ["live items", *(f"n = {n}" for n in SIZES)]
    body = (
        f"Share of {CALIBRATIONS} calibrations of n items after which AnomalyScoreDrift / "
        f"AnomalyFlaggedRatio become true, for a window of {WINDOW} items looked at every {STEP} "
        f"items and an artifact's rate of {FPR}. Rows with {WINDOWS} windows: ever within them; "
        f"the others: in the first full window. No `for:` is waited for.\n\n"
        + report.table(head, rows)
    )
    report.write("drift", "What the drift alerts see", body, {"shares": values})


if __name__ == "__main__":
    main()
