"""Conformal calibration: from a raw score to a p-value, a score in [0, 1] and a decision.

Scores of held-out normal items, exchangeable with the normal items to come, give
``p = (1 + #{calibration >= s}) / (n + 1)``. Flagging p <= fpr then flags a normal item with
probability at most fpr, whatever the detector. Source: Vovk, Gammerman & Shafer, Algorithmic
Learning in a Random World, 2005; Laxhammar & Falkman 2010 for anomaly detection.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from jaxtyping import Float64

from service.contract.errors import ArtifactCorrupt, FieldError, InvalidInput

Decision = Literal["normal", "review", "anomalous", "not_scorable"]


@dataclass(frozen=True)
class Calibration:
    """Sorted raw scores of held-out normal items: float64 [n], ascending."""

    scores: Float64[np.ndarray, " n"]

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or len(self.scores) == 0:
            raise ArtifactCorrupt("calibration scores must be a non-empty vector")
        if not np.isfinite(self.scores).all() or (np.diff(self.scores) < 0).any():
            raise ArtifactCorrupt("calibration scores must be finite and ascending")

    @classmethod
    def fit(cls, scores: np.ndarray) -> Self:
        """The calibration of raw scores of normal items that no part of the detector has seen.

        Raises:
            ArtifactCorrupt: no scores, or NaN or infinity among them.
        """
        return cls(np.sort(np.asarray(scores, dtype=np.float64).ravel()))

    @property
    def n(self) -> int:
        return len(self.scores)

    @property
    def finest_fpr(self) -> float:
        """The smallest false-positive rate that n scores can promise, 1 / (n + 1)."""
        return 1.0 / (self.n + 1)

    def p_value(self, raw: np.ndarray) -> Float64[np.ndarray, " N"]:
        """Share of normal items, this one counted among them, that score at least ``raw``."""
        below = np.searchsorted(self.scores, np.asarray(raw, dtype=np.float64), side="left")
        return np.asarray((1 + self.n - below) / (self.n + 1), dtype=np.float64)

    def check_fpr(self, fpr: float) -> None:
        """Nothing, where n scores can promise ``fpr``.

        Raises:
            InvalidInput: ``fpr`` is not in (0, 1) or finer than 1 / (n + 1).
        """
        if not 0.0 < fpr < 1.0:
            raise InvalidInput(
                f"fpr must lie between 0 and 1, both excluded; got {fpr}",
                (FieldError("/fpr", "must be > 0 and < 1"),),
            )
        if fpr < self.finest_fpr:
            raise InvalidInput(
                f"fpr {fpr} is finer than {self.n} calibration scores can promise; "
                f"the finest is {self.finest_fpr!r}",
                (FieldError("/fpr", f"must be at least {self.finest_fpr!r}"),),
            )

    def threshold(self, fpr: float) -> float:
        """The raw score s such that raw > s exactly when p_value(raw) <= fpr.

        Raises:
            InvalidInput: see ``check_fpr``.
        """
        self.check_fpr(fpr)
        allowed = int(fpr * (self.n + 1)) - 1  # scores that may be >= raw, but for rounding
        while (allowed + 2) / (self.n + 1) <= fpr:
            allowed += 1
        while (allowed + 1) / (self.n + 1) > fpr:
            allowed -= 1
        return float(self.scores[self.n - 1 - allowed])

    def decide(self, p_values: np.ndarray, fpr: float, review_fpr: float) -> list[Decision]:
        """``anomalous`` for p <= fpr, ``review`` up to ``review_fpr``, else ``normal``."""
        return [
            "anomalous" if p <= fpr else "review" if p <= review_fpr else "normal" for p in p_values
        ]
