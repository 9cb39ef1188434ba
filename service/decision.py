"""The rule by which the p-values of one request become decisions.

``fpr`` bounds the share of *normal items* that are called anomalous, one item at a time. ``fdr``
bounds the share of *false alarms among what is called anomalous*, over all items of a request, on
average over requests and calibration sets: Benjamini & Hochberg's step-up rule (1995) rejects the k
smallest of m p-values for the largest k with p_(k) <= fdr k / m.

That rule is proven for p-values that are positively regression dependent (PRDS; Benjamini &
Yekutieli 2001). Conformal p-values sharing one calibration set depend on each other, and are PRDS
where calibration and normal test items are independent draws (Bates, Candès, Lei, Romano & Sesia,
Testing for outliers with conformal p-values, Annals of Statistics 2023, theorem 2). Windows of one
recording that share rows, or photographs of one part, are not independent draws.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from service.contract.calibration import Calibration, Decision
from service.contract.errors import FieldError, InvalidInput
from service.scoring import Scorer, Scores

REVIEW_FACTOR = 5.0


@dataclass(frozen=True)
class DecisionRule:
    """``anomalous`` for p <= fpr, which is raw score > threshold; ``review`` up to review_fpr.

    With an ``fdr`` the rule is open until ``settle`` has seen every p-value of the request.
    """

    calibration: Calibration
    fpr: float
    review_fpr: float
    threshold: float | None
    """None where no item alone could be anomalous: ``fpr`` is finer than 1 / (n + 1)."""
    fdr: float | None = None
    """Still to be settled; None in a rule that can decide."""
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        fpr: float | None,
        review_fpr: float | None,
        fdr: float | None = None,
    ) -> Self:
        """The rule for a false-positive rate, the artifact's own by default, or for an ``fdr``.

        With ``fdr``, ``review`` keeps the meaning that it has without any rate in the query: it is
        what would by itself be flagged or be up for review, and was not unusual enough among so
        many.

        Raises:
            InvalidInput: a rate finer than the calibration set can promise (the message says the
                finest), an ``fdr`` not in (0, 1), or both.
        """
        if fdr is not None and fpr is not None:
            raise InvalidInput(
                "fpr and fdr exclude each other: fpr bounds false alarms among normal items, fdr "
                "those among the items called anomalous",
                (FieldError("/fdr", "not together with fpr"),),
            )
        if fdr is not None and not 0 < fdr < 1:
            raise InvalidInput(
                f"fdr must lie between 0 and 1, both excluded; got {fdr}",
                (FieldError("/fdr", "must be > 0 and < 1"),),
            )
        rate = scorer.manifest.calibration.fpr if fpr is None else fpr
        threshold = scorer.calibration.threshold(rate) if fdr is None else None
        band = min(REVIEW_FACTOR * rate, 1.0) if review_fpr is None else max(review_fpr, rate)
        return cls(scorer.calibration, rate, band, threshold, fdr)

    def settle(self, p_values: np.ndarray) -> Self:
        """The rule for a request with these p-values, those of all its scorable items.

        Its ``fpr`` is then Benjamini and Hochberg's cut-off fdr k / m for the k items rejected (k =
        1 where none is: what one item alone would have needed), so that ``anomalous`` is p <= fpr
        here as well. A rule without ``fdr`` stays as it is.
        """
        if self.fdr is None:
            return self
        cut = self.fdr * max(rejected(p_values, self.fdr), 1) / max(len(p_values), 1)
        finest = self.calibration.finest_fpr
        return replace(
            self,
            fpr=cut,
            review_fpr=max(self.review_fpr, cut),
            threshold=self.calibration.threshold(cut) if cut >= finest else None,
            fdr=None,
            warnings=_warnings(len(p_values), self.fdr, self.calibration),
        )

    def decide(self, p_values: np.ndarray) -> list[Decision]:
        """One decision for each p-value."""
        assert self.fdr is None, "settle the rule first"
        return self.calibration.decide(p_values, self.fpr, self.review_fpr)

    def members(self, scores: Scores, i: int, decision: Decision) -> dict[str, Any]:
        """What an answer says of item ``i``, but its maps."""
        return {
            "score": float(scores.score[i]),
            "p_value": float(scores.p_value[i]),
            "raw_score": float(scores.raw[i]),
            **self.verdict(decision),
        }

    def verdict(self, decision: Decision) -> dict[str, Any]:
        """What an answer says of how an item was decided, and by which limits."""
        return {"threshold": self.threshold, "fpr": self.fpr, "decision": decision}


def decide_afterwards(rule: DecisionRule, results: list[dict[str, Any]]) -> DecisionRule:
    """The rule settled by all ``results`` of a request, in which its decisions are filled in.

    For what is described piece by piece, before the last p-value is known; results without a
    p-value are not scorable and do not count.
    """
    scored = [r for r in results if r["p_value"] is not None]
    p_values = np.array([r["p_value"] for r in scored], dtype=np.float64)
    settled = rule.settle(p_values)
    for result in results:
        result.update(settled.verdict("not_scorable"))
    for result, decision in zip(scored, settled.decide(p_values), strict=True):
        result["decision"] = decision
    return settled


def rejected(p_values: np.ndarray, fdr: float) -> int:
    """How many of the smallest p-values Benjamini and Hochberg's rule rejects."""
    fits = np.flatnonzero(np.sort(p_values) <= _critical(len(p_values), fdr))
    return int(fits[-1]) + 1 if len(fits) else 0


def _critical(m: int, fdr: float) -> np.ndarray:
    """The limit of the k-th smallest of m p-values, for k = 1 .. m."""
    return fdr * np.arange(1, m + 1) / max(m, 1)


def _warnings(m: int, fdr: float, calibration: Calibration) -> tuple[str, ...]:
    """Why few or none could be called anomalous whatever they score: 1 / (n + 1) is the least p."""
    if m == 0:
        return ()
    finest, n = calibration.finest_fpr, calibration.n
    possible = np.flatnonzero(_critical(m, fdr) >= finest)
    least = f"the smallest p-value that {n} calibration scores can give, {finest:.3g},"
    if len(possible) == 0:
        return (
            f"nothing can be anomalous at fdr {fdr:g}: {least} is above it; "
            f"an fdr of at least {finest:.3g} is needed",
        )
    together = int(possible[0]) + 1
    if together == 1:
        return ()
    return (
        f"at fdr {fdr:g} an item among {m} is anomalous only together with others: {least} is "
        f"enough when at least {together} items have it",
    )


def overlap_warnings(rule: DecisionRule, stride: int, min_rows: int) -> tuple[str, ...]:
    """What an ``fdr`` does not promise for windows that share rows."""
    if rule.fdr is None or stride >= min_rows:
        return ()
    return (
        f"windows {stride} rows apart share rows, so that the fdr holds by experience with "
        f"dependent tests, not by proof; a stride of at least {min_rows} shares none",
    )
