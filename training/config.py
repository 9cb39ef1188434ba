"""A training configuration (TOML) and what follows from it: data, input rule, prepared splits."""

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sklearn.preprocessing import StandardScaler

from service.contract.errors import FieldError, InvalidInput
from service.contract.manifest import (
    Column,
    ImageInput,
    Input,
    ModelName,
    SeriesInput,
    Task,
    VectorInput,
)
from service.contract.preprocess import prepare_images, prepare_series, prepare_vectors
from training.data import load
from training.data.base import (
    FOR_ONE_PERCENT,
    MIN_CALIBRATION,
    Data,
    ImageData,
    Recording,
    SeriesData,
    VectorData,
)
from training.data.synthetic import (
    synthetic_anomalies,
    synthetic_series_anomalies,
    synthetic_vector_anomalies,
)
from training.families import FAMILIES
from training.families.base import Family, PreparedData
from training.processes import TrainSettings

IN_SAMPLE = 10
"""Where a loader holds no vectors out, every tenth training one stands in for validation."""


class CalibrationConfig(BaseModel):
    """``[calibration]``: what is promised by default."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    fpr: float = Field(0.01, gt=0, lt=1)
    pixel_quantile: float = Field(
        0.995, gt=0, lt=1, description="of calibration residuals; above it a pixel is in a region"
    )


class TrainConfig(BaseModel):
    """One TOML of ``configs/``: what is trained, on what, how."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    name: ModelName
    title: str = ""
    family: str
    seed: int = Field(0, ge=0)
    data: dict[str, Any]
    """``name`` of a loader and its options."""
    input: dict[str, Any] = {}
    """Members of the input rule that differ from the family's defaults; for images also ``range``:
    ``train`` maps the training images' range after the contrast rule to [0, 1], ``fixed`` takes
    mean and std as given.
    """
    training_stride: int = Field(1, ge=1, description="rows between training windows of a series")
    model: dict[str, Any] = {}
    """Hyperparameters of the family."""
    calibration: CalibrationConfig = CalibrationConfig()
    train: TrainSettings = TrainSettings()
    tune: dict[str, Any] = {}
    """Settings and where to search for them, for the command ``tune`` alone."""
    seen: str = ""
    """What figures of the test split were seen while these settings were found; empty for none.
    The card shows it."""

    @property
    def digest(self) -> str:
        """sha256 of the configuration but for ``train`` and ``tune``; the same settings give the
        same one.
        """
        settings = self.model_dump_json(exclude={"train", "tune"})
        return hashlib.sha256(settings.encode()).hexdigest()


def read_config(path: Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """The configuration of a TOML file, with ``{"model.epochs": 3}`` style overrides.

    Raises:
        InvalidInput: unreadable, not TOML, or a member is unknown or out of range.
    """
    try:
        members = tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error.strerror})") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path}: not TOML ({error})") from error
    for key, value in (overrides or {}).items():
        *tables, last = key.split(".")
        table = members
        for part in tables:
            table = table.setdefault(part, {})
        table[last] = value
    return make_config(members, str(path))


def make_config(members: dict[str, Any], where: str) -> TrainConfig:
    """A checked configuration, hyperparameters of the family included.

    Raises:
        InvalidInput: a member is unknown, missing or out of range; each is named.
    """
    try:
        config = TrainConfig.model_validate(members)
        if config.family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise InvalidInput(f"{where}: family {config.family!r} is unknown; known are {known}")
        FAMILIES[config.family].Config.model_validate(config.model)
    except ValidationError as error:
        wrong = tuple(
            FieldError(".".join(map(str, e["loc"])) or "document", e["msg"]) for e in error.errors()
        )
        listing = "; ".join(f"{w.pointer}: {w.detail}" for w in wrong)
        raise InvalidInput(f"{where}: {listing}", wrong) from error
    return config


def load_data(config: TrainConfig, data_dir: Path | None) -> Data:
    """The data of a configuration, split by its seed."""
    options = {k: v for k, v in config.data.items() if k != "name"}
    if "name" not in config.data:
        raise InvalidInput("[data] needs a name: that of a loader")
    return load(config.data["name"], options, data_dir, config.seed)


def task_of(data: Data) -> Task:
    """What a detector of this kind of data does."""
    if isinstance(data, ImageData):
        return "image"
    return "timeseries" if isinstance(data, SeriesData) else "vectors"


def prepare(config: TrainConfig, data: Data) -> tuple[Input, PreparedData]:
    """The manifest's input rule and the splits a family may see, ready for it.

    Raises:
        InvalidInput: the family does not take this kind of data, or the input rule is wrong.
    """
    family = FAMILIES[config.family]
    task = task_of(data)
    if task not in family.tasks:
        raise InvalidInput(
            f"family {config.family!r} takes {', '.join(sorted(family.tasks))} data, not {task}"
        )
    if isinstance(data, ImageData):
        check_calibration(len(data.calibration), "of the normal images")
    if isinstance(data, VectorData) and len(data.calibration):  # none: meant to be measured only
        check_calibration(len(data.calibration), "of the normal vectors")
    try:
        if isinstance(data, ImageData):
            return _prepare_images(family, config, data)
        if isinstance(data, VectorData):
            return _prepare_vectors(family, config, data)
        return _prepare_series(family, config, data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(f"[input] {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def check_calibration(n: int, items: str) -> None:
    """Nothing, where ``n`` held-out normal items can calibrate.

    Raises:
        InvalidInput: they cannot; ``items`` says in words what they are.
    """
    if n < MIN_CALIBRATION:
        raise InvalidInput(
            f"{n} {items} are left for calibration; at least {MIN_CALIBRATION} are needed, "
            f"{FOR_ONE_PERCENT} for a false-positive rate of 1 %"
        )


def _prepare_images(
    family: Family, config: TrainConfig, data: ImageData
) -> tuple[ImageInput, PreparedData]:
    _, height, width, channels = data.train.shape
    options: dict[str, Any] = {
        "height": height,
        "width": width,
        "channels": channels,
        "mean": 0.0,
        "std": 1.0,
        **family.input_defaults("image"),
        **config.input,
    }
    scale = options.pop("range", "fixed")
    for key in ("mean", "std"):
        value = options[key]
        given = tuple(value) if isinstance(value, list | tuple) else (value,)
        options[key] = given * channels if len(given) == 1 else given
    spec = ImageInput(**options)
    if spec.channels != channels:
        raise InvalidInput(f"[input] channels is {spec.channels}, the data has {channels}")
    if scale == "train":
        x = prepare_images(spec, data.train)
        low, high = float(x.min()), float(x.max())
        ones = (1.0,) * channels
        spec = ImageInput(
            **{**options, "mean": [low * o for o in ones], "std": [(high - low) * o for o in ones]}
        )
    synthetic, _ = synthetic_anomalies(data.validation, config.seed)
    return spec, PreparedData(
        spec,
        prepare_images(spec, data.train),
        prepare_images(spec, data.validation),
        prepare_images(spec, synthetic),
    )


def _prepare_series(
    family: Family, config: TrainConfig, data: SeriesData
) -> tuple[SeriesInput, PreparedData]:
    options = {**family.input_defaults("timeseries"), **config.input}
    free = [
        Column(name=name, unit=unit, mean=0.0, std=1.0, low=-1e30, high=1e30)
        for name, unit in zip(data.columns, data.units, strict=True)
    ]
    draft = SeriesInput(columns=tuple(free), period_s=data.period_s, **options)
    spec = draft.model_copy(update={"columns": _columns(draft, data.train)})
    train = windows_of(spec, data.train, config.training_stride)
    validation = windows_of(spec, data.validation, spec.stride)
    if len(train) == 0 or len(validation) == 0:
        raise InvalidInput(
            f"no scorable window of {spec.min_rows} rows in the "
            f"{'validation' if len(train) else 'training'} split of {data.source.name}"
        )
    synthetic, _ = synthetic_series_anomalies(validation, config.seed)
    return spec, PreparedData(spec, train, validation, synthetic)


def _prepare_vectors(
    family: Family, config: TrainConfig, data: VectorData
) -> tuple[VectorInput, PreparedData]:
    scaler = StandardScaler().fit(data.train)  # a feature that never varies keeps its unit
    options: dict[str, Any] = {
        "features": data.train.shape[1],
        "names": data.names,
        "mean": scaler.mean_.tolist(),
        "std": scaler.scale_.tolist(),
        **family.input_defaults("vectors"),
        **config.input,
    }
    spec = VectorInput(**options)
    if spec.features != data.train.shape[1]:
        raise InvalidInput(
            f"[input] features is {spec.features}, the data has {data.train.shape[1]}"
        )
    train = prepare_vectors(spec, data.train)
    validation = prepare_vectors(spec, data.validation)
    if len(validation) == 0:  # nothing was held out: what looks at it sees training items
        validation = train[::IN_SAMPLE]
    synthetic, _ = synthetic_vector_anomalies(validation, config.seed)
    return spec, PreparedData(spec, train, validation, synthetic)


def _columns(spec: SeriesInput, train: tuple[Recording, ...]) -> tuple[Column, ...]:
    """Scaler, believable range and ``must_vary`` of each sensor, from normal training rows.

    A reading is believed up to three times the training span (at least ten standard deviations)
    beyond the training range: a faulty process shall be scored, a broken transmission shall not.
    """
    rows = np.concatenate([r.rows for r in train])
    mean, std = np.nanmean(rows, axis=0), np.nanstd(rows, axis=0)
    low, high = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
    margin = np.maximum(3 * (high - low), np.maximum(10 * std, 1.0))
    varies = np.ones(rows.shape[1], dtype=bool)
    for recording in train:
        if len(recording.rows) >= spec.min_rows:
            view = np.lib.stride_tricks.sliding_window_view(recording.rows, spec.min_rows, axis=0)
            varies &= (np.ptp(view, axis=2) > 0).all(axis=0)
    return tuple(
        column.model_copy(
            update={
                "mean": float(mean[d]),
                "std": float(std[d]) if std[d] > 1e-12 else 1.0,
                "low": float(low[d] - margin[d]),
                "high": float(high[d] + margin[d]),
                "must_vary": bool(varies[d]),
            }
        )
        for d, column in enumerate(spec.columns)
    )


def windows_of(spec: SeriesInput, recordings: tuple[Recording, ...], stride: int) -> np.ndarray:
    """The scorable windows of all recordings, [W, L, D]."""
    found = []
    for recording in recordings:
        windows = prepare_series(spec, recording.rows, recording.timestamps_s, stride)
        found.append(windows.values[windows.scorable])
    return np.concatenate(found) if found else np.empty((0, *spec.shape), np.float32)
