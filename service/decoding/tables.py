"""From csv or JSON to rows of readings in the manifest's order of columns, and timestamps.

Columns are matched by name where names are given, in any order, else by position. A missing
reading is an empty csv cell, ``null`` or NaN. What is wrong is named, place by place.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from jaxtyping import Float64

from service.contract.errors import FieldError, InvalidInput
from service.contract.manifest import SeriesInput
from service.decoding.cells import (
    LABEL_COLUMNS,
    MAX_ERRORS,
    MISSING,
    TIME_COLUMNS,
    Table,
    check_width,
    csv_records,
    invalid,
    json_table,
    numbers,
    pick_columns,
    read_header,
)

_SLASHED = re.compile(
    r"(\d{4})[/-](\d{1,2})[/-](\d{1,2})(?:[ T](\d{1,2}):(\d{2})(?::([0-5]\d(?:\.\d+)?))?)?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Recording:
    """Rows ready for ``prepare_series``."""

    rows: Float64[np.ndarray, "T D"]
    timestamps_s: Float64[np.ndarray, " T"] | None
    warnings: tuple[str, ...]


def read_json(spec: SeriesInput, body: bytes, max_cells: int) -> Recording:
    """The recording of ``{"columns": [...]?, "timestamps": [...]?, "rows": [[...]]}``.

    Raises:
        MalformedInput: not JSON.
        InvalidInput: other members, wrong columns, cells or timestamps.
        InputTooLarge: more than ``max_cells`` cells.
    """
    names = len(spec.columns)
    table, document = json_table(body, "row", names, max_cells, ("timestamps",))
    recording = _recording(spec, table)
    stamps = document.get("timestamps")
    if stamps is None:
        return recording
    if recording.timestamps_s is not None:
        raise invalid("/timestamps", "given twice: as a member and as a column")
    if not isinstance(stamps, list) or len(stamps) != len(table.cells):
        raise invalid("/timestamps", f"must be a list of {len(table.cells)} timestamps, one a row")
    seconds = read_timestamps(stamps, lambda i: f"/timestamps/{i}")
    return Recording(recording.rows, seconds, recording.warnings)


def read_csv(spec: SeriesInput, body: bytes, max_cells: int) -> Recording:
    """The recording of a csv file with a header line; comma, semicolon or tab between cells.

    Raises:
        MalformedInput: not UTF-8 text, or not csv.
        InvalidInput: wrong columns, cells or timestamps.
        InputTooLarge: more than ``max_cells`` cells.
    """
    rows, lines = csv_records(body, [c.name for c in spec.columns], max_cells)
    check_width(len(rows[0]), len(spec.columns))
    return _recording(spec, Table(read_header(rows[0]), rows[1:], lines[1:]))


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
    return _recording(spec, Table(header, cells, lines, first), ignored)


def _recording(spec: SeriesInput, table: Table, ignored: frozenset[str] = frozenset()) -> Recording:
    order, time, warnings = match_columns(spec, table.header, ignored)
    cells = pick_columns(table, order, len(spec.columns))
    rows = numbers(table, cells, order, lambda j: f"column {spec.columns[j].name!r}")
    seconds = None
    if time is not None:
        stamps = [row[time] for row in table.cells]
        seconds = read_timestamps(stamps, lambda i: f"{table.pointer(i)}/{time}")
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
            if len(errors) == MAX_ERRORS:
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
    if text.lower() in MISSING:
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
