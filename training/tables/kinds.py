"""What a published figure and its table are."""

from dataclasses import dataclass
from typing import Literal

Setting = Literal["many-vs-one", "one-vs-rest", "many-vs-many", "whole"]
Metric = Literal["auroc", "pixel_auroc", "reconstruction_gain"]


@dataclass(frozen=True)
class Paper:
    """A source of published figures."""

    key: str
    cite: str
    family: str
    """Our family that implements this paper's own method."""
    tuned_on_test: bool | None
    """Of its own method. None: the paper does not say how it selected."""
    baselines_tuned_on_test: bool | None = None


@dataclass(frozen=True)
class Table:
    """One printed table: a figure of each model (row) on each case (column)."""

    paper: Paper
    label: str
    data: str
    setting: Setting
    cases: tuple[str, ...]
    """What a figure was measured on: a class, category or set, their ``mean`` as printed, or
    ``all`` of the data."""
    rows: dict[str, tuple[float | None, ...]]
    own: tuple[str, ...]
    """Rows of the paper's own method."""
    metric: Metric = "auroc"
    note: str = ""

    @property
    def key(self) -> str:
        """By which a benchmark table names it; with the data, it is one table."""
        return f"{self.paper.key} {self.label}"

    def tuned_on_test(self, row: str) -> bool | None:
        """Whether the settings behind a row were chosen by test labels; None: it is not said."""
        if row in self.own:
            return self.paper.tuned_on_test
        return self.paper.baselines_tuned_on_test


@dataclass(frozen=True)
class Published:
    """One published figure as the card shows it."""

    model: str
    value: float
    case: str
    """What it was measured on: a class or category, their ``mean``, or ``all`` of the data."""
    metric: str
    source: str
    tuned_on_test: bool | None
    same_method: bool
    """The paper's own method, and the family asked for implements it."""
    note: str


def per_model(
    models: tuple[str, ...], *by_case: tuple[float | None, ...]
) -> dict[str, tuple[float | None, ...]]:
    """Rows by model from a table that prints a line per case."""
    return dict(zip(models, zip(*by_case, strict=True), strict=True))


def means(**rows: float) -> dict[str, tuple[float | None, ...]]:
    """Rows of which only the mean over cases is known."""
    return {row: (value,) for row, value in rows.items()}
