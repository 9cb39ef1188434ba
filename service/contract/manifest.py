"""What an artifact says of itself: ``manifest.json`` as frozen, strict pydantic models."""

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

FORMAT: Final = 1

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
ModelName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def is_model_name(text: str) -> bool:
    """True when ``text`` can name a model: lower case letters, digits, dot, dash, underscore."""
    return re.fullmatch(NAME_PATTERN, text) is not None


class Frozen(BaseModel):
    """Base of everything in a manifest: immutable, no unknown members, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageInput(Frozen):
    """How an image becomes a model input; see ``preprocess.prepare_image`` for the steps.

    ``height`` and ``width`` are the size after resizing; ``pad`` zero pixels are then added on each
    side, so that a model input has ``height + 2 * pad`` rows. ``contrast`` works on one image alone
    and never on a batch: ``none``; ``minmax`` per channel to [0, 1], a constant channel gives 0;
    ``gcn`` subtracts the image's mean and divides by its mean absolute deviation, a constant image
    gives 0. Then ``(x - mean) / std`` per channel.
    """

    kind: Literal["image"] = "image"
    height: int = Field(ge=4, le=2048)
    width: int = Field(ge=4, le=2048)
    channels: Literal[1, 3]
    resize: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear"
    pad: int = Field(default=0, ge=0, le=64)
    contrast: Literal["none", "minmax", "gcn"] = "none"
    mean: tuple[float, ...] = Field(description="one a channel")
    std: tuple[float, ...] = Field(description="one a channel, each > 0")

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> Self:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} numbers, one per channel")
        if any(s <= 0 for s in self.std):
            raise ValueError("std must be positive")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a model input."""
        return (self.channels, self.height + 2 * self.pad, self.width + 2 * self.pad)


class Column(Frozen):
    """One sensor: name, unit, scaler and the range outside which a reading is not believed."""

    name: str = Field(min_length=1, max_length=128)
    unit: str = Field(
        max_length=32, description="physical unit, or 'standardised', or '' if unknown"
    )
    mean: float = Field(description="of the scaler: (reading - mean) / std is what is scored")
    std: float = Field(gt=0, description="of the scaler")
    low: float = Field(description="a window with a reading below it is not scorable")
    high: float = Field(description="a window with a reading above it is not scorable")
    must_vary: bool = Field(
        default=False, description="a window in which this sensor is constant is not scorable"
    )


class SeriesInput(Frozen):
    """How rows of sensor readings become windows; see ``preprocess.prepare_series``.

    ``smoothing`` is the length of a centred moving average in rows (1 = none), so that
    ``(smoothing - 1) / 2`` rows are consumed at either end.
    """

    kind: Literal["series"] = "series"
    columns: tuple[Column, ...] = Field(min_length=1, description="in the order of the model")
    period_s: float | None = Field(gt=0, description="sampling period; None when unknown")
    smoothing: int = Field(default=1, ge=1, le=1001, description="rows; odd")
    window: int = Field(ge=2, le=4096, description="rows of a window")
    stride: int = Field(default=1, ge=1, description="rows from one window to the next, by default")
    max_gap_periods: float = Field(
        default=1.5, gt=1, description="two rows further apart than this many periods are a gap"
    )

    @model_validator(mode="after")
    def _odd_smoothing_and_unique_names(self) -> Self:
        if self.smoothing % 2 == 0:
            raise ValueError("smoothing must be odd: it is centred on a row")
        names = [c.name for c in self.columns]
        if len(set(names)) != len(names):
            raise ValueError("column names must be unique")
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """(L, D) of a model input."""
        return (self.window, len(self.columns))

    @property
    def min_rows(self) -> int:
        """The rows needed for one window."""
        return self.window + self.smoothing - 1


class VectorInput(Frozen):
    """How feature vectors become model inputs: ``(value - mean) / std`` per feature, limited to
    ``clip`` on either side, so that one absurd value cannot overflow what follows.
    """

    kind: Literal["vectors"] = "vectors"
    features: int = Field(ge=1, le=16384, description="numbers in a vector")
    names: tuple[str, ...] = Field(default=(), description="of the features; empty: their numbers")
    mean: tuple[float, ...] = Field(description="of the scaler, one a feature")
    std: tuple[float, ...] = Field(description="of the scaler, one a feature, each > 0")
    clip: float = Field(default=10.0, gt=0, description="largest distance from 0 after scaling")

    @model_validator(mode="after")
    def _one_number_per_feature(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std), ("names", self.names)):
            if len(values) != self.features and (values or name != "names"):
                raise ValueError(f"{name} has {len(values)} members, there are {self.features}")
        if any(s <= 0 for s in self.std):
            raise ValueError("std must be positive")
        if len(set(self.names)) != len(self.names):
            raise ValueError("feature names must be unique")
        return self

    @property
    def shape(self) -> tuple[int]:
        """(D,) of a model input."""
        return (self.features,)


Input = ImageInput | SeriesInput | VectorInput
Task = Literal["image", "timeseries", "vectors"]
_TASKS: Final[dict[str, Task]] = {
    "image": "image",
    "series": "timeseries",
    "vectors": "vectors",
}


class CalibrationInfo(Frozen):
    """The calibration in numbers; the sorted scores themselves are in ``calibration.npz``."""

    n: int = Field(ge=1, description="held-out normal items")
    fpr: float = Field(gt=0, lt=1, description="the promised false-positive rate by default")
    threshold: float = Field(description="raw score above which an item is anomalous at fpr")
    median: float = Field(description="of the raw scores")
    mad: float = Field(ge=0, description="their median distance from the median")
    pixel_threshold: float = Field(ge=0, description="residual above which a pixel is in a region")
    map_scale: float = Field(gt=0, description="residual that is drawn as white")


class Metric(Frozen):
    """One measured figure: what, on which split, by which protocol."""

    value: float
    low: float | None = Field(default=None, description="lower end of the interval")
    high: float | None = Field(default=None, description="upper end of the interval")
    level: float | None = Field(default=None, description="confidence of [low, high]")
    n: int = Field(ge=0, description="items it was measured on")
    split: str = Field(description="which items those are")
    note: str = Field(default="", description="what a reader must know of it")


class Provenance(Frozen):
    """Where the artifact comes from."""

    created_utc: str = Field(description="when it was published")
    commit: str = Field(description="of the code that published it")
    config_digest: Sha256 = Field(description="sha256 of the training configuration")
    seed: int = Field(description="of splits, initial weights and order of batches")
    data: str = Field(description="name of the data")
    data_fingerprint: Sha256 = Field(description="sha256 of the items and their splits")
    data_licence: str
    data_source: str = Field(description="who made the data, and where they are")
    protocol: str = Field(description="what is normal, and how the data were split")
    simulated: bool = Field(default=False, description="no measurements, but a simulator's output")
    tools: dict[str, str] = Field(description="{package: version} at publishing")


class GoldenInfo(Frozen):
    """How far the self-test at load may deviate from what was recorded at publishing."""

    n: int = Field(ge=1, description="examples in golden.npz")
    score_tolerance: float = Field(
        gt=0, description="in robust standard deviations (1.4826 x MAD) of the calibration scores"
    )
    map_tolerance: float = Field(gt=0, description="relative to max(map_scale, residual)")


class Manifest(Frozen):
    """The whole of ``manifest.json``."""

    format: Literal[1] = Field(default=FORMAT, description="of this document and of the files")
    name: ModelName = Field(description="that of the folder above")
    version: int = Field(ge=1, description="that of the folder")
    family: str = Field(description="the algorithm: which detector reads files and params")
    title: str = Field(default="", description="one line for people")
    input: Annotated[Input, Field(discriminator="kind")]
    params: dict[str, Any] = Field(description="numbers of the family, which checks them itself")
    calibration: CalibrationInfo
    files: dict[FileName, Sha256] = Field(description="{file: sha256} of all but manifest.json")
    metrics: dict[str, Metric] = Field(description="measured on the test split at publishing")
    provenance: Provenance
    golden: GoldenInfo

    @property
    def task(self) -> Task:
        """The key of ``active.json`` under which this model can be a default."""
        return _TASKS[self.input.kind]

    @property
    def rows_apart(self) -> int:
        """Rows from the first of a window to the first of the next that shares none with it; 1 for
        images and vectors, which have none.
        """
        return self.input.min_rows if isinstance(self.input, SeriesInput) else 1
