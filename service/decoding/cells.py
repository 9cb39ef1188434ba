"""Cells of a body, csv or JSON, and the numbers in them: what recordings and vectors share.

What is wrong is named, place by place.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import chain, islice
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float64

from service.contract.errors import FieldError, InputTooLarge, InvalidInput, MalformedInput

TIME_COLUMNS = ("time", "timestamp", "date")
LABEL_COLUMNS = ("group", "label")
MAX_ERRORS = 20
"""As many places as one answer names."""
SHOWN_CHARS = 40
"""Of a member that was sent and is not known."""
MISSING = frozenset({"", "nan", "null", "na", "n/a", "none"})
_SPARE_COLUMNS = 64
_HEADER_CHARS = 1 << 16
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Table:
    """Cells as they were sent, and how to point at one of them."""

    header: tuple[str, ...] | None
    cells: Sequence[Sequence[Any]]
    lines: Sequence[int] | None = None
    """Of the file, where each row is; None where the cells are JSON."""
    first: int = 0
    """The number of the first row, where these are a part of a longer table."""
    noun: str = "row"
    """What a row is."""

    def place(self, row: int) -> str:
        told = f"{self.noun} {self.first + row}"
        return told if self.lines is None else f"{told} (line {self.lines[row]})"

    def pointer(self, row: int) -> str:
        return f"/{self.noun}s/{self.first + row}"


def load_json(body: bytes) -> Any:
    """What a body holds; NaN and infinities, which JSON does not have, are read as well.

    Raises:
        MalformedInput: it is not JSON.
    """
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


def json_table(
    body: bytes, noun: str, features: int, max_cells: int, others: Collection[str] = ()
) -> tuple[Table, dict[str, Any]]:
    """The table of ``{"columns": [...]?, "<noun>s": [[...]]}`` and the whole document.

    Args:
        body: JSON.
        noun: what a row of the table is called.
        features: cells that the model needs in each.
        max_cells: in all.
        others: further members there may be.

    Raises:
        MalformedInput: not JSON.
        InvalidInput: other members, or other things than lists in them.
        InputTooLarge: more than ``max_cells`` cells.
    """
    document = load_json(body)
    known = ("columns", *others, f"{noun}s")
    if not isinstance(document, dict):
        told = ", ".join(f'"{name}"' for name in known)
        raise InvalidInput(f"the body must be a JSON object {{{told}}}")
    unknown = [key for key in document if key not in known]
    if unknown := unknown[:MAX_ERRORS]:
        raise InvalidInput(
            f"the body may hold {', '.join(known[:-1])} and {known[-1]} only",
            tuple(FieldError(f"/{key[:SHOWN_CHARS]}", "unknown member") for key in unknown),
        )
    columns, rows = document.get("columns"), document.get(f"{noun}s")
    if isinstance(columns, list):
        check_width(len(columns), features)
    if columns is not None and not (
        isinstance(columns, list) and all(isinstance(c, str) for c in columns)
    ):
        raise invalid("/columns", "must be a list of names")
    if not isinstance(rows, list):
        raise invalid(f"/{noun}s", f"required: a list of {noun}s, each a list of numbers")
    check_cells(len(rows), max_cells)
    no_lists = (i for i, row in enumerate(rows) if type(row) is not list)
    wrong = tuple(FieldError(f"/{noun}s/{i}", "not a list") for i in islice(no_lists, MAX_ERRORS))
    if wrong:
        raise InvalidInput(f"{noun}s must be lists of numbers", wrong)
    check_cells(sum(map(len, rows)), max_cells)
    header = None if columns is None else tuple(columns)
    return Table(header, rows, noun=noun), document


def csv_records(
    body: bytes, names: Collection[str], max_cells: int
) -> tuple[list[list[str]], list[int]]:
    """The records of a csv file, the header among them, and the lines they are on; comma, semicolon
    or tab between cells.

    Args:
        body: the file.
        names: that the header is expected to hold; they tell the separator.
        max_cells: in all, but for the header.

    Raises:
        MalformedInput: not UTF-8 text, or not csv.
        InvalidInput: it is empty.
        InputTooLarge: more than ``max_cells`` cells.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedInput(f"csv: not UTF-8 text (byte {error.start})") from error
    delimiter = delimiter_among(names, text[:_HEADER_CHARS].partition("\n")[0])
    rows: list[list[str]] = []
    lines: list[int] = []
    cells = 0
    try:
        reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for row, line in records_in(reader):
            cells += len(row)
            # the header is not counted, so that a limit of n cells means n readings
            if rows:
                check_cells(cells - len(rows[0]), max_cells)
            rows.append(row)
            lines.append(line)
    except csv.Error as error:
        raise MalformedInput(f"csv: line {reader.line_num}: {error}") from error
    if not rows:
        raise InvalidInput("csv: it is empty; a header line and rows are needed")
    return rows, lines


def records_in(reader: Any, width: int = 0) -> Iterator[tuple[list[str], int]]:
    """The records of a csv file and the lines they end on; blank lines are passed over, but where
    a record has one cell, a blank line among others is a record without a value.

    Args:
        reader: of the ``csv`` module.
        width: cells of the header, where that has been read; else the first record is the header.
    """
    first = blank = 0  # of the blank lines since the last record
    for row in reader:
        if (not row or (len(row) == 1 and not row[0].strip())) and not (width == 1 and row == [""]):
            first = first if blank else reader.line_num
            blank += width == 1
            continue
        for line in range(first, first + blank):
            yield [""], line
        blank = 0
        width = width or len(row)
        yield row, reader.line_num


def read_header(cells: Sequence[str], names: Collection[str] = ()) -> tuple[str, ...]:
    """The names in the first record of a csv file.

    Args:
        cells: of that record.
        names: of columns, which may be numbers themselves.

    Raises:
        InvalidInput: there are numbers only, so that it is none.
    """
    header = tuple(cell.strip() for cell in cells)
    if all(number_in_text(cell) is not None for cell in header) and not (
        names and set(header).issuperset(names)
    ):
        raise InvalidInput("csv: the first line must be a header with the names of the columns")
    return header


def delimiter_among(names: Collection[str], header: str) -> str:
    """The separator under which the header line holds most of these names."""
    wanted = set(names)

    def known(delimiter: str) -> tuple[int, int]:
        try:
            cells = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            return (-1, 0)
        return (len(wanted.intersection(cell.strip() for cell in cells)), len(cells))

    return max(",;\t", key=known)


def pick_columns(table: Table, order: list[int], features: int) -> list[Sequence[Any]]:
    """The cells of each row in this order of columns.

    Raises:
        InvalidInput: rows have another length than the header, or than ``features`` without one.
    """
    width = features if table.header is None else len(table.header)
    wrong = [i for i, row in enumerate(table.cells) if len(row) != width]
    if wrong:
        errors = (
            FieldError(table.pointer(i), f"has {len(table.cells[i])} cells, expected {width}")
            for i in wrong[:MAX_ERRORS]
        )
        first = f"{table.place(wrong[0])} has {len(table.cells[wrong[0]])} cells, expected {width}"
        many = f"{len(wrong)} {table.noun}s have a wrong length"
        raise InvalidInput(f"{many}; {first}", tuple(errors))
    cells: Iterable[Sequence[Any]] = table.cells
    if order != list(range(width)):
        pick = itemgetter(*order) if len(order) > 1 else lambda row: (row[order[0]],)
        cells = map(pick, table.cells)
    return list(cells)


def numbers(
    table: Table, cells: list[Sequence[Any]], order: list[int], label: Callable[[int], str]
) -> Float64[np.ndarray, "N D"]:
    """The cells as float64, missing ones as NaN.

    Args:
        table: that they are of.
        cells: as ``pick_columns`` gives them.
        order: the column of the table that each is of.
        label: what a column is called.

    Raises:
        InvalidInput: some are no numbers; it names the first so many.
    """
    shape = (len(cells), len(order))
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
            number = number_in_text(cell) if is_text else number_in_json(cell)
            if number is None:
                what = f"{table.place(i)}, {label(j)}: {repr(cell)[:40]} is not a number"
                if is_text and _DECIMAL_COMMA.fullmatch(cell.strip()):
                    point = cell.strip().replace(",", ".")[:40]
                    what += f"; decimal commas are not read, write {point}"
                errors.append(FieldError(f"{table.pointer(i)}/{order[j]}", what))
                if len(errors) == MAX_ERRORS:
                    raise InvalidInput(errors[0].detail, tuple(errors))
            else:
                out[i, j] = number
    if errors:
        raise InvalidInput(errors[0].detail, tuple(errors))
    return out


def number_in_json(cell: object) -> float | None:
    """The reading of one cell, NaN for null, None for what is no number."""
    if cell is None:
        return math.nan
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return None
    try:
        return float(cell)
    except OverflowError:
        return math.inf


def number_in_text(cell: str) -> float | None:
    """The reading of one cell, NaN for a blank one, None for what is no number."""
    if cell.strip().lower() in MISSING:
        return math.nan
    if "_" in cell:  # Python reads 1_000 as a number; a csv file does not mean one
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def check_cells(cells: int, max_cells: int) -> None:
    """Nothing, where there are no more than ``max_cells``.

    Raises:
        InputTooLarge: there are.
    """
    if cells > max_cells:
        raise InputTooLarge(f"more than {max_cells} cells (ANOMALY_MAX_CELLS)")


def check_width(columns: int, features: int) -> None:
    """Nothing, where so many columns can hold the features and a few others.

    Raises:
        InvalidInput: they are far more.
    """
    if columns > features + _SPARE_COLUMNS:
        raise invalid(
            "/columns",
            f"{columns} columns; expected {features}, a time column and at most a few to ignore",
        )


def invalid(pointer: str, detail: str) -> InvalidInput:
    """What is wrong with one place of a body."""
    return InvalidInput(f"{pointer.strip('/')}: {detail}", (FieldError(pointer, detail),))
