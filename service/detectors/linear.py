"""Scores by a quadratic form of standardised features: one static graph x -> (score, residual).

Everything is in the graph; ``training.families.linear`` says which forms there are.
"""

from typing import ClassVar, Literal

from pydantic import Field

from service.detectors.base import Params
from service.detectors.graph import GraphDetector

Features = Literal["flat", "mean", "statistics"]
Statistic = Literal["spe", "t2", "combined", "mahalanobis", "mean_square"]


class LinearParams(Params):
    """Numbers that describe the graph; none of them is needed to run it."""

    features: Features
    score: Statistic
    size: int = Field(ge=1)
    """Numbers that the form is of."""
    components: int | None
    """Principal components that are kept; None where the score has none."""
    selection: dict[Statistic, float] = Field(default_factory=dict)
    """AUROC of each score on held-out normals against synthetic anomalies."""


class LinearDetector(GraphDetector):
    """A linear model over an open artifact."""

    Params: ClassVar[type[Params]] = LinearParams
    max_batch = 256
