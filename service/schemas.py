"""Queries in and bodies out. Queries are parsed with these models; answers are built as plain
dicts (38,000 windows an answer are nothing unusual) and documented, and tested, with them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from service.contract.manifest import Task
from service.observed import LabelName
from service.recalibration import LEAST_FPR
from service.served import Version
from service.serving_state import ALIASES

MapMode = Literal["none", "png", "heatmap", "float32"]
THRESHOLD = "anomalous is raw_score > threshold; null with an fdr that no item alone could meet."
RATE = "anomalous is p_value <= fpr; with fdr, the p-value at which this request was cut off."


def asked_version(value: int | str) -> Version:
    """A version as callers write it: a number, or an alias.

    Raises:
        ValueError: it is neither.
    """
    text = str(value)
    for alias in ALIASES:
        if text == alias:
            return alias
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
        raise ValueError(f"must be a version number from 1 on, {' or '.join(ALIASES)}")
    return int(text)


AskedVersion = Annotated[
    int | Literal["stable", "candidate"],
    BeforeValidator(asked_version),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "enum": list(ALIASES)}]}
    ),
]


Source = Annotated[
    str | None,
    Field(
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Where the data come from, a camera or a turbine say: /metrics compares its "
        "scores with the calibration apart from others. It changes no score. Letters, digits, dot, "
        "dash, underscore; the first ANOMALY_SOURCES_MAX of a model version are told apart.",
    ),
]


class Query(BaseModel):
    """What all scoring routes take."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = Field(
        None, description="Name of a model; default: the one active.json names for this route."
    )
    version: AskedVersion | None = Field(
        None,
        description="Version of the model, or the alias stable or candidate; default: its active "
        "one.",
    )
    fpr: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of normal items that may be called anomalous; default: the artifact's. "
        "At least 1 / (n + 1) for n calibration scores.",
    )
    source: Source = None


Fdr = Annotated[
    float | None,
    Field(
        gt=0,
        lt=1,
        description="In place of fpr: the share of false alarms among what this request calls "
        "anomalous, on average over requests (Benjamini-Hochberg over its scorable items).",
    ),
]


class ScoreQuery(Query):
    """Query of POST /score."""

    map: MapMode = Field("png", description="How residual maps are returned.")
    fdr: Fdr = None
    evidence: int | None = Field(
        None,
        ge=1,
        le=16,
        description="How many of the nearest normal training items to show for each image, as the "
        "network remembers them; for families that keep a bank of them.",
    )


class StreamQuery(Query):
    """Query of POST /streams/{id}/rows."""

    map: Literal["none", "float32"] = Field(
        "none", description="float32: the L x D residual of each window."
    )
    stride: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Rows from one window to the next; default: the artifact's.",
    )


class SeriesQuery(StreamQuery):
    """Query of POST /score/timeseries."""

    fdr: Fdr = None


class VectorsQuery(Query):
    """Query of POST /score/vectors."""

    fdr: Fdr = None
    contributions: int = Field(
        10,
        ge=0,
        le=16384,
        description="How many features to name for each vector, those that deviate most first; a "
        "model's features, however many it has, are all named at 16384.",
    )


class Body(BaseModel):
    """Base of answers: no member that is not documented."""

    model_config = ConfigDict(extra="forbid")


class FieldProblem(Body):
    """One wrong place."""

    pointer: str = Field(description="Query parameter, column, or JSON pointer into the body.")
    detail: str


class Problem(Body):
    """RFC 9457 problem details."""

    type: str = Field(examples=["urn:anomaly:problem:invalid-input"])
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[FieldProblem] | None = None
    retry_after_s: int | None = None
    reasons: list[str] | None = Field(None, description="/readyz: what is not ready and why.")
    error: str | None = Field(None, description="/v2: the detail, by the name of that protocol.")
    ready: Literal[False] | None = Field(None, description="/v2: where readiness was asked for.")


class ResidualMap(Body):
    """Residuals, base64. Images: in the frame of the uploaded image. Series: L rows x D columns."""

    encoding: Literal["png", "heatmap", "float32"] = Field(
        description="png: 8-bit grey, pixel / 255 * scale = residual. heatmap: RGB PNG, colours "
        "end at residual = scale. float32: little-endian, row by row."
    )
    width: int
    height: int
    scale: float
    data: str


class RegionBody(Body):
    """A connected area of pixels above the artifact's pixel threshold."""

    x: int
    y: int
    width: int
    height: int
    peak: float


class Place(Body):
    """A part of the uploaded image, in its pixels."""

    x: int
    y: int
    width: int
    height: int


class NeighbourBody(Body):
    """A normal training item near an image, or near its patch that is furthest from all of them."""

    distance: float = Field(ge=0, description="In the latent space of the model.")
    row: int = Field(description="Of the artifact's bank.")
    place: Place = Field(description="What was compared: the image, or the patch of it.")
    decoded: str = Field(
        description="PNG, base64, at most 96 x 96: the item decoded from its latent, which is the "
        "network's memory of it and not the photograph."
    )


class _Scored(Body):
    """An item that could be scored."""

    index: int
    score: float = Field(ge=0, le=1, description="1 - p_value.")
    p_value: float = Field(gt=0, le=1, description="Share of normal items scoring at least this.")
    raw_score: float = Field(description="The detector's own score; higher is more anomalous.")
    threshold: float | None = Field(description=THRESHOLD)
    fpr: float = Field(description=RATE)
    decision: Literal["normal", "review", "anomalous"]


class ImageResult(_Scored):
    """The score of one image."""

    residual_map: ResidualMap | None
    regions: list[RegionBody] = Field(
        description="At most 32, highest peak first; [] for map=none."
    )
    evidence: list[NeighbourBody] | None = Field(
        None, description="Nearest first; only where the query asks for it."
    )


class ItemError(Body):
    """An image among several that could not be scored."""

    index: int
    error: Problem


class ScoreBody(Body):
    """Answer of POST /score."""

    model: str
    version: int
    family: str
    provider: str
    request_id: str
    warnings: list[str] | None = Field(None, description="What fdr could not do; only with fdr.")
    results: list[ImageResult | ItemError]


class Contribution(Body):
    """How much of a window's residual one column has."""

    column: str
    share: float = Field(ge=0, le=1)


class WindowResult(Body):
    """The score of one window; null where it is not scorable."""

    index: int
    start: int = Field(description="First row of the window, counted from 0 in the rows sent.")
    end: int = Field(description="One more than its last row.")
    score: float | None
    p_value: float | None
    raw_score: float | None
    threshold: float | None = Field(description=THRESHOLD)
    fpr: float = Field(description=RATE)
    decision: Literal["normal", "review", "anomalous", "not_scorable"]
    reason: Literal["missing_values", "time_gap", "constant_sensor", "out_of_range"] | None = Field(
        None, description="Why a window is not scorable."
    )
    contributions: list[Contribution] = Field(
        description="Largest first; they sum to 1 (equal shares where all residuals are 0)."
    )
    residual_map: ResidualMap | None


class SeriesBody(Body):
    """Answer of POST /score/timeseries."""

    model: str
    version: int
    family: str
    provider: str
    request_id: str
    rows: int
    windows: int
    warnings: list[str]
    results: list[WindowResult]


class FeatureShare(Body):
    """How much of what makes a vector unusual one feature has."""

    feature: str | int = Field(
        description="Its name; its number, from 0, where the model has no names."
    )
    share: float = Field(ge=0, le=1)
    value: float = Field(description="As it was sent.")


class VectorResult(_Scored):
    """The score of one vector."""

    contributions: list[FeatureShare] = Field(
        description="Largest first, as many as the query asks for; the shares of all features, "
        "named or not, sum to 1 (equal shares where nothing deviates)."
    )


class VectorsBody(Body):
    """Answer of POST /score/vectors."""

    model: str
    version: int
    family: str
    provider: str
    request_id: str
    vectors: int
    warnings: list[str]
    results: list[VectorResult]


class StreamAppended(SeriesBody):
    """Answer of POST /streams/{id}/rows; rows, windows and results are those of this append, and
    ``index``, ``start`` and ``end`` count from the first row of the stream.
    """

    stream: str
    rows_seen: int = Field(description="Rows since the stream began.")
    rows_buffered: int = Field(description="The last of them, which windows to come still need.")


class EventBody(Body):
    """A run of consecutive windows that were anomalous or up for review."""

    start: int = Field(description="First row of its first window.")
    end: int = Field(description="One more than the last row of its last window.")
    windows: int
    peak: float = Field(description="The highest score among them.")
    decision: Literal["review", "anomalous"] = Field(description="anomalous, where any was.")


class StreamBody(Body):
    """Answer of GET /streams/{id}."""

    stream: str
    model: str
    version: int
    stride: int
    timestamps: bool = Field(description="Whether its rows have timestamps.")
    rows_seen: int
    rows_buffered: int
    windows: int
    results: list[WindowResult] = Field(description="The last 20, without residual maps.")
    events: list[EventBody] = Field(description="The last 100, oldest first.")


class VersionSummary(Body):
    """One version in a list."""

    version: int
    active: bool
    aliases: list[Literal["stable", "candidate"]]
    status: Literal["loading", "ready", "failed", "not_loaded"]
    reason: str | None = Field(description="Why it failed.")


class VersionState(VersionSummary):
    """Answer of POST /models/{name}/versions/{version}/load and /unload."""

    name: str


class AliasBody(Body):
    """Body of PUT /models/{name}/aliases/{alias}."""

    version: int = Field(ge=1, strict=True)


class ShadowBody(Body):
    """How a candidate compares with the active version, on a share of real requests."""

    candidate: int
    share: float = Field(description="ANOMALY_SHADOW_SHARE")
    reason: str | None = Field(description="Why the two cannot be compared.")
    scored: int = Field(description="Items that the candidate scored, since the service began.")
    flipped: int = Field(description="Of these, items on which its decision is another.")
    flip_rate: float | None = Field(description="flipped / scored")
    dropped: int = Field(
        description="Items left unscored: the service was busy, or the candidate was removed."
    )
    errors: int = Field(description="Items on which it failed.")


class ModelBody(Body):
    """One model and its versions."""

    name: str
    title: str | None
    family: str | None
    task: Task | None
    active_version: int | None = Field(
        description="null for a model published after start of which no version is loaded."
    )
    aliases: dict[Literal["stable", "candidate"], int]
    shadow: ShadowBody | None = Field(description="Only with a candidate.")
    default_for: list[Task]
    status: Literal["loading", "ready", "failed", "not_loaded"]
    versions: list[VersionSummary]


class ModelsBody(Body):
    """Answer of GET /models."""

    models: list[ModelBody]


class VersionBody(VersionSummary):
    """Answer of GET /models/{name}/versions/{version}; nulls where the manifest is unreadable."""

    name: str
    title: str | None
    family: str | None
    task: Task | None
    provider: str | None
    sha256: str | None = Field(description="Of manifest.json, which holds those of all files.")
    input: Annotated[dict[str, Any] | None, Field(description="The preprocessing rule.")]
    calibration: Annotated[
        dict[str, Any] | None,
        Field(
            description="n, fpr, threshold, finest_fpr, ...; review_fpr is ANOMALY_REVIEW_FPR, "
            "null for 5 x fpr."
        ),
    ]
    metrics: dict[str, Any] | None
    provenance: dict[str, Any] | None
    files: dict[str, str] | None


class LiveBody(Body):
    """Answer of GET /livez."""

    live: Literal[True] = True


class ReadyBody(Body):
    """Answer of GET /readyz."""

    ready: Literal[True] = True
    models: list[str] = Field(description="name/version of each active model.")


class HealthBody(Body):
    """Answer of GET /healthz."""

    status: Literal["ok", "loading", "degraded"]
    live: bool
    ready: bool
    reasons: list[str]


class FeedbackBody(Body):
    """Body of POST /feedback."""

    request_id: str = Field(
        pattern=r"^[\x21-\x7e]{1,128}$", description="Of the request that was answered."
    )
    index: int = Field(0, ge=0, strict=True, description="Of the result in that answer.")
    label: LabelName
    comment: str | None = Field(None, max_length=500)


class FeedbackRecord(Body):
    """A label, and what the service had said of the item."""

    request_id: str
    index: int
    label: LabelName
    comment: str | None
    model: str
    version: int
    raw_score: float
    p_value: float
    decision: Literal["normal", "review", "anomalous"]
    recorded_at: str = Field(description="RFC 3339, UTC.")
    scored_at: str
    start: int | None = Field(description="First row of a window; null for an image or a vector.")
    end: int | None = Field(description="One more than its last row.")
    stream: str | None = Field(description="The stream that the window is of.")


class FeedbackQuery(BaseModel):
    """Query of GET /feedback."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Of this model only.")
    version: int | None = Field(None, ge=1, le=10**9, description="Of this version only.")
    limit: int = Field(1000, ge=1, le=10_000, description="Of one page of JSON.")
    after: int = Field(
        0, ge=0, le=10**15, description="Where a page begins: as the one before says."
    )


class ObservedQuery(BaseModel):
    """Query of GET /feedback/calibration."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str = Field(description="Name of a model.")
    version: AskedVersion | None = Field(None, description="Default: its active one.")
    period_s: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="Only what was scored in the last so many seconds; default: all that is "
        "remembered.",
    )


class ProposalQuery(ObservedQuery):
    """Query of GET /feedback/proposal."""

    fpr: float | None = Field(
        None,
        ge=LEAST_FPR,
        lt=1,
        description="Share of normal items to flag; default: the artifact's.",
    )


class Estimate(Body):
    """A figure and its interval; null where there is none, or no bound on that side."""

    value: float | None
    low: float | None
    high: float | None


class CalibrationInForce(Body):
    """What the sample looks like to the calibration in force."""

    n: int
    threshold: float | None = Field(description="null where it cannot promise this rate.")
    flagged: int | None
    unlabelled_flagged: int
    labelled_flagged: int
    false_alarms: int = Field(description="Of the labelled and flagged, those labelled normal.")
    false_alarm_share: Estimate = Field(description="Of the labelled and flagged.")


class ProposedCalibration(Body):
    """What the proposed one would do."""

    threshold: Estimate = Field(description="Raw score above which an item would be flagged.")
    flagged: int
    false_alarm_rate: Estimate = Field(
        description="Share of normal items that would be flagged, as far as n scores can know."
    )


class ProposalBody(Body):
    """Answer of GET /feedback/proposal."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    model: str
    version: int
    fpr: float
    level: float = Field(description="Confidence of the intervals.")
    from_: str = Field(alias="from", description="When the first item was scored.")
    to: str
    answers: int = Field(description="Requests that the items came in.")
    distinct_items: int = Field(description="What was sent more than once counted once.")
    sample: int = Field(description="Of these, images, vectors, or windows that share no rows.")
    labelled_normal: int = Field(description="Of the sample.")
    labelled_anomalous: int = Field(
        description="Of the sample, with windows that share rows with one labelled so; left out."
    )
    n: int = Field(description="Scores of the proposed calibration.")
    finest_fpr: float = Field(description="The finest rate it could promise.")
    current: CalibrationInForce
    proposed: ProposedCalibration
    warnings: list[str]
