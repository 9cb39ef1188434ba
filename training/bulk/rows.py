"""Rows of recordings in parquet files: which recordings there are, and the windows of each."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64

from service.contract.errors import InvalidInput
from service.contract.manifest import SeriesInput
from service.decoding.cells import LABEL_COLUMNS, TIME_COLUMNS
from service.decoding.tables import match_columns
from training.bulk.layout import Layout, Piece, place
from training.bulk.listing import INPUT

RECORDINGS = "_recordings.parquet"
_GROUPS_IN_MEMORY = 2
_SEGMENTS = pa.schema([("label", pa.string()), ("first", pa.int64()), ("rows", pa.int64())])


class Segment(NamedTuple):
    """Rows of one recording that follow one another in the files."""

    label: str | None
    first: int
    rows: int


class Slice(NamedTuple):
    """Windows [first, end) of a recording; none where it is too short for one."""

    recording: int
    first: int
    end: int


class Recordings:
    """All recordings in the order of their labels, and their windows as one sequence of items.

    A recording that is too short for a window is one item: it has to be in the results as well.
    """

    def __init__(self, segments: Sequence[Segment], spec: SeriesInput, stride: int) -> None:
        self.spec, self.stride = spec, stride
        of: dict[str | None, list[Segment]] = {}
        for segment in segments:
            of.setdefault(segment.label, []).append(segment)
        self.labels = sorted(of, key=lambda label: label or "")
        self._segments = [of[label] for label in self.labels]
        self.lengths = [sum(s.rows for s in mine) for mine in self._segments]
        items = [max(1, windows_in(rows, spec, stride)) for rows in self.lengths]
        self._ends = np.cumsum(items, dtype=np.int64)
        self.items = int(self._ends[-1]) if items else 0

    def slices(self, first: int, end: int) -> Iterator[Slice]:
        """Items [first, end), recording by recording."""
        for r in range(int(np.searchsorted(self._ends, first, side="right")), len(self.labels)):
            begin = int(self._ends[r - 1]) if r else 0
            if begin >= end:
                return
            windows = windows_in(self.lengths[r], self.spec, self.stride)
            low, high = max(first - begin, 0), min(end - begin, windows)
            yield Slice(r, low, high)

    def where(self, recording: int, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Where rows [first, end) of a recording are among those of the files."""
        begin = 0
        for segment in self._segments[recording]:
            low, high = max(first - begin, 0), min(end - begin, segment.rows)
            if low < high:
                yield segment.first + low, segment.first + high
            begin += segment.rows


def windows_in(rows: int, spec: SeriesInput, stride: int) -> int:
    """How many windows so many rows have."""
    return max(0, (rows - spec.min_rows) // stride + 1)


def write_segments(out: Path, segments: Sequence[Segment]) -> None:
    """Kept beside the results, for those who score parts."""
    rows = [segment._asdict() for segment in segments]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SEGMENTS), out / RECORDINGS)


def read_segments(out: Path) -> list[Segment]:
    """What ``write_segments`` wrote."""
    return [Segment(**row) for row in pq.read_table(out / RECORDINGS).to_pylist()]


class Columns(NamedTuple):
    """Which columns of a file are read, in the order of the manifest."""

    readings: tuple[str, ...]
    time: str | None
    ignored: tuple[str, ...]

    @classmethod
    def of(cls, spec: SeriesInput, names: Sequence[str], group_by: str | None) -> Self:
        """What a header has for a model; columns that it does not know are passed over.

        Raises:
            InvalidInput: columns are missing or there twice, or there is no ``group_by``.
        """
        readings = tuple(c.name for c in spec.columns)
        if group_by is not None and (group_by not in names or group_by in readings):
            what = "is a reading of the model" if group_by in readings else "is not there"
            raise InvalidInput(f"--group-by {group_by}: {what}; columns: {', '.join(names)}")
        known = (*TIME_COLUMNS, *LABEL_COLUMNS)
        others = [n for n in names if n not in readings and n.lower() not in known]
        _, time, _ = match_columns(spec, tuple(names), frozenset({*others, group_by or ""}))
        ignored = [n for n in names if n not in readings and n != group_by]
        stamps = None if time is None else names[time]
        return cls(readings, stamps, tuple(n for n in ignored if n != stamps))


def check_types(where: Path, schema: pa.Schema, columns: Columns) -> None:
    """Nothing, where readings are numbers and timestamps are times or texts.

    Raises:
        InvalidInput: they are not; the column is named.
    """
    for name in columns.readings:
        kind = schema.field(name).type
        number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
        if not any(fits(kind) for fits in number):
            raise InvalidInput(f"{where}: column {name!r} holds {kind}, expected numbers")
    if columns.time is not None:
        kind = schema.field(columns.time).type
        if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind) or is_text(kind)):
            raise InvalidInput(
                f"{where}: column {columns.time!r} holds {kind}, expected timestamps, dates or "
                "texts like 2015-12-30T15:15:00Z"
            )


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def readings_of(table: pa.Table | pa.RecordBatch, columns: Columns) -> Float64[np.ndarray, "T D"]:
    """The readings; missing ones are NaN."""
    out = np.empty((len(table), len(columns.readings)), dtype=np.float64)
    for d, name in enumerate(columns.readings):
        cast = pc.cast(table[name], pa.float64(), safe=False)
        out[:, d] = cast.to_numpy(zero_copy_only=False)
    return out


def seconds_of(stamps: pa.ChunkedArray | pa.Array) -> Float64[np.ndarray, " T"]:
    """Seconds since 1970, UTC; NaN where there is none."""
    zone = stamps.type.tz if pa.types.is_timestamp(stamps.type) else None
    micros = pc.cast(pc.cast(stamps, pa.timestamp("us", zone), safe=False), pa.int64())
    seconds = pc.divide(pc.cast(micros, pa.float64(), safe=False), 1e6)
    return np.asarray(seconds.to_numpy(zero_copy_only=False), dtype=np.float64)


class Rows:
    """Readings and timestamps by the number of their row; as much as two row groups in memory."""

    def __init__(self, source: Path, out: Path, spec: SeriesInput) -> None:
        self._source, self._spec = source, spec
        self._layout = Layout.read(out / INPUT)
        self._kept: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray | None]]
        self._kept = OrderedDict()

    def read(
        self, spans: Iterator[tuple[int, int]]
    ) -> tuple[Float64[np.ndarray, "T D"], Float64[np.ndarray, " T"] | None]:
        """The rows of these spans, one after the other."""
        rows: list[np.ndarray] = []
        stamps: list[np.ndarray] = []
        for first, end in spans:
            for piece in self._layout.pieces(first, end):
                readings, seconds = self._group(piece)
                rows.append(readings[piece.first : piece.end])
                if seconds is not None:
                    stamps.append(seconds[piece.first : piece.end])
        return np.concatenate(rows), np.concatenate(stamps) if stamps else None

    def _group(self, piece: Piece) -> tuple[np.ndarray, np.ndarray | None]:
        key = (piece.group.file, piece.group.number)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        path = place(self._source, self._layout.names[piece.group.file])
        with pq.ParquetFile(path) as opened:
            columns = Columns.of(self._spec, opened.schema_arrow.names, None)
            wanted = [*columns.readings, *([columns.time] if columns.time else [])]
            table = opened.read_row_group(piece.group.number, columns=wanted)
        seconds = seconds_of(table[columns.time]) if columns.time else None
        self._kept[key] = readings_of(table, columns), seconds
        while len(self._kept) > _GROUPS_IN_MEMORY:
            self._kept.popitem(last=False)
        return self._kept[key]


def segments_of(
    source: Path, layout: Layout, group_by: str | None, say: Callable[[str], None]
) -> Iterator[Segment]:
    """The stretches of rows with one label, in the order of the files.

    Raises:
        InvalidInput: a row has no label.
    """
    if group_by is None:
        yield Segment(None, 0, layout.rows)
        return
    last: Segment | None = None
    at = 0
    for name in layout.names:
        path = place(source, name)
        with pq.ParquetFile(path, pre_buffer=False) as opened:
            for batch in opened.iter_batches(1 << 16, columns=[group_by]):
                for label, rows in _stretches(labels_of(batch.column(0), path, group_by)):
                    if last is not None and last.label == label:
                        last = last._replace(rows=last.rows + rows)
                    else:
                        if last is not None:
                            yield last
                        last = Segment(label, at, rows)
                    at += rows
                say(f"looking for recordings: {at:,} of {layout.rows:,} rows")
    if last is not None:
        yield last


def labels_of(column: pa.Array, path: Path, group_by: str) -> pa.Array:
    """Labels as texts.

    Raises:
        InvalidInput: one is missing.
    """
    if column.null_count:
        raise InvalidInput(f"{path}: column {group_by!r} has rows without a value")
    return pc.cast(column, pa.string())


def _stretches(labels: pa.Array) -> Iterator[tuple[str, int]]:
    encoded = labels.dictionary_encode()
    values, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    starts = np.flatnonzero(np.diff(values, prepend=-1)).tolist()
    for first, end in zip(starts, [*starts[1:], len(values)], strict=True):
        yield names[values[first]], end - first
