"""From csv or JSON to rows of readings in the manifest's order of columns, and timestamps.

Columns are matched by name where names are given, in any order, else by position. A missing
reading is an empty csv cell, ``null`` or NaN. What is wrong is named, place by place.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import StringIO
from itertools import chain, islice
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float64

from service.contract.errors import FieldError, InputTooLarge, InvalidInput, MalformedInput
from service.contract.manifest import SeriesInput

TIME_COLUMNS = ("time", "timestamp", "date")
LABEL_COLUMNS = ("group", "label")
_MAX_ERRORS = 20  # as many places as one answer names
_SPARE_COLUMNS = 64
_HEADER_CHARS = 1 << 16
_MISSING = frozenset({"", "nan", "null", "na", "n/a", "none"})
_SLASHED = re.compile(
    r"(\d{4})[/-](\d{1,2})[/-](\d{1,2})(?:[ T](\d{1,2}):(\d{2})(?::([0-5]\d(?:\.\d+)?))?)?"
)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Recording:
    """Rows ready for ``prepare_series``."""

    rows: Float64[np.ndarray, "T D"]
    timestamps_s: Float64[np.ndarray, " T"] | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    """Cells as they were sent, and how to point at one of them."""

    header: tuple[str, ...] | None
    cells: Sequence[Sequence[Any]]
    lines: Sequence[int] | None = None
    first: int = 0
    """The number of the first row, where these are a part of a longer table."""

    def place(self, row: int) -> str:
        told = f"row {self.first + row}"
        return told if self.lines is None else f"{told} (line {self.lines[row]})"


def read_json(spec: SeriesInput, body: bytes, max_cells: int) -> Recording:
    """The recording of ``{"columns": [...]?, "timestamps": [...]?, "rows": [[...]]}``.

    Raises:
        MalformedInput: not JSON.
        InvalidInput: other members, wrong columns, cells or timestamps.
        InputTooLarge: more than ``max_cells`` cells.
    """
    document = _load_json(body)
    if not isinstance(document, dict):
        raise InvalidInput('the body must be a JSON object {"columns", "timestamps", "rows"}')
    unknown = [key for key in document if key not in ("columns", "timestamps", "rows")]
    if unknown := unknown[:_MAX_ERRORS]:
        raise InvalidInput(
            "the body may hold columns, timestamps and rows only",
            tuple(FieldError(f"/{key}", "unknown member") for key in unknown),
        )
    columns, rows = document.get("columns"), document.get("rows")
    if isinstance(columns, list):
        _check_width(spec, len(columns))
    if columns is not None and not (
        isinstance(columns, list) and all(isinstance(c, str) for c in columns)
    ):
        raise _invalid("/columns", "must be a list of names")
    if not isinstance(rows, list):
        raise _invalid("/rows", "required: a list of rows, each a list of numbers")
    _check_cells(len(rows), max_cells)
    no_lists = (i for i, row in enumerate(rows) if type(row) is not list)
    wrong = tuple(FieldError(f"/rows/{i}", "not a list") for i in islice(no_lists, _MAX_ERRORS))
    if wrong:
        raise InvalidInput("rows must be lists of numbers", wrong)
    _check_cells(sum(map(len, rows)), max_cells)
    recording = _recording(spec, _Table(None if columns is None else tuple(columns), rows))
    stamps = document.get("timestamps")
    if stamps is None:
        return recording
    if recording.timestamps_s is not None:
        raise _invalid("/timestamps", "given twice: as a member and as a column")
    if not isinstance(stamps, list) or len(stamps) != len(rows):
        raise _invalid("/timestamps", f"must be a list of {len(rows)} timestamps, one a row")
    seconds = read_timestamps(stamps, lambda i: f"/timestamps/{i}")
    return Recording(recording.rows, seconds, recording.warnings)


def read_csv(spec: SeriesInput, body: bytes, max_cells: int) -> Recording:
    """The recording of a csv file with a header line; comma, semicolon or tab between cells.

    Raises:
        MalformedInput: not UTF-8 text, or not csv.
        InvalidInput: wrong columns, cells or timestamps.
        InputTooLarge: more than ``max_cells`` cells.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedInput(f"csv: not UTF-8 text (byte {error.start})") from error
    delimiter = delimiter_of(spec, text[:_HEADER_CHARS].partition("\n")[0])
    rows: list[list[str]] = []
    lines: list[int] = []
    cells = 0
    try:
        reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for row in reader:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            cells += len(row)
            # the header is not counted, so that a limit of n cells means n readings
            if rows:
                _check_cells(cells - len(rows[0]), max_cells)
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise MalformedInput(f"csv: line {reader.line_num}: {error}") from error
    if not rows:
        raise InvalidInput("csv: it is empty; a header line and rows are needed")
    _check_width(spec, len(rows[0]))
    return _recording(spec, _Table(read_header(rows[0]), rows[1:], lines[1:]))


def read_part(
    spec: SeriesInput,
    header: tuple[str, ...],
    cells: Sequence[Sequence[str]],
    lines: Sequence[int],
    first: int,
    ignored: frozenset[str],
) -> Recording:
    """The recording of some records of a csv file that is too long to be read at once.

    Args:
        header: as ``read_header`` gives it.
        lines: of the file, where the records are.
        first: the number of the first of these records in the file.
        ignored: names of columns that are passed over.

    Raises:
        InvalidInput: wrong columns, cells or timestamps.
    """
    return _recording(spec, _Table(header, cells, lines, first), ignored)


def read_header(cells: Sequence[str]) -> tuple[str, ...]:
    """The names in the first record of a csv file.

    Raises:
        InvalidInput: there are numbers only, so that it is none.
    """
    header = tuple(cell.strip() for cell in cells)
    if all(_number_in_text(cell) is not None for cell in header):
        raise InvalidInput("csv: the first line must be a header with the names of the columns")
    return header


def delimiter_of(spec: SeriesInput, header: str) -> str:
    """The separator under which the header line holds most of the manifest's columns."""
    names = {c.name for c in spec.columns}

    def known(delimiter: str) -> tuple[int, int]:
        try:
            cells = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            return (-1, 0)
        return (len(names.intersection(cell.strip() for cell in cells)), len(cells))

    return max(",;\t", key=known)


def _check_width(spec: SeriesInput, columns: int) -> None:
    most = len(spec.columns) + _SPARE_COLUMNS
    if columns > most:
        raise _invalid(
            "/columns",
            f"{columns} columns; expected {len(spec.columns)}, a time column "
            "and at most a few to ignore",
        )


def _load_json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        problem = error
    try:  # Python's own writer puts out NaN, which JSON does not have; take it as missing
        if b"NaN" in body or b"Infinity" in body:
            document = json.loads(body)
            orjson.dumps(document)  # refuses lone surrogates, as the first reader does
            return document
    except (ValueError, TypeError, RecursionError):
        pass
    raise MalformedInput(f"the body is not JSON: {problem}") from problem


def _recording(
    spec: SeriesInput, table: _Table, ignored: frozenset[str] = frozenset()
) -> Recording:
    width = len(spec.columns) if table.header is None else len(table.header)
    wrong = [i for i, row in enumerate(table.cells) if len(row) != width]
    order, time, warnings = match_columns(spec, table.header, ignored)
    if wrong:
        errors = (
            FieldError(
                f"/rows/{table.first + i}", f"has {len(table.cells[i])} cells, expected {width}"
            )
            for i in wrong[:_MAX_ERRORS]
        )
        first = f"{table.place(wrong[0])} has {len(table.cells[wrong[0]])} cells, expected {width}"
        raise InvalidInput(f"{len(wrong)} rows have a wrong length; {first}", tuple(errors))
    cells: Iterable[Sequence[Any]] = table.cells
    if order != list(range(width)):
        pick = itemgetter(*order) if len(order) > 1 else lambda row: (row[order[0]],)
        cells = map(pick, table.cells)
    rows = _readings(spec, table, list(cells), order)
    seconds = None
    if time is not None:
        stamps = [row[time] for row in table.cells]
        seconds = read_timestamps(stamps, lambda i: f"/rows/{table.first + i}/{time}")
    return Recording(rows, seconds, tuple(warnings))


def match_columns(
    spec: SeriesInput, header: tuple[str, ...] | None, ignored: frozenset[str] = frozenset()
) -> tuple[list[int], int | None, list[str]]:
    """Where each of the manifest's columns is, where the timestamps are, and what was ignored.

    Raises:
        InvalidInput: columns are missing, unknown or there twice.
    """
    names = [c.name for c in spec.columns]
    if header is None:
        return list(range(len(names))), None, []
    known = set(names)
    where: dict[str, int] = {}
    times: list[int] = []
    warnings: list[str] = []
    errors: list[FieldError] = []
    for i, name in enumerate(header):
        if name in ignored:
            continue
        if name in where:
            errors.append(FieldError(f"/columns/{i}", f"column {name!r} occurs twice"))
        elif name in known:
            where[name] = i
        elif name.lower() in TIME_COLUMNS:
            times.append(i)
        elif name.lower() in LABEL_COLUMNS:
            warnings.append(f"column {name!r} was taken for a label and ignored")
        else:
            errors.append(FieldError(f"/columns/{i}", f"unknown column {name!r}"))
    if len(times) > 1:
        errors.append(FieldError(f"/columns/{times[1]}", "a second column of timestamps"))
    errors += [FieldError("/columns", f"missing column {n!r}") for n in names if n not in where]
    if errors:
        told = "; ".join(e.detail for e in errors[:5]) + ("; ..." if len(errors) > 5 else "")
        raise InvalidInput(f"{told}. Expected columns: {', '.join(names)}", tuple(errors))
    return [where[n] for n in names], times[0] if times else None, warnings


def _readings(
    spec: SeriesInput, table: _Table, cells: list[Sequence[Any]], order: list[int]
) -> Float64[np.ndarray, "T D"]:
    """The cells as float64, missing ones as NaN."""
    shape = (len(cells), len(spec.columns))
    is_text = table.lines is not None
    kinds = set(map(type, chain.from_iterable(cells)))
    try:
        if kinds <= {int, float, type(None)}:
            return np.array(cells, dtype=np.float64).reshape(shape)
        if is_text and not any("_" in cell for row in cells for cell in row):
            return np.array([list(map(float, row)) for row in cells]).reshape(shape)
    except (ValueError, OverflowError):
        pass  # some cell is empty or no number: look at each
    out = np.empty(shape, dtype=np.float64)
    errors: list[FieldError] = []
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            number = _number_in_text(cell) if is_text else _number_in_json(cell)
            if number is None:
                where = f"{table.place(i)}, column {spec.columns[j].name!r}"
                what = f"{where}: {repr(cell)[:40]} is not a number"
                if is_text and _DECIMAL_COMMA.fullmatch(cell.strip()):
                    point = cell.strip().replace(",", ".")[:40]
                    what += f"; decimal commas are not read, write {point}"
                errors.append(FieldError(f"/rows/{table.first + i}/{order[j]}", what))
                if len(errors) == _MAX_ERRORS:
                    raise InvalidInput(errors[0].detail, tuple(errors))
            else:
                out[i, j] = number
    if errors:
        raise InvalidInput(errors[0].detail, tuple(errors))
    return out


def _number_in_json(cell: object) -> float | None:
    """The reading of one cell, NaN for null, None for what is no number."""
    if cell is None:
        return math.nan
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return None
    try:
        return float(cell)
    except OverflowError:
        return math.inf


def _number_in_text(cell: str) -> float | None:
    """The reading of one cell, NaN for a blank one, None for what is no number."""
    if cell.strip().lower() in _MISSING:
        return math.nan
    if "_" in cell:  # Python reads 1_000 as a number; a csv file does not mean one
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def read_timestamps(
    stamps: Sequence[Any], pointer: Callable[[int], str]
) -> Float64[np.ndarray, " T"]:
    """Seconds since 1970 in UTC; NaN where a timestamp is missing, which counts as a gap."""
    out = np.empty(len(stamps), dtype=np.float64)
    errors: list[FieldError] = []
    for i, stamp in enumerate(stamps):
        seconds = _seconds(stamp)
        if seconds is None:
            shown = repr(stamp)[:40]
            errors.append(
                FieldError(pointer(i), f"{shown} is no timestamp like 2015-12-30T15:15:00Z")
            )
            if len(errors) == _MAX_ERRORS:
                break
        else:
            out[i] = seconds
    if errors:
        raise InvalidInput(f"row {errors[0].pointer}: {errors[0].detail}", tuple(errors))
    return out


def _seconds(stamp: object) -> float | None:
    if stamp is None:
        return math.nan
    if not isinstance(stamp, str):
        return None
    text = stamp.strip()
    if text.lower() in _MISSING:
        return math.nan
    try:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            match = _SLASHED.fullmatch(text)
            if match is None:
                return None
            year, month, day, hour, minute = (int(g or 0) for g in match.groups()[:5])
            moment = datetime(year, month, day, hour, minute, tzinfo=UTC)
            moment += timedelta(seconds=float(match[6] or 0))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return (moment - _EPOCH).total_seconds()
    except (ValueError, OverflowError):
        return None


def _check_cells(cells: int, max_cells: int) -> None:
    if cells > max_cells:
        raise InputTooLarge(f"more than {max_cells} cells (ANOMALY_MAX_CELLS)")


def _invalid(pointer: str, detail: str) -> InvalidInput:
    return InvalidInput(f"{pointer.strip('/')}: {detail}", (FieldError(pointer, detail),))
