"""What one model version scored in use, item by item, as it travels from service to training.

The service collects it (``feedback``), ``recalibration`` computes with it, ``python -m training
recalibrate`` reads it from a file. Only numbers: scores, what belongs together, labels; nothing of
what was sent, and no comment that anybody wrote.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Final, Literal, Self
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64, UInt64

from service.contract.errors import InvalidInput

UNLABELLED, NORMAL, ANOMALOUS = 0, 1, 2
LabelName = Literal["normal", "anomalous"]
LABELS: Final[dict[LabelName, int]] = {"normal": NORMAL, "anomalous": ANOMALOUS}
FORMAT: Final = 1
_COLUMNS: Final = {
    "raw": np.float64,
    "at_ns": np.int64,
    "series": np.uint64,
    "start": np.int64,
    "stream": np.bool_,
    "label": np.int8,
    "labelled_at_ns": np.int64,
}


@dataclass(frozen=True)
class Observed:
    """Items that one model version scored, in any order."""

    model: str
    version: int
    digest: str
    """Of the artifact, as far as it is known: the beginning of its sha256."""
    answers: int
    """Requests that the items came in."""
    raw: Float64[np.ndarray, " N"]
    at_ns: Int64[np.ndarray, " N"]
    """When it was scored, since 1970."""
    series: UInt64[np.ndarray, " N"]
    """Of an image or a vector: its content. Of a window: the recording or stream it is of."""
    start: Int64[np.ndarray, " N"]
    """First row of a window; -1 for an image or a vector."""
    stream: Bool[np.ndarray, " N"]
    label: Int8[np.ndarray, " N"]
    labelled_at_ns: Int64[np.ndarray, " N"]
    """When the label was given; 0 without one."""

    def __len__(self) -> int:
        return len(self.raw)

    def taken(self, chosen: np.ndarray) -> Self:
        """The items that an index or a mask chooses."""
        return replace(self, **{name: getattr(self, name)[chosen] for name in _COLUMNS})

    def distinct(self) -> Self:
        """Each item once, as it came first, with the last label that it got in any request.

        The same content is the same item; of a stream, which may be deleted and begun anew, only
        where the raw score is the same too.
        """
        if not len(self):
            return self
        tie = np.where(self.stream, self.raw, 0.0)
        order = np.lexsort((self.at_ns, tie, self.start, self.series))
        keys = (self.series[order], self.start[order], tie[order])
        first = np.ones(len(self), bool)
        first[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
        item = np.cumsum(first) - 1
        by_label = np.lexsort((self.labelled_at_ns[order], item))
        last = order[by_label[np.flatnonzero(np.append(first[1:], True))]]
        once = self.taken(order[first])
        return replace(once, label=self.label[last], labelled_at_ns=self.labelled_at_ns[last])

    def independent(self, rows_apart: int) -> Bool[np.ndarray, " N"]:
        """Which items to keep so that no two windows share rows.

        Args:
            rows_apart: rows from the first of one window to the first of the next that shares no
                row with it, those that smoothing needs included.
        """
        keep = np.ones(len(self), bool)
        order, run = self._runs()
        current, due = -1, 0
        for i, mine, start in zip(order.tolist(), run.tolist(), self.start[order], strict=True):
            if mine != current:
                current, due = mine, start
            if start >= due:
                due = start + rows_apart
            else:
                keep[i] = False
        return keep

    def touching(self, chosen: Bool[np.ndarray, " N"], rows_apart: int) -> Bool[np.ndarray, " N"]:
        """The chosen items, and the windows that share rows with one of them.

        Args:
            chosen: some of the items.
            rows_apart: see ``independent``.
        """
        order, run = self._runs()
        if not chosen[order].any():
            return chosen
        start = self.start[order]
        place = run * (start.max() + 2 * rows_apart) + start  # runs lie far from each other
        of = place[chosen[order]]
        after = np.searchsorted(of, place)
        gap = np.minimum(
            np.abs(place - of[np.minimum(after, len(of) - 1)]),
            np.abs(place - of[np.maximum(after - 1, 0)]),
        )
        found = chosen.copy()
        found[order[gap < rows_apart]] = True
        return found

    def _runs(self) -> tuple[Int64[np.ndarray, " W"], Int64[np.ndarray, " W"]]:
        """The windows, those of each recording or stream together and in the order of their rows,
        and the number of the run that each is of; a stream that was begun anew is another run.
        """
        windows = np.flatnonzero(self.start >= 0)
        when = np.where(self.stream, self.at_ns, 0)[windows]
        order = windows[np.lexsort((self.start[windows], when, self.series[windows]))]
        series, start = self.series[order], self.start[order]
        new = np.zeros(len(order), bool)
        new[1:] = (series[1:] != series[:-1]) | (start[1:] < start[:-1])
        return order, np.cumsum(new)

    @property
    def fingerprint(self) -> str:
        """sha256 of scores and labels, whatever order they are in."""
        order = np.lexsort((self.at_ns, self.raw, self.start, self.series))
        found = hashlib.sha256(f"{self.model}/{self.version}".encode())
        for name in ("raw", "series", "start", "label"):
            found.update(np.ascontiguousarray(getattr(self, name)[order]).tobytes())
        return found.hexdigest()

    def dump(self) -> bytes:
        """As an npz file of plain arrays; ``about`` is JSON."""
        about = {"format": FORMAT, "model": self.model, "version": self.version}
        about |= {"digest": self.digest, "answers": self.answers}
        out = BytesIO()
        columns = {name: getattr(self, name) for name in _COLUMNS}
        np.savez_compressed(out, allow_pickle=False, about=np.array(json.dumps(about)), **columns)
        return out.getvalue()

    @classmethod
    def load(cls, data: bytes, source: str) -> Self:
        """What was dumped.

        Raises:
            InvalidInput: it is something else.
        """
        try:
            with np.load(BytesIO(data), allow_pickle=False) as npz:
                arrays = {name: npz[name] for name in npz.files}
            about = json.loads(str(arrays.pop("about")))
            if about.pop("format") != FORMAT:
                raise ValueError("another format")
            columns = {name: arrays[name].astype(kind) for name, kind in _COLUMNS.items()}
            if len({c.shape for c in columns.values()}) != 1 or columns["raw"].ndim != 1:
                raise ValueError("columns of different lengths")
            if not np.isfinite(columns["raw"]).all():
                raise ValueError("scores that are no numbers")
            return cls(**about, **columns)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            EOFError,
            BadZipFile,
            zlib.error,
        ) as error:
            raise InvalidInput(
                f"{source}: no export of GET /feedback/calibration ({error})"
            ) from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """What a file holds.

        Raises:
            InvalidInput: it cannot be read, or holds something else.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InvalidInput(f"{path}: cannot be read ({error.strerror})") from error
        return cls.load(data, str(path))
