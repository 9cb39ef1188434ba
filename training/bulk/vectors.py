"""Vectors: rows of csv or parquet files, each of which is an item of its own."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float64

from service.contract.errors import InvalidInput
from service.contract.manifest import VectorInput
from service.decoding.cells import Table, numbers, pick_columns, read_header
from service.decoding.vectors import NOUN, feature_label, feature_names, match_features
from training.bulk.conversion import ROWS, Block, convert, first_line, records
from training.bulk.layout import Layout, place
from training.bulk.listing import INPUT, parquet_files, shown
from training.bulk.rows import Columns, check_types, readings_of

_CELLS_AT_ONCE = 1_000_000


class Vectors(NamedTuple):
    """Vectors that follow one another in a file."""

    path: str
    row: int
    """Of the first of them."""
    values: Float64[np.ndarray, "N D"]
    """Missing ones as NaN."""


def columns_of(spec: VectorInput, names: Sequence[str]) -> Columns:
    """Which columns of a file are read, in the order of the features; those that a model with names
    does not know are passed over.

    Raises:
        InvalidInput: features are missing or there twice.
    """
    kept = tuple(n for n in names if not spec.names or n in spec.names)
    order, _ = match_features(spec, kept)
    readings = tuple(kept[i] for i in order)
    twice = [n for n in readings if kept.count(n) > 1]
    if twice:
        raise InvalidInput(f"column {twice[0]!r} occurs twice")
    return Columns(readings, None, tuple(n for n in names if n not in readings))


def prepare_csv(source: Path, spec: VectorInput, out: Path) -> tuple[Layout, Columns]:
    """A csv file brought into parquet files that can be read slice by slice.

    Raises:
        InvalidInput, MalformedInput: what ``/score/vectors`` would refuse; the line is named.
            Not features that are missing.
    """
    line, delimiter = first_line(source, feature_names(spec))
    columns = columns_of(spec, read_header(line, feature_names(spec)))
    blocks = _csv_blocks(source, spec, columns, delimiter)
    convert(blocks, feature_names(spec), out, lambda _: None)
    layout, _ = Layout.of(out / ROWS, parquet_files(out / ROWS))
    return layout, columns


def check_parquet(source: Path, spec: VectorInput) -> tuple[Layout, Columns]:
    """Where the vectors are, and which columns of the first file are read.

    Raises:
        InvalidInput: a file lacks features, or they are no numbers.
    """
    layout, schemas = Layout.of(source, parquet_files(source))
    chosen = [columns_of(spec, schema.names) for schema in schemas]
    for schema, columns, name in zip(schemas, chosen, layout.names, strict=True):
        check_types(place(source, name), schema, columns)
    return layout, chosen[0]


def vectors_in(
    source: Path, out: Path, spec: VectorInput, first: int, end: int
) -> Iterator[Vectors]:
    """Vectors ``first`` to ``end`` of the input, some at a time."""
    layout, converted = Layout.read(out / INPUT), (out / ROWS).is_dir()
    folder = out / ROWS if converted else source
    at_once = max(1, _CELLS_AT_ONCE // spec.features)
    done = first
    for piece in layout.pieces(first, end):
        name = layout.names[piece.group.file]
        row, skip, left = piece.row, piece.first, piece.end - piece.first
        with pq.ParquetFile(place(folder, name), pre_buffer=False) as opened:
            columns = columns_of(spec, opened.schema_arrow.names)
            batches = opened.iter_batches(
                at_once, row_groups=[piece.group.number], columns=[*columns.readings]
            )
            for batch in batches:
                if skip >= len(batch):
                    skip -= len(batch)
                    continue
                values = readings_of(batch.slice(skip, left), columns)
                skip = 0
                # of a csv file, which is one whatever it was converted into, rows count as items do
                yield Vectors(
                    source.name if converted else shown(name) or source.name,
                    done if converted else row,
                    values,
                )
                row, done, left = row + len(values), done + len(values), left - len(values)
                if not left:
                    break


def _csv_blocks(
    source: Path, spec: VectorInput, columns: Columns, delimiter: str
) -> Iterator[Block]:
    at_once = max(1, _CELLS_AT_ONCE // spec.features)
    first = 0
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = tuple(cell.strip() for cell in next(reader))
        order = [header.index(name) for name in columns.readings]
        for rows, lines in records(source, reader, len(header), at_once):
            table = Table(header, rows, lines, first, NOUN)
            try:
                cells = pick_columns(table, order, spec.features)
                values = numbers(table, cells, order, lambda j: feature_label(spec, j))
            except InvalidInput as error:
                raise InvalidInput(f"{source}: {error}", error.errors) from error
            yield Block(values, None, None)
            first += len(rows)
