"""Queries in and bodies out. Queries are parsed with these models; answers are built as plain
dicts (38,000 windows an answer are nothing unusual) and documented, and tested, with them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MapMode = Literal["none", "png", "heatmap", "float32"]


class Query(BaseModel):
    """What both scoring routes take."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = Field(
        None, description="Name of a model; default: the one active.json names for this route."
    )
    version: int | None = Field(
        None, ge=1, description="Version of the model; default: its active one."
    )
    fpr: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of normal items that may be called anomalous; default: the artifact's. "
        "At least 1 / (n + 1) for n calibration scores.",
    )


class ScoreQuery(Query):
    """Query of POST /score."""

    map: MapMode = Field("png", description="How residual maps are returned.")


class SeriesQuery(Query):
    """Query of POST /score/timeseries."""

    map: Literal["none", "float32"] = Field(
        "none", description="float32: the L x D residual of each window."
    )
    stride: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Rows from one window to the next; default: the artifact's.",
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


class ImageResult(Body):
    """The score of one image."""

    index: int
    score: float = Field(ge=0, le=1, description="1 - p_value.")
    p_value: float = Field(gt=0, le=1, description="Share of normal items scoring at least this.")
    raw_score: float = Field(description="The detector's own score; higher is more anomalous.")
    threshold: float = Field(description="anomalous is raw_score > threshold.")
    fpr: float
    decision: Literal["normal", "review", "anomalous"]
    residual_map: ResidualMap | None
    regions: list[RegionBody] = Field(
        description="At most 32, highest peak first; [] for map=none."
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
    threshold: float
    fpr: float
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


class VersionSummary(Body):
    """One version in a list."""

    version: int
    active: bool
    status: Literal["loading", "ready", "failed", "not_loaded"]
    reason: str | None = Field(description="Why it failed.")


class ModelBody(Body):
    """One model and its versions."""

    name: str
    title: str | None
    family: str | None
    task: Literal["image", "timeseries"] | None
    active_version: int
    default_for: list[Literal["image", "timeseries"]]
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
    task: Literal["image", "timeseries"] | None
    provider: str | None
    sha256: str | None = Field(description="Of manifest.json, which holds those of all files.")
    input: Annotated[dict[str, Any] | None, Field(description="The preprocessing rule.")]
    calibration: Annotated[
        dict[str, Any] | None, Field(description="n, fpr, threshold, finest_fpr, ...")
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
