import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from training.benchmark.definition import TableConfig
from training.benchmark.summary import Row, beside, gains, rows_of
from training.tables import Table
from training.tables.images import S1

CASES = ("a", "b", "c")
TABLE = TableConfig.model_validate(
    {
        "title": "t",
        "protocol": "p",
        "setting": "whole",
        "data": {"name": "x"},
        "cases": {case: {} for case in CASES},
        "groups": {"first two": ("a", "b")},
        "systems": {
            "s": {"label": "S", "family": "nln", "published": ["A"]},
            "n": {
                "label": "N",
                "family": "nln",
                "readouts": {"nln": {"label": "n"}, "reconstruction": {"label": "r"}},
            },
        },
    }
)


def cell(row: str, case: str, seed: int, value: float) -> dict[str, object]:
    return {"row": row, "case": case, "seed": seed, "metrics": {"auroc": value}}


def the_row(*values: tuple[str, int, float]) -> Row:
    cells = [cell("s", *value) for value in values]
    return next(r for r in rows_of(TABLE, cells, "auroc") if r.key == "s")


def printed(cases: tuple[str, ...], *values: float | None) -> Table:
    return Table(S1, "Table Z", "x", "whole", cases, {"A": values}, ())


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_the_interval_is_student_s_over_the_means_of_seeds(values: list[float]) -> None:
    row = the_row(*((case, seed, v) for seed, v in enumerate(values) for case in CASES))
    low, high = student.interval(
        0.95,
        len(values) - 1,
        np.mean(values),
        np.std(values, ddof=1) / len(values) ** 0.5 or 1e-300,
    )
    assert row.mean == pytest.approx(np.mean(values))
    assert row.interval == pytest.approx((high - low) / 2, abs=1e-9)


def test_seeds_without_all_of_the_row_s_cases_give_no_interval() -> None:
    assert the_row(("a", 0, 0.5), ("b", 0, 0.7), ("a", 1, 0.6)).interval is None
    assert the_row(("a", 0, 0.5), ("a", 1, 0.6)).interval is not None
    assert the_row().mean is None


def test_seeds_that_change_nothing_are_said_to_be_identical() -> None:
    twice = the_row(("a", 0, 0.5), ("a", 1, 0.5), ("b", 0, 0.7), ("b", 1, 0.7))
    assert twice.repeated == 2
    assert the_row(("a", 0, 0.5), ("a", 1, 0.6), ("b", 0, 0.7), ("b", 1, 0.6)).repeated == 0
    assert the_row(("a", 0, 0.5)).repeated == 0
    assert the_row().repeated == 0


def test_ours_and_theirs_are_means_over_the_cases_that_both_have() -> None:
    row = the_row(("a", 0, 0.5), ("b", 0, 0.7))
    (pair,) = beside(TABLE, [row], [printed(("a", "b", "c", "mean"), 0.4, None, 0.9, 0.65)])
    assert pair.cases == ("a",)
    assert (pair.our_mean, pair.their_mean) == (0.5, 0.4)


def test_a_mean_alone_stands_only_beside_a_row_with_every_case() -> None:
    theirs = printed(("mean",), 0.8)
    part = the_row(("a", 0, 0.5), ("b", 0, 0.7))
    assert beside(TABLE, [part], [theirs]) == []
    whole = the_row(("a", 0, 0.5), ("b", 0, 0.7), ("c", 0, 0.9))
    (pair,) = beside(TABLE, [whole], [theirs])
    assert pair.our_mean == pytest.approx(0.7)
    assert pair.their_mean == 0.8


def test_the_mean_of_a_group_stands_beside_a_published_one_of_its_name() -> None:
    theirs = printed(("first two",), 0.55)
    (pair,) = beside(TABLE, [the_row(("a", 0, 0.5), ("b", 0, 0.7))], [theirs])
    assert pair.our_mean == pytest.approx(0.6)
    assert beside(TABLE, [the_row(("a", 0, 0.5))], [theirs]) == []


def test_the_gain_is_that_of_the_means_over_the_cases_both_read_outs_have() -> None:
    found = [
        cell("n/nln", "a", 0, 0.8),
        cell("n/nln", "b", 0, 0.9),
        cell("n/reconstruction", "a", 0, 0.6),
    ]
    assert gains(TABLE, rows_of(TABLE, found, "auroc")) == pytest.approx({"n": 0.25})
