"""What there is to score: looked at once, before anything is scored."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from service.contract.errors import InvalidInput
from service.contract.manifest import Input, SeriesInput, VectorInput
from training.bulk.conversion import LABEL, ROWS, convert, csv_blocks, csv_columns, parquet_blocks
from training.bulk.layout import Layout, place
from training.bulk.listing import (
    INPUT,
    PARQUET,
    Fingerprint,
    Listed,
    parquet_files,
    walk,
    write_listing,
)
from training.bulk.pictures import image_column
from training.bulk.plan import Kind
from training.bulk.rows import (
    RECORDINGS,
    Columns,
    Recordings,
    Segment,
    check_types,
    is_text,
    segments_of,
    write_segments,
)
from training.bulk.vectors import check_parquet, prepare_csv

CSV = (".csv", ".tsv", ".txt")
_SHORT, _MANY = 1000, 1000
"""Stretches of one recording: more than so many, shorter than so many rows, are sorted first."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """The input as it is now."""

    path: Path
    kind: Kind
    fingerprint: str
    files: int
    column: str | None
    """Of images, or the name of recordings."""


def check_places(path: Path, out: Path) -> None:
    """Nothing, where there is an input and the results do not lie in it.

    Raises:
        InvalidInput: there is none, or they do.
    """
    if not path.exists():
        raise InvalidInput(f"{path}: no such file or folder")
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise InvalidInput(f"{out} lies in {path}: results would be taken for input")


def survey(
    path: Path,
    out: Path,
    spec: Input,
    column: str | None,
    group_by: str | None,
) -> Source:
    """The input, its files fingerprinted; those of a folder of images are listed in ``out``.

    Raises:
        InvalidInput: it is nothing that such a model scores.
    """
    if isinstance(spec, SeriesInput):
        if column is not None:
            raise InvalidInput("--column names a column of images; this model scores rows")
        return _survey_rows(path, group_by, "rows")
    if isinstance(spec, VectorInput):
        if column is not None or group_by is not None:
            raise InvalidInput("--column and --group-by are for images and rows; this model scores "
                               "vectors")  # fmt: skip
        return _survey_rows(path, None, "vectors")
    if group_by is not None:
        raise InvalidInput("--group-by names recordings among rows; this model scores images")
    if path.is_dir() and not _is_dataset(path):
        if column is not None:
            raise InvalidInput(f"--column: {path} holds files of images, no parquet files")
        fingerprint, files = write_listing(path, out / f".{INPUT}")
        return Source(path, "folder of images", fingerprint, files, None)
    if not path.is_dir() and not path.name.endswith(PARQUET):
        raise InvalidInput(f"{path}: expected a folder of images, or parquet with a column of them")
    files_, fingerprint = _dataset(path)
    _, schemas = Layout.of(path, files_)
    return Source(
        path, "parquet of images", fingerprint, len(files_), image_column(path, schemas, column)
    )


def _survey_rows(path: Path, group_by: str | None, kind: Literal["rows", "vectors"]) -> Source:
    if path.is_dir() or path.name.endswith((*PARQUET, *CSV)):
        files, fingerprint = _dataset(path)
        if not files:
            raise InvalidInput(
                f"{path}: holds no parquet file; this model scores {kind}, and a folder of images "
                "needs a model of images"
            )
        return Source(path, kind, fingerprint, len(files), group_by)
    raise InvalidInput(f"{path}: expected csv, parquet or a folder of parquet files")


def _is_dataset(path: Path) -> bool:
    """Whether the first file in a folder is parquet."""
    first = next(walk(path), None)
    return first is not None and first.shown.endswith(PARQUET)


def _dataset(path: Path) -> tuple[list[Listed], str]:
    files = parquet_files(path)
    fingerprint = Fingerprint()
    for file in files:
        fingerprint.add(file)
    return files, fingerprint.hex()


def prepare(
    source: Source, out: Path, spec: Input, stride: int | None, say: Say
) -> tuple[int, tuple[str, ...]]:
    """How many items there are, and what is to be told; what parts are read by is in ``out``.

    Raises:
        InvalidInput, MalformedInput: files cannot be read, or are not what such a model scores.
    """
    if source.kind == "folder of images":
        (out / f".{INPUT}").replace(out / INPUT)
        return source.files, ()
    if source.kind == "parquet of images":
        layout, _ = Layout.of(source.path, parquet_files(source.path))
        layout.write(out / INPUT)
        return layout.rows, ()
    if isinstance(spec, VectorInput):
        return _prepare_vectors(source.path, out, spec)
    assert isinstance(spec, SeriesInput)
    return _prepare_rows(source, out, spec, stride or spec.stride, say)


def _prepare_rows(
    source: Source, out: Path, spec: SeriesInput, stride: int, say: Say
) -> tuple[int, tuple[str, ...]]:
    path, group_by = source.path, source.column
    shutil.rmtree(out / ROWS, ignore_errors=True)
    if not path.is_dir() and path.name.endswith(CSV):
        columns, _ = csv_columns(path, spec, group_by)
        found, blocks = None, csv_blocks(path, spec, group_by)
    else:
        layout, columns, texts = _check_rows(path, spec, group_by)
        found = None if texts else _segments_in_place(path, layout, group_by, say)
        blocks = parquet_blocks(path, layout, spec, group_by)
    if found is None:
        convert(blocks, [c.name for c in spec.columns], out, say)
        layout, _ = Layout.of(out / ROWS, parquet_files(out / ROWS))
        label = None if group_by is None else LABEL
        found = list(segments_of(out / ROWS, layout, label, say))
    layout.write(out / INPUT)
    write_segments(out, found)
    return Recordings(found, spec, stride).items, _notes(columns)


def _prepare_vectors(path: Path, out: Path, spec: VectorInput) -> tuple[int, tuple[str, ...]]:
    shutil.rmtree(out / ROWS, ignore_errors=True)
    if not path.is_dir() and path.name.endswith(CSV):
        layout, columns = prepare_csv(path, spec, out)
    else:
        layout, columns = check_parquet(path, spec)
    layout.write(out / INPUT)
    return layout.rows, _notes(columns)


def _notes(columns: Columns) -> tuple[str, ...]:
    return (f"ignored columns: {', '.join(columns.ignored)}",) if columns.ignored else ()


def _check_rows(
    path: Path, spec: SeriesInput, group_by: str | None
) -> tuple[Layout, Columns, bool]:
    """Where the rows are, which columns of the first file are read, and whether times are texts.

    Raises:
        InvalidInput: a file lacks columns, or they are of types that no rows have.
    """
    layout, schemas = Layout.of(path, parquet_files(path))
    chosen = [Columns.of(spec, schema.names, group_by) for schema in schemas]
    for schema, own, name in zip(schemas, chosen, layout.names, strict=True):
        check_types(place(path, name), schema, own)
    if len({own.time is None for own in chosen}) > 1:
        raise InvalidInput(f"{path}: some files have timestamps and some have none")
    pairs = zip(schemas, chosen, strict=True)
    texts = any(own.time is not None and is_text(s.field(own.time).type) for s, own in pairs)
    return layout, chosen[0], texts


def _segments_in_place(
    path: Path, layout: Layout, group_by: str | None, say: Say
) -> list[Segment] | None:
    """The stretches of the recordings; None where they are too many and too short."""
    most = max(_MANY, layout.rows // _SHORT)
    found = list(islice(segments_of(path, layout, group_by, say), most + 1))
    return found if len(found) <= most else None


def rows_folder(source: Path, out: Path) -> Path:
    """Where rows are read from: the input itself, or what it was converted into."""
    return out / ROWS if (out / ROWS).is_dir() else source


def forget_listing(out: Path) -> None:
    """The listing that ``survey`` made is gone."""
    (out / f".{INPUT}").unlink(missing_ok=True)


def forget(out: Path) -> None:
    """Nothing that an earlier ``prepare`` made is left in ``out``."""
    for name in (INPUT, RECORDINGS):
        (out / name).unlink(missing_ok=True)
    for name in (ROWS, f".{ROWS}"):
        shutil.rmtree(out / name, ignore_errors=True)
