"""The rule by which the p-values of one request become decisions."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from service.contract.calibration import Calibration, Decision
from service.scoring import Scorer, Scores

REVIEW_FACTOR = 5.0


@dataclass(frozen=True)
class DecisionRule:
    """``anomalous`` for p <= fpr, which is raw score > threshold; ``review`` up to review_fpr."""

    calibration: Calibration
    fpr: float
    review_fpr: float
    threshold: float

    @classmethod
    def of(cls, scorer: Scorer, fpr: float | None, review_fpr: float | None) -> Self:
        """The rule for a false-positive rate; the artifact's own by default.

        Raises:
            InvalidInput: finer than the calibration set can promise; the message says the finest.
        """
        rate = scorer.manifest.calibration.fpr if fpr is None else fpr
        threshold = scorer.calibration.threshold(rate)
        band = min(REVIEW_FACTOR * rate, 1.0) if review_fpr is None else max(review_fpr, rate)
        return cls(scorer.calibration, rate, band, threshold)

    def decide(self, p_values: np.ndarray) -> list[Decision]:
        """One decision for each p-value."""
        return self.calibration.decide(p_values, self.fpr, self.review_fpr)

    def members(self, scores: Scores, i: int, decision: Decision) -> dict[str, Any]:
        """What an answer says of item ``i``, but its maps."""
        return {
            "score": float(scores.score[i]),
            "p_value": float(scores.p_value[i]),
            "raw_score": float(scores.raw[i]),
            "threshold": self.threshold,
            "fpr": self.fpr,
            "decision": decision,
        }
