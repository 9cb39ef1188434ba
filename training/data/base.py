"""What a loader gives: raw items, already split, with where they come from.

Four splits: *train* (fits the detector, is its neighbour bank), *validation* (normal; scales, early
stopping, choice of score variant), *calibration* (normal; the conformal scores, nothing else),
*test* (measured once, never selected on). No item is in two of them, but where a data set is split
as published and that puts copies of one item on both sides (``duplicated`` of ADBench, ``paper`` of
the icing contest); the protocol says so then.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

MIN_CALIBRATION = 10
"""Normal items that calibrate; fewer promise no false-positive rate that is of use."""
FOR_ONE_PERCENT = 99
"""Items with which 1 / (n + 1) is 1 %."""


@dataclass(frozen=True)
class Source:
    """Where data comes from and how it was split; goes into the manifest and the card."""

    name: str
    licence: str
    source: str
    """Citation or address of the project, for people."""
    protocol: str
    """The split in one or two sentences: which items, by what rule, which seed."""
    simulated: bool = False
    class_names: dict[int, str] = field(default_factory=dict)
    """Names of the values of ``test_classes``."""


@dataclass(frozen=True)
class ImageData:
    """Images of one size, uint8 [N, H, W, C], C = 1 or 3."""

    source: Source
    train: UInt8[np.ndarray, "N H W C"]
    validation: UInt8[np.ndarray, "M H W C"]
    calibration: UInt8[np.ndarray, "K H W C"]
    test: UInt8[np.ndarray, "T H W C"]
    test_labels: Int64[np.ndarray, " T"]
    """0 normal, 1 anomalous. Empty when there is no labelled test split."""
    test_classes: Int64[np.ndarray, " T"]
    """The finer class of each test item (digit, defect kind)."""
    test_masks: Bool[np.ndarray, "T H W"] | None = None
    """Ground truth of pixels, where there is one."""

    @property
    def fingerprint(self) -> str:
        """sha256 over the arrays: the same data and split give the same one."""
        return _fingerprint(self.train, self.validation, self.calibration, self.test)


@dataclass(frozen=True)
class Recording:
    """Rows of one uninterrupted recording, in time order."""

    rows: Float64[np.ndarray, "T D"]
    timestamps_s: Float64[np.ndarray, " T"] | None = None
    labels: Int64[np.ndarray, " T"] | None = None
    """0 normal, 1 anomalous, per row; None in splits that hold normal rows only."""
    name: str = ""


@dataclass(frozen=True)
class SeriesData:
    """Recordings of the same sensors."""

    source: Source
    columns: tuple[str, ...]
    units: tuple[str, ...]
    period_s: float | None
    train: tuple[Recording, ...]
    validation: tuple[Recording, ...]
    calibration: tuple[Recording, ...]
    test: tuple[Recording, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 over the rows: the same data and split give the same one."""
        every = self.train + self.validation + self.calibration + self.test
        return _fingerprint(*(r.rows for r in every))


@dataclass(frozen=True)
class VectorData:
    """Feature vectors, float64 [N, D], finite."""

    source: Source
    names: tuple[str, ...]
    """Of the features; empty where they have none."""
    train: Float64[np.ndarray, "N D"]
    validation: Float64[np.ndarray, "M D"]
    calibration: Float64[np.ndarray, "K D"]
    test: Float64[np.ndarray, "T D"]
    test_labels: Int64[np.ndarray, " T"]
    """0 normal, 1 anomalous. Empty when there is no labelled test split."""
    test_classes: Int64[np.ndarray, " T"]
    """The finer class of each test item."""

    @property
    def fingerprint(self) -> str:
        """sha256 over the arrays: the same data and split give the same one."""
        return _fingerprint(self.train, self.validation, self.calibration, self.test)


Data = ImageData | SeriesData | VectorData


def _fingerprint(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
