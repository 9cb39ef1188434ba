"""What an operator would have seen of a recording: how late an event is told, how often nothing.

An *alarm* is an unbroken run of flagged windows. An *event* is an unbroken run of anomalous rows.
It is detected by the first flagged window that ends in it and holds a row of it; the delay is from
the event's first row to the end of that window, when the window can be scored at the earliest. An
alarm is false where none of its windows, nor the smoothing around them, touches an anomalous row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

DAY_S = 86_400.0


@dataclass(frozen=True)
class Seen:
    """One recording: which windows were flagged, which rows are anomalous."""

    end: Int64[np.ndarray, " W"]
    """The row after the last one that a window was made from, ascending."""
    flagged: Bool[np.ndarray, " W"]
    anomalous: Bool[np.ndarray, " T"]
    rows: int
    """That a window was made from, smoothing included."""
    row_s: float
    """Seconds from one row to the next."""


@dataclass(frozen=True)
class Alarms:
    """Over all recordings."""

    events: int
    detected: int
    delay_s: float | None
    """Median over the detected events; None where none was."""
    false_alarms: int
    normal_s: float
    """Time in which every alarm is false."""

    @property
    def false_per_day(self) -> float | None:
        """False alarms a day of normal operation; None where there was no normal operation."""
        return self.false_alarms * DAY_S / self.normal_s if self.normal_s else None


def count_alarms(recordings: Sequence[Seen]) -> Alarms:
    """Events, delays and false alarms over several recordings."""
    delays: list[float] = []
    events = false = 0
    normal_s = 0.0
    for seen in recordings:
        before = np.concatenate([[0], np.cumsum(seen.anomalous)])
        touched = before[seen.end] > before[np.maximum(seen.end - seen.rows, 0)]
        for first, stop in runs(seen.anomalous):
            events += 1
            told = seen.end[seen.flagged & touched & (seen.end > first) & (seen.end <= stop)]
            if len(told):
                delays.append(float(told[0] - first) * seen.row_s)
        false += sum(not touched[first:stop].any() for first, stop in runs(seen.flagged))
        if len(seen.end):
            step = float(np.median(np.diff(seen.end))) if len(seen.end) > 1 else float(seen.rows)
            normal_s += float((~touched).sum()) * step * seen.row_s
    delay = float(np.median(delays)) if delays else None
    return Alarms(events, len(delays), delay, false, normal_s)


def runs(flags: Bool[np.ndarray, " N"]) -> list[tuple[int, int]]:
    """[first, stop) of each unbroken run of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
