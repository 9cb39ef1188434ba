"""Feature vectors: a user's own table or array, and the embeddings of ADBench.

A user's file is an array (``.npy``, or ``.npz`` with ``X`` and maybe ``y``) or a table with named
columns (``.csv``, ``.parquet``). ADBench's files hold what a ResNet-18 made of images (Han et al.,
ADBench: Anomaly Detection Benchmark, NeurIPS 2022), in the split of Livernoche et al., On Diffusion
Modeling for Anomaly Detection, ICLR 2024: the first half of the normals trains, the other half and
all anomalies test.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from jaxtyping import Float64
from pydantic import Field, model_validator

from service.contract.errors import InvalidInput
from training.data.base import Source, VectorData
from training.data.download import data_folder, require
from training.data.frames import read_frame
from training.data.grouping import split_groups
from training.data.options import Options, Share

LABEL_COLUMNS = ("y", "label", "class", "target")
"""Columns of a table that are taken for labels unless the options name another one."""
_TWO_KINDS = {0: "normal", 1: "anomalous"}
_LEAST_ROWS = 1000
_MOST_ROWS = 50_000
_ADBENCH_LICENCE = "BSD-2-Clause (ADBench); that of the images behind each set holds as well"
_ADBENCH_SOURCE = (
    "Han et al., ADBench: Anomaly Detection Benchmark, NeurIPS 2022; ResNet-18 embeddings of images"
)


class VectorsOptions(Options):
    """Where the vectors are, and which of them are normal."""

    path: Path = Field(description="npz, npy, csv or parquet; relative to the data folder, or here")
    label: str | None = Field(
        default=None, description="column of a table; default y, label, class or target, if any"
    )
    normal: tuple[int | str, ...] = Field(
        default=(0,), min_length=1, description="labels of normal vectors; all others are anomalous"
    )
    validation_share: Share = 0.1
    calibration_share: Share = 0.2
    test_share: Share = 0.2
    """Of the normal vectors; all anomalous ones are in the test split."""
    licence: str = "the user's own"

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.validation_share + self.calibration_share + self.test_share >= 1:
            raise ValueError("the shares must stay below 1 in sum")
        return self


class AdbenchOptions(Options):
    """Which of ADBench's sets, and how it is split."""

    set: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="CIFAR10_4, MVTec-AD_bottle, ..."
    )
    protocol: Literal["dedup", "duplicated"] = Field(
        "dedup",
        description="duplicated: as published, sets below 1,000 rows are first resampled with "
        "replacement to 1,000, so that copies of one item train and test",
    )
    validation_share: Share = 0.1
    calibration_share: Share = 0.2
    """Of the training half."""
    fit_all: bool = Field(
        False,
        description="the whole training half fits the detector, as published; nothing is left to "
        "calibrate with, so that such a model is measured and never published",
    )

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.validation_share + self.calibration_share >= 1:
            raise ValueError("the shares must stay below 1 in sum")
        return self


@dataclass(frozen=True)
class _Table:
    """What a file holds."""

    x: Float64[np.ndarray, "N D"]
    labels: np.ndarray | None
    """Whatever they are: numbers or text."""
    names: tuple[str, ...] = ()


def load_vectors(options: VectorsOptions, data_dir: Path | None, seed: int) -> VectorData:
    """The splits of a user's file, drawn at random by ``seed``; copies are kept on one side.

    Raises:
        InvalidInput: no such file, one that cannot be read or holds anything but finite numbers, or
            too few normal vectors for four splits.
    """
    path = _find(options.path, data_dir)
    table = _read(path, options.label)
    kinds, classes, class_names = _classes(table.labels, len(table.x), options.normal)
    normal = np.flatnonzero(kinds == 0)
    held_out = (options.validation_share, options.calibration_share, options.test_share)
    # copies of one vector stay on one side
    groups = np.unique(table.x[normal], axis=0, return_inverse=True)[1].reshape(-1)
    parts = split_groups(groups, (1 - sum(held_out), *held_out), seed)
    if min(map(len, parts)) == 0:
        raise InvalidInput(
            f"{path}: {len(normal)} normal vectors (label {_listed(options.normal)}), "
            f"{len(np.unique(groups))} of them different, are too few for training, validation, "
            "calibration and test"
        )
    train, validation, calibration, held = (normal[part] for part in parts)
    test = np.concatenate([held, np.flatnonzero(kinds == 1)])
    return VectorData(
        source=Source(
            name=path.stem,
            licence=options.licence,
            source=f"file {path.name}",
            protocol=f"{len(normal)} normal vectors split at random, equal ones together (seed "
            f"{seed}): {len(train)} train, {len(validation)} validation, {len(calibration)} "
            f"calibration, {len(held)} test with {int((kinds == 1).sum())} anomalous ones",
            class_names=class_names,
        ),
        names=table.names,
        train=table.x[train],
        validation=table.x[validation],
        calibration=table.x[calibration],
        test=table.x[test],
        test_labels=kinds[test] if table.labels is not None else np.empty(0, dtype=np.int64),
        test_classes=classes[test],
    )


def load_adbench(options: AdbenchOptions, data_dir: Path | None, seed: int) -> VectorData:
    """The splits of one of ADBench's sets; labels in its files are 0 normal, 1 anomalous.

    Raises:
        InvalidInput: the file is missing or not one of ADBench's.
    """
    how = "its files are in the folder adbench/datasets/CV_by_ResNet18 of the project's repository"
    path = require("adbench", [f"{options.set}.npz"], data_dir, how)
    table = _read(path, None)
    if table.labels is None or not np.isin(table.labels, (0, 1)).all():
        raise InvalidInput(f"{path}: not a file of ADBench (y of 0 and 1 is missing)")
    x, y, drawn = table.x, table.labels.astype(np.int64), ""
    if options.protocol == "duplicated":
        x, y, drawn = _resampled(x, y, seed)
    normal = np.flatnonzero(y == 0)
    half = normal[: round(0.5 * len(normal))]
    test = np.concatenate([normal[len(half) :], np.flatnonzero(y == 1)])
    if options.fit_all:
        parts = [half[:0], half[:0], half]
        split = f"all {len(half)} train"
    else:
        shares = (options.calibration_share, options.validation_share)
        sizes = [round(share * len(half)) for share in shares]
        parts = np.split(np.random.default_rng(seed).permutation(half), np.cumsum(sizes))
        split = f"at random (seed {seed}) {len(parts[2])} train, {sizes[1]} validation, "
        split += f"{sizes[0]} calibration"
    calibration, validation, train = (np.sort(part) for part in parts)
    return VectorData(
        source=Source(
            name=f"adbench {options.set}",
            licence=_ADBENCH_LICENCE,
            source=_ADBENCH_SOURCE,
            protocol=f"{drawn}first half of the normal vectors in stored order ({split}); test are "
            f"the other half and all {int((y == 1).sum())} anomalous ones",
            class_names=_TWO_KINDS,
        ),
        names=(),
        train=x[train],
        validation=x[validation],
        calibration=x[calibration],
        test=x[test],
        test_labels=y[test],
        test_classes=y[test],
    )


def _resampled(
    x: Float64[np.ndarray, "N D"], y: np.ndarray, seed: int
) -> tuple[Float64[np.ndarray, "M D"], np.ndarray, str]:
    """As the published generator does: small sets are blown up, large ones thinned out."""
    n = len(x)
    random = np.random.RandomState(seed)  # the generator that the published code draws from
    if n < _LEAST_ROWS:
        rows = random.choice(n, _LEAST_ROWS, replace=True)
        note = (
            f"{n} rows resampled with replacement to {_LEAST_ROWS}, so that copies of one item are "
            "in several splits and a memorising method looks better than it is; "
        )
    elif n > _MOST_ROWS:
        rows = random.choice(n, _MOST_ROWS, replace=False)
        note = f"{_MOST_ROWS} of {n} rows drawn; "
    else:
        return x, y, ""
    return x[rows], y[rows], note


def _find(path: Path, data_dir: Path | None) -> Path:
    folder = data_folder(data_dir)
    places = [folder / path, path] if folder else [path]
    for place in places:
        if place.is_file():
            return place
    raise InvalidInput(f"no file {' or '.join(map(str, places))}; option path names the vectors")


def _read(path: Path, label: str | None) -> _Table:
    """The vectors of a file as float64, every number finite."""
    try:
        match path.suffix.lower():
            case ".npz":
                table = _of_npz(path)
            case ".npy":
                table = _of_npy(path)
            case ".csv" | ".parquet":
                table = _of_frame(path, label)
            case _:
                raise InvalidInput(f"{path}: must end in .npz, .npy, .csv or .parquet")
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InvalidInput(f"{path}: cannot be read ({error})") from error
    if table.x.ndim != 2 or 0 in table.x.shape or table.x.dtype.kind not in "fiub":
        raise InvalidInput(f"{path}: expected numbers of shape [vectors, features]")
    x = table.x.astype(np.float64)
    broken = np.argwhere(~np.isfinite(x))
    if len(broken):
        row, column = broken[0]
        where = table.names[column] if table.names else column
        raise InvalidInput(f"{path}: {len(broken)} missing values, the first in row {row}, {where}")
    if table.labels is not None:
        _check_labels(path, table.labels)
    return _Table(x, table.labels, table.names)


def _check_labels(path: Path, labels: np.ndarray) -> None:
    """An item without a label is neither normal nor anomalous: it would be a class of its own."""
    missing = pd.isna(labels) | (np.char.strip(labels.astype(str)) == "")
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        raise InvalidInput(f"{path}: {int(missing.sum())} missing labels, the first in row {row}")


def _of_npy(path: Path) -> _Table:
    found = np.load(path, allow_pickle=False)
    if not isinstance(found, np.ndarray):
        raise InvalidInput(f"{path}: holds several arrays; call it .npz")
    return _Table(found, None)


def _of_npz(path: Path) -> _Table:
    arrays = np.load(path, allow_pickle=False)
    if isinstance(arrays, np.ndarray):
        raise InvalidInput(f"{path}: holds one array; call it .npy")
    with arrays:
        if "X" not in arrays:
            raise InvalidInput(f"{path}: no array X; there are {', '.join(arrays) or 'none'}")
        x, labels = arrays["X"], arrays.get("y")
    if labels is not None and labels.shape != x.shape[:1]:
        raise InvalidInput(f"{path}: y has the shape {labels.shape}, X {x.shape}")
    return _Table(x, labels)


def _of_frame(path: Path, label: str | None) -> _Table:
    frame = read_frame(path)
    found = [c for c in frame.columns if c.lower() in LABEL_COLUMNS]
    if label is None and len(found) > 1:
        raise InvalidInput(
            f"{path}: columns {', '.join(found)} may all be labels; option label names the one "
            "that is"
        )
    if label is None and found:
        label = found[0]
    if label is not None and label not in frame.columns:
        raise InvalidInput(f"{path}: no column {label!r}; there are {', '.join(frame.columns)}")
    features = frame if label is None else frame.drop(columns=label)
    text = [c for c in features.columns if not pd.api.types.is_numeric_dtype(features[c])]
    if text:
        raise InvalidInput(f"{path}: columns that are no numbers: {', '.join(text)}")
    labels = None if label is None else frame[label].to_numpy()
    values = features.to_numpy(np.float64, na_value=np.nan)
    return _Table(values, labels, tuple(features.columns))


def _classes(
    labels: np.ndarray | None, n: int, normal: Sequence[int | str]
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """0 or 1 for each vector, the number of its class, and what the classes are called."""
    if labels is None:
        return np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), dict(_TWO_KINDS)
    if labels.dtype.kind == "b":
        labels = labels.astype(np.int64)
    written, place = np.unique(labels.astype(str), return_inverse=True)
    called = [_plain(text) for text in written]
    names = sorted(set(called))
    classes = np.array([names.index(name) for name in called], dtype=np.int64)[place]
    wanted = {_plain(str(value)) for value in normal}
    is_normal = np.array([name in wanted for name in names])
    return np.where(is_normal[classes], 0, 1).astype(np.int64), classes, dict(enumerate(names))


def _plain(value: str) -> str:
    """A label as people write it: 3, not 3.0, and no space around it."""
    return str(value).strip().removesuffix(".0")


def _listed(values: Sequence[int | str]) -> str:
    return ", ".join(map(str, values))
