"""What the service answers, as Python has it: dataclasses, and residual maps as numpy arrays."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.client.failures import ServiceProblem

Decision = Literal["normal", "review", "anomalous", "not_scorable"]
Label = Literal["normal", "anomalous"]


@dataclass(frozen=True)
class Answer:
    """What one answer says of the model that scored, and of itself."""

    model: str
    version: int
    family: str
    provider: str
    request_id: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Region:
    """A connected area of the image with high residuals."""

    x: int
    y: int
    width: int
    height: int
    peak: float


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A normal training item near the image, or near its patch that is furthest from them all."""

    distance: float
    row: int
    """Of the model's bank."""
    x: int
    """With y, width and height: the patch, or the whole image."""
    y: int
    width: int
    height: int
    decoded: np.ndarray
    """uint8 [H, W] or [H, W, 3]: the network's memory of the item, not its photograph."""


@dataclass(frozen=True, eq=False)
class ImageScore:
    """The score of one image."""

    file: str
    """The path as it was given, or ``image-3`` for the fourth of those without a name."""
    index: int
    """In ``answer``; with its ``request_id``, what ``feedback`` needs."""
    score: float
    p_value: float
    raw_score: float
    threshold: float | None
    fpr: float
    decision: Decision
    residual_map: np.ndarray | None
    """float32 [H, W] in the frame of the image; with map="float32", or within 1/510 of its highest
    value with map="png".
    """
    heatmap: bytes | None
    """A PNG; with map="heatmap"."""
    regions: tuple[Region, ...]
    evidence: tuple[Neighbour, ...]
    answer: Answer


@dataclass(frozen=True, eq=False)
class FailedFile:
    """An image among several that could not be scored, and why; ``raise failed.problem`` works."""

    file: str
    problem: ServiceProblem


ImageResult = ImageScore | FailedFile


@dataclass(frozen=True, eq=False)
class WindowScore:
    """The score of one window of rows; None where it is not scorable."""

    index: int
    start: int
    end: int
    score: float | None
    p_value: float | None
    raw_score: float | None
    threshold: float | None
    fpr: float
    decision: Decision
    reason: str | None
    contributions: dict[str, float]
    """Share of each column in the residual, the largest first."""
    residual_map: np.ndarray | None
    """float32 [L, D]; with map="float32"."""


@dataclass(frozen=True, eq=False)
class SeriesScores:
    """The scores of all windows of a recording."""

    answer: Answer
    rows: int
    windows: tuple[WindowScore, ...]


@dataclass(frozen=True, eq=False)
class StreamScores(SeriesScores):
    """The scores of the windows that an append completed."""

    stream: str
    rows_seen: int
    replayed: bool
    """The service had applied this append before and answered from memory."""


@dataclass(frozen=True)
class FeatureShare:
    """How much of what makes a vector unusual one feature has."""

    feature: str | int
    """Its name, or its number from 0 where the model has no names."""
    share: float
    """Of 1 for all features together, those that are not named included."""
    value: float


@dataclass(frozen=True)
class VectorScore:
    """The score of one vector."""

    index: int
    score: float
    p_value: float
    raw_score: float
    threshold: float | None
    fpr: float
    decision: Decision
    contributions: tuple[FeatureShare, ...]
    """The largest first, as many as were asked for."""


@dataclass(frozen=True)
class VectorScores:
    """The scores of all vectors of a request, in order."""

    answer: Answer
    vectors: tuple[VectorScore, ...]


@dataclass(frozen=True)
class Feedback:
    """A label that was kept, and what the service had said of the item."""

    request_id: str
    index: int
    label: Label
    comment: str | None
    model: str
    version: int
    raw_score: float
    p_value: float
    decision: Decision
    recorded_at: str


@dataclass(frozen=True)
class Event:
    """A run of consecutive windows that were anomalous or up for review."""

    start: int
    end: int
    windows: int
    peak: float
    decision: Decision


@dataclass(frozen=True, eq=False)
class StreamState:
    """How far a stream is, its last results and its events."""

    stream: str
    model: str
    version: int
    stride: int
    rows_seen: int
    last: tuple[WindowScore, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Model:
    """One model that is served."""

    name: str
    title: str | None
    family: str | None
    task: str | None
    status: str
    active_version: int
    versions: tuple[int, ...]
    default_for: tuple[str, ...]


@dataclass(frozen=True)
class Readiness:
    """Whether every active model is loaded, and if not, why not."""

    ready: bool
    models: tuple[str, ...]
    reasons: tuple[str, ...]
