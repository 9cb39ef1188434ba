"""Splits of recordings in time: neighbouring rows never land in different splits.

The normal rows of all recordings, laid end to end, are divided into a few blocks, and each block in
time order into train, validation, calibration and test. So every split sees every season of the
recording, and a guard band of dropped rows stands wherever one split follows another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import Field, model_validator

from service.contract.errors import InvalidInput
from training.data.base import Recording
from training.data.options import Options, Share

Recordings = tuple[Recording, ...]


class BlockOptions(Options):
    """How recordings are divided in time."""

    validation_share: Share = 0.1
    calibration_share: Share = 0.2
    test_share: Share = 0.2
    """Of the normal rows; all anomalous rows are in the test split."""
    blocks: int | None = Field(default=None, ge=1, description="default: 5, fewer for few rows")
    guard_rows: int = Field(
        default=36, ge=0, description="dropped between splits; window + smoothing - 1"
    )

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.validation_share + self.calibration_share + self.test_share >= 1:
            raise ValueError("the shares must stay below 1 in sum")
        return self

    def blocks_for(self, normal_rows: int) -> int:
        """The number of blocks; by default each split of a block measures some guard bands."""
        if self.blocks is not None:
            return self.blocks
        smallest = min(self.validation_share, self.calibration_share, self.test_share)
        fitting = normal_rows * smallest / (3 * max(self.guard_rows, 1))
        return min(max(int(fitting), 1), 5)

    def rule(self, normal_rows: int) -> str:
        """The split in words."""
        return (
            f"normal rows in {self.blocks_for(normal_rows)} consecutive block(s), each divided in "
            f"time order into train, validation ({self.validation_share:.0%}), calibration "
            f"({self.calibration_share:.0%}) and test ({self.test_share:.0%}), with "
            f"{self.guard_rows} rows dropped between; no recording spans a gap"
        )


@dataclass(frozen=True)
class BlockSplit:
    """Recordings of each split; labels only in ``test``, and there only where they were given."""

    train: Recordings
    validation: Recordings
    calibration: Recordings
    test: Recordings


def cut_at_gaps(
    rows: Float64[np.ndarray, "T D"],
    timestamps_s: Float64[np.ndarray, " T"] | None,
    labels: Int64[np.ndarray, " T"] | None,
    period_s: float | None,
    name: str = "",
) -> Recordings:
    """Recordings between gaps: a step back, a repeated time, or one above 1.5 periods."""
    cuts = np.empty(0, dtype=np.int64)
    if timestamps_s is not None and period_s is not None:
        step = np.diff(timestamps_s)
        cuts = np.flatnonzero(~((step > 0) & (step <= 1.5 * period_s))) + 1
    whole = Recording(rows, timestamps_s, labels, name)
    edges = [0, *cuts.tolist(), len(rows)]
    return tuple(part(whole, a, b) for a, b in pairwise(edges) if b > a)


def part(recording: Recording, start: int, stop: int, labelled: bool = True) -> Recording:
    """Rows [start, stop) of a recording."""
    times, labels = recording.timestamps_s, recording.labels
    return Recording(
        rows=recording.rows[start:stop],
        timestamps_s=None if times is None else times[start:stop],
        labels=None if labels is None or not labelled else labels[start:stop],
        name=recording.name,
    )


def split_blocks(recordings: Sequence[Recording], options: BlockOptions, of: str) -> BlockSplit:
    """Recordings divided as ``BlockOptions`` says; anomalous stretches go to test.

    Raises:
        InvalidInput: a split is left without rows; says how many normal rows there are.
    """
    normal = [np.ones(len(r.rows), bool) if r.labels is None else r.labels == 0 for r in recordings]
    total = int(sum(n.sum() for n in normal))
    blocks = options.blocks_for(total)
    shares = (options.validation_share, options.calibration_share, options.test_share)
    bounds = np.cumsum([1 - sum(shares), *shares[:2]])
    splits: tuple[list[Recording], ...] = ([], [], [], [])
    before = 0
    for recording, is_normal in zip(recordings, normal, strict=True):
        position = before + np.cumsum(is_normal) - 1
        before += int(is_normal.sum())
        phase = position * blocks / max(total, 1) % 1.0
        split = np.where(is_normal, np.searchsorted(bounds, phase, side="right"), 3)
        kept = _outside_guards(split * 2 + is_normal, is_normal, options.guard_rows)
        for start, stop in _runs(np.where(kept, split * 2 + is_normal, -1)):
            if kept[start]:
                s = int(split[start])
                splits[s].append(part(recording, start, stop, labelled=s == 3))
    if any(not s for s in splits):
        names = ("train", "validation", "calibration", "test")
        empty = ", ".join(n for n, s in zip(names, splits, strict=True) if not s)
        raise InvalidInput(
            f"{of}: {total} normal rows leave no rows for {empty}; use fewer blocks or guard_rows, "
            "or longer recordings"
        )
    return BlockSplit(*(tuple(s) for s in splits))


def _outside_guards(
    key: Int64[np.ndarray, " T"], is_normal: Bool[np.ndarray, " T"], guard_rows: int
) -> Bool[np.ndarray, " T"]:
    """False for normal rows just after a change of ``key``, or just before an anomalous row."""
    kept = np.ones(len(key), dtype=bool)
    for start, _ in _runs(key)[1:]:
        kept[start : start + guard_rows] = False
        if not is_normal[start]:
            kept[max(0, start - guard_rows) : start] = False
    return np.asarray(kept | ~is_normal)


def _runs(key: Int64[np.ndarray, " T"]) -> list[tuple[int, int]]:
    edges = [0, *(np.flatnonzero(np.diff(key)) + 1).tolist(), len(key)]
    return list(pairwise(edges))
