"""Rows that cannot be read slice by slice as they are (csv, recordings row by row in turns, times
as text), brought once into parquet files that can: ``_rows/`` beside the results.

Runs of rows are sorted by recording and written one after the other; a recording is then a stretch
of each run, so that no more than one run is in memory.
"""

import csv
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64

from service.contract.errors import InvalidInput, MalformedInput
from service.contract.manifest import SeriesInput
from service.decoding.cells import TIME_COLUMNS, delimiter_among, read_header, records_in
from service.decoding.tables import read_part, read_timestamps
from training.bulk.layout import Layout, place
from training.bulk.rows import Columns, is_text, labels_of, readings_of, seconds_of

ROWS = "_rows"
LABEL = "__recording__"
_RECORDS_AT_ONCE = 20_000
_RUN_CELLS = 8_000_000
_GROUP_ROWS = 1 << 16

Say = Callable[[str], None]


class Block(NamedTuple):
    """Rows as they follow one another in the input."""

    readings: Float64[np.ndarray, "T D"]
    seconds: Float64[np.ndarray, " T"] | None
    labels: pa.Array | None


def csv_columns(source: Path, spec: SeriesInput, group_by: str | None) -> tuple[Columns, str]:
    """Which columns of a csv file are read, and what separates them.

    Raises:
        InvalidInput, MalformedInput: it has no header, or not the columns that are needed.
    """
    first, delimiter = first_line(source, [c.name for c in spec.columns])
    return Columns.of(spec, read_header(first), group_by), delimiter


def first_line(source: Path, names: Collection[str]) -> tuple[list[str], str]:
    """The cells of the header of a csv file, and what separates them.

    Args:
        source: the file.
        names: that the header is expected to hold.

    Raises:
        InvalidInput, MalformedInput: it is empty, or no csv.
    """
    with source.open(encoding="utf-8-sig", newline="") as file:
        try:
            line = file.readline(1 << 20).rstrip("\r\n")
            delimiter = delimiter_among(names, line)
            first = next(csv.reader([line], delimiter=delimiter, strict=True), [])
        except UnicodeDecodeError as error:
            raise MalformedInput(f"{source}: not UTF-8 text (byte {error.start})") from error
        except csv.Error as error:
            raise MalformedInput(f"{source}: line 1: {error}") from error
    if not first:
        raise InvalidInput(f"{source}: it is empty; a header line and rows are needed")
    return first, delimiter


def csv_blocks(source: Path, spec: SeriesInput, group_by: str | None) -> Iterator[Block]:
    """The rows of a csv file, read as ``/score/timeseries`` reads them.

    Raises:
        InvalidInput, MalformedInput: what that route would refuse; the line is named.
    """
    columns, delimiter = csv_columns(source, spec, group_by)
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = read_header(next(reader))
        passed = frozenset({*columns.ignored, *([group_by] if group_by else [])})
        label = header.index(group_by) if group_by else None
        first = 0
        for rows, lines in records(source, reader, len(header), _RECORDS_AT_ONCE):
            try:
                part = read_part(spec, header, rows, lines, first, passed)
            except InvalidInput as error:
                raise InvalidInput(f"{source}: {error}", error.errors) from error
            labels = None if label is None else [row[label].strip() for row in rows]
            if labels is not None and "" in labels:
                where = lines[labels.index("")]
                raise InvalidInput(f"{source}: line {where}: no {group_by}")
            named = None if labels is None else pa.array(labels, pa.string())
            yield Block(part.rows, part.timestamps_s, named)
            first += len(rows)


def records(
    source: Path, reader: Any, width: int, most: int
) -> Iterator[tuple[list[list[str]], list[int]]]:
    """The records of a csv file and the lines they are on, some at a time.

    Args:
        source: named where something is wrong.
        reader: of the ``csv`` module, behind the header.
        width: cells of the header.
        most: records at once.

    Raises:
        MalformedInput: not UTF-8 text, or not csv.
    """
    found = records_in(reader, width)
    try:
        while some := list(islice(found, most)):
            rows, lines = zip(*some, strict=True)
            yield list(rows), list(lines)
    except UnicodeDecodeError as error:
        near = f"after line {reader.line_num}"
        raise MalformedInput(f"{source}: not UTF-8 text ({near})") from error
    except csv.Error as error:
        raise MalformedInput(f"{source}: line {reader.line_num}: {error}") from error


def parquet_blocks(
    source: Path, layout: Layout, spec: SeriesInput, group_by: str | None
) -> Iterator[Block]:
    """The rows of parquet files.

    Raises:
        InvalidInput: a label is missing, or a text is no timestamp.
    """
    for name in layout.names:
        path = place(source, name)
        with pq.ParquetFile(path, pre_buffer=False) as opened:
            columns = Columns.of(spec, opened.schema_arrow.names, group_by)
            wanted = [n for n in (*columns.readings, columns.time, group_by) if n is not None]
            for batch in opened.iter_batches(1 << 16, columns=wanted):
                seconds = None
                if columns.time is not None:
                    stamps = batch[columns.time]
                    if is_text(stamps.type):
                        seconds = _from_texts(path, stamps)
                    else:
                        seconds = seconds_of(stamps)
                labels = None if group_by is None else labels_of(batch[group_by], path, group_by)
                yield Block(readings_of(batch, columns), seconds, labels)


def _from_texts(path: Path, stamps: pa.Array) -> np.ndarray:
    try:
        return read_timestamps(stamps.to_pylist(), str)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.errors[0].detail}", error.errors) from error


def convert(blocks: Iterator[Block], names: Sequence[str], out: Path, say: Say) -> None:
    """``_rows/`` with all rows of ``blocks``, in columns of these names; wholly or not at all.

    Raises:
        InvalidInput: there are no rows.
    """
    temporary = out / f".{ROWS}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    some: list[Block] = []
    number = rows = 0
    for block in blocks:
        some.append(block)
        rows += len(block.readings)
        say(f"reading the input: {rows:,} rows")
        if sum(b.readings.size for b in some) >= _RUN_CELLS:
            _write_run(temporary / f"run-{number:06}.parquet", names, some)
            some, number = [], number + 1
    _write_run(temporary / f"run-{number:06}.parquet", names, some)
    if not rows:
        raise InvalidInput("the input has columns and no rows")
    temporary.rename(out / ROWS)


def _write_run(path: Path, names: Sequence[str], blocks: list[Block]) -> None:
    """The rows of these blocks; those of one recording together, in their order."""
    if not blocks:
        return
    readings = np.concatenate([block.readings for block in blocks])
    columns: dict[str, Any] = {name: readings[:, d] for d, name in enumerate(names)}
    if blocks[0].seconds is not None:
        seconds = np.concatenate([b.seconds for b in blocks if b.seconds is not None])
        missing = np.isnan(seconds)
        micros = np.rint(np.where(missing, 0, seconds) * 1e6).astype(np.int64)
        time = next(name for name in TIME_COLUMNS if name not in columns)
        columns[time] = pa.array(micros, mask=missing).cast(pa.timestamp("us"))
    if blocks[0].labels is not None:
        columns[LABEL] = pa.concat_arrays([block.labels for block in blocks])
    table = pa.table(columns)
    if LABEL in columns:
        table = table.take(pc.sort_indices(columns[LABEL]))  # of one recording: as they came
    with path.open("wb") as file:
        rows = max(1, min(_GROUP_ROWS, _RUN_CELLS // len(columns)))
        pq.write_table(table, file, row_group_size=rows, compression="zstd")
        os.fsync(file.fileno())
