"""Decisions over a whole request: Benjamini-Hochberg on p-values that share a calibration set."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.calibration import Calibration
from service.contract.errors import InvalidInput
from service.decision import DecisionRule, rejected


@dataclass
class Model:
    """As much of a scorer as a rule looks at."""

    calibration: Calibration

    @property
    def manifest(self) -> Any:
        return SimpleNamespace(calibration=SimpleNamespace(fpr=0.01))


def model(n: int = 199) -> Any:
    return Model(Calibration.fit(np.arange(n) / n))


def settled(p_values: Any, fdr: float, n: int = 199, review: float | None = None) -> DecisionRule:
    return DecisionRule.of(model(n), None, review, fdr).settle(np.asarray(p_values, float))


def anomalous(p_values: Any, fdr: float, n: int = 199) -> list[bool]:
    rule = settled(p_values, fdr, n)
    return [d == "anomalous" for d in rule.decide(np.asarray(p_values, float))]


def by_definition(p_values: list[float], fdr: float) -> list[bool]:
    """Item i is rejected when some k items, it among them, all have p <= fdr k / m."""
    m = len(p_values)
    limits = [
        fdr * k / m
        for k in range(1, m + 1)
        if sum(p <= fdr * k / m for p in p_values) >= k  # the k-th smallest is within its limit
    ]
    return [any(p <= limit for limit in limits) for p in p_values]


ranks = st.lists(st.integers(1, 200), min_size=1, max_size=40)
rates = st.floats(0.001, 0.999)


@given(ranks, rates)
def test_it_rejects_what_benjamini_and_hochberg_define(found: list[int], fdr: float) -> None:
    p = [r / 200 for r in found]
    assert anomalous(p, fdr) == by_definition(p, fdr)


@given(ranks, rates, rates)
def test_a_larger_rate_never_takes_a_rejection_back(found: list[int], a: float, b: float) -> None:
    p = np.array(found) / 200
    strict, lax = anomalous(p, min(a, b)), anomalous(p, max(a, b))
    assert all(y for x, y in zip(strict, lax, strict=True) if x)


@given(ranks, rates, st.randoms(use_true_random=False))
def test_the_order_of_the_items_changes_nothing(found: list[int], fdr: float, random: Any) -> None:
    p = [r / 200 for r in found]
    order = list(range(len(p)))
    random.shuffle(order)
    straight, shuffled = anomalous(p, fdr), anomalous([p[i] for i in order], fdr)
    assert [straight[i] for i in order] == shuffled


@given(ranks, rates)
def test_the_rate_and_threshold_that_are_reported_decide_alike(
    found: list[int], fdr: float
) -> None:
    rule = settled(np.array(found) / 200, fdr)
    assert rule.fdr is None
    # rank r: r - 1 of the 199 calibration scores i / 199 are at least the raw score
    raw = (199 - np.array(found) + 0.5) / 199
    p = rule.calibration.p_value(raw)
    np.testing.assert_allclose(p, np.array(found) / 200)
    flagged = [d == "anomalous" for d in rule.decide(p)]
    assert flagged == (p <= rule.fpr).tolist()
    if rule.threshold is None:
        assert not any(flagged)
    else:
        assert flagged == (raw > rule.threshold).tolist()


def test_one_item_is_held_to_the_rate_itself() -> None:
    rule = settled([0.05], 0.05)
    assert rule.fpr == 0.05
    assert rule.threshold == DecisionRule.of(model(), 0.05, None).threshold
    assert rule.decide(np.array([0.05])) == ["anomalous"]


def test_several_strong_items_carry_a_weaker_one() -> None:
    p = [0.005, 0.005, 0.035, 0.9]
    assert anomalous(p, 0.05) == [True, True, True, False]
    assert anomalous([0.035, 0.9, 0.9, 0.9], 0.05) == [False, False, False, False]
    assert settled(p, 0.05).fpr == pytest.approx(0.05 * 3 / 4)


def test_what_is_unusual_by_itself_but_not_among_so_many_is_up_for_review() -> None:
    p = np.array([0.02, *[0.5] * 19])
    assert settled(p, 0.05).decide(p)[:2] == ["review", "normal"]
    assert settled(p, 0.05, review=0.01).decide(p)[0] == "normal"
    strong = np.array([0.005, 0.3])
    assert settled(strong, 0.8).decide(strong) == ["anomalous", "anomalous"]


def test_without_fdr_a_rule_stays_as_it_is() -> None:
    rule = DecisionRule.of(model(), 0.1, None)
    assert rule.settle(np.array([0.01, 0.2])) is rule
    assert rule.decide(np.array([0.1, 0.11, 0.6])) == ["anomalous", "review", "normal"]


def test_too_few_calibration_scores_are_explained_not_refused() -> None:
    nothing = settled([1 / 20, 1 / 20], 0.01, n=19)
    assert nothing.decide(np.array([1 / 20, 1 / 20])) == ["review", "review"]
    assert nothing.threshold is None
    assert "nothing can be anomalous at fdr 0.01" in nothing.warnings[0]
    assert "at least 0.05" in nothing.warnings[0]

    together = settled([0.005] * 19 + [0.5] * 81, 0.025)
    assert "at least 20 items" in together.warnings[0]
    assert together.threshold is None
    assert sum(anomalous([0.005] * 20 + [0.5] * 80, 0.025)) == 20
    assert settled([0.5, 0.005], 0.05).warnings == ()


def test_no_item_at_all_is_no_problem() -> None:
    rule = settled([], 0.05)
    assert rule.decide(np.array([])) == []
    assert rule.warnings == ()


def test_fpr_and_fdr_together_are_refused() -> None:
    with pytest.raises(InvalidInput, match="exclude each other"):
        DecisionRule.of(model(), 0.01, None, 0.05)
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        DecisionRule.of(model(), None, None, 1.0)


@pytest.mark.parametrize("anomalies", [0, 5, 20])
def test_false_discoveries_stay_below_the_rate_with_one_calibration_set_for_all(
    anomalies: int,
) -> None:
    rng = np.random.default_rng(7)
    fdr, m, runs = 0.2, 40, 1500
    false_share = np.empty(runs)
    found = np.empty(runs)
    for run in range(runs):
        calibration = Calibration.fit(rng.normal(size=200))
        raw = rng.normal(size=m)
        raw[:anomalies] += 3.0
        count = rejected(calibration.p_value(raw), fdr)
        flagged = np.argsort(calibration.p_value(raw), kind="stable")[:count]
        false_share[run] = (flagged >= anomalies).sum() / max(count, 1)
        found[run] = (flagged < anomalies).sum() / max(anomalies, 1)
    error = false_share.std() / np.sqrt(runs)
    normal_share = 1 - anomalies / m
    assert false_share.mean() <= fdr * normal_share + 3 * error
    # nearly all of what is promised is used: the rule is not merely timid
    assert false_share.mean() >= 0.6 * fdr * normal_share - 3 * error
    if anomalies:
        assert found.mean() > 0.5
