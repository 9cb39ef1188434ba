"""Cells as rows: means over seeds and cases, intervals, and published rows over the same cases."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import t as student

from training.benchmark.definition import TableConfig
from training.benchmark.results import Record
from training.tables import Table

LEVEL = 0.95
PARTS = ("reconstruction", "nln")
"""Read-outs whose ratio is the gain of nearest neighbours over reconstruction."""


@dataclass(frozen=True)
class Row:
    """One row of a table: its figure by case and seed."""

    key: str
    label: str
    published: tuple[str, ...]
    values: Mapping[str, Mapping[int, float]]
    """{case: {seed: figure}}, of the cells that were measured."""
    groups: Mapping[str, tuple[str, ...]]

    @cached_property
    def by_case(self) -> dict[str, float]:
        """Mean over seeds of each case that was measured."""
        return {case: float(np.mean(list(seeds.values()))) for case, seeds in self.values.items()}

    @property
    def by_group(self) -> dict[str, float]:
        """Mean of each group of which every case was measured."""
        return {
            name: float(np.mean([self.by_case[c] for c in cases]))
            for name, cases in self.groups.items()
            if set(cases) <= set(self.by_case)
        }

    @property
    def columns(self) -> dict[str, float]:
        return self.by_case | self.by_group

    @property
    def mean(self) -> float | None:
        """Over the cases that were measured."""
        return float(np.mean(list(self.by_case.values()))) if self.by_case else None

    @property
    def repeated(self) -> int:
        """How many seeds gave exactly the same figures, where there are several and all did."""
        counts = {len(seeds) for seeds in self.values.values()}
        alike = all(len(set(seeds.values())) == 1 for seeds in self.values.values())
        return min(counts) if alike and len(counts) == 1 and counts != {1} else 0

    @property
    def interval(self) -> float | None:
        """Half of the 95 % interval of the mean over repetitions with other seeds (Student's t);
        of the seeds that have all of the row's cases, None below two.
        """
        complete = set.intersection(*(set(s) for s in self.values.values())) if self.values else ()
        means = [np.mean([seeds[s] for seeds in self.values.values()]) for s in complete]
        if len(means) < 2:
            return None
        spread = float(np.std(means, ddof=1)) / len(means) ** 0.5
        return float(student.ppf((1 + LEVEL) / 2, len(means) - 1)) * spread


@dataclass(frozen=True)
class Beside:
    """One of ours and a published row, over the same cases."""

    ours: str
    theirs: str
    table: Table
    row: str
    """Of that table."""
    cases: tuple[str, ...]
    our_mean: float
    their_mean: float


def rows_of(table: TableConfig, cells: Iterable[Record], metric: str) -> list[Row]:
    """The rows of a table, in its order, measured or not."""
    values: dict[str, dict[str, dict[int, float]]] = {key: {} for key in table.rows}
    for cell in cells:
        if metric in cell["metrics"]:
            values[cell["row"]].setdefault(cell["case"], {})[cell["seed"]] = cell["metrics"][metric]
    rows = []
    for key, config in table.rows.items():
        ordered = {c: values[key][c] for c in table.cases if c in values[key]}
        rows.append(Row(key, config.label, config.published, ordered, table.groups))
    return rows


def beside(table: TableConfig, rows: Iterable[Row], published: Iterable[Table]) -> list[Beside]:
    """Each row of ours and each published row that it names, over the cases that both have.

    Where the mean over all cases alone was published, only a row with all cases stands beside it.
    In a table without means each case stands beside its own.
    """
    found = []
    for theirs in published:
        if theirs.metric != table.metric:
            continue
        for row in rows:
            for name in row.published:
                model = name.removeprefix(f"{theirs.paper.key} ")
                if model in theirs.rows:
                    found += _beside(table, row, theirs, model)
    return found


def _beside(table: TableConfig, row: Row, theirs: Table, model: str) -> list[Beside]:
    printed = dict(zip(theirs.cases, theirs.rows[model], strict=True))
    shared = {c: v for c, v in printed.items() if c in row.columns and v is not None}
    name = f"{model} ({theirs.key})"
    if not table.mean:
        return [
            Beside(row.label, name, theirs, model, (c,), row.columns[c], v)
            for c, v in shared.items()
        ]
    if shared:
        ours = float(np.mean([row.columns[c] for c in shared]))
        mean = float(np.mean(list(shared.values())))
        return [Beside(row.label, name, theirs, model, tuple(shared), ours, mean)]
    mean_alone = printed.get("mean")
    if mean_alone is None or row.mean is None or set(row.by_case) != set(table.cases):
        return []
    return [Beside(row.label, name, theirs, model, tuple(table.cases), row.mean, mean_alone)]


def gains(table: TableConfig, rows: Iterable[Row]) -> dict[str, float]:
    """{system: 1 - reconstruction / NLN} of the mean AUROC over the cases that both have."""
    by_key = {row.key: row for row in rows}
    found = {}
    for key in table.systems:
        parts = [by_key.get(f"{key}/{part}") for part in PARTS]
        if None in parts:
            continue
        below, above = (part.by_case for part in parts if part is not None)
        shared = set(below) & set(above)
        if shared:
            ratio = sum(below[c] for c in shared) / sum(above[c] for c in shared)
            found[key] = 1 - ratio
    return found
