"""Images in files of a folder, or in a column of parquet files."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from service.contract.errors import InputError, InputTooLarge, InvalidInput
from training.bulk.layout import Layout, place
from training.bulk.listing import INPUT, Listed, read_listing, shown

_MAX_FILE_BYTES = 1 << 28
_AT_ONCE = 32


class Sent(NamedTuple):
    """An image as it is stored, or why it could not even be read."""

    path: str | None
    row: int | None
    data: bytes | InputError


def files_in_folder(source: Path, out: Path, first: int, end: int) -> Iterator[Sent]:
    """Files ``first`` to ``end`` of the listing."""
    for file in read_listing(out / INPUT, first, end):
        yield Sent(file.shown, None, _read(source, file))


def _read(source: Path, file: Listed) -> bytes | InputError:
    if file.bytes < 0:
        return InvalidInput("not a file that can be read (a pipe, or a link to nothing)")
    if file.bytes > _MAX_FILE_BYTES:
        return InputTooLarge(f"{file.bytes} bytes; allowed: {_MAX_FILE_BYTES}")
    try:
        return place(source, file.name).read_bytes()
    except OSError as error:
        return InvalidInput(f"cannot be read ({error.strerror})")


def cells_in_parquet(source: Path, out: Path, column: str, first: int, end: int) -> Iterator[Sent]:
    """Cells ``first`` to ``end`` of a column of encoded images, streamed through memory."""
    layout = Layout.read(out / INPUT)
    for piece in layout.pieces(first, end):
        name = layout.names[piece.group.file]
        path = place(source, name)
        row, skip, left = piece.row, piece.first, piece.end - piece.first
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as opened:
            leaf = column if not _is_struct(opened.schema_arrow, column) else f"{column}.bytes"
            batches = opened.iter_batches(_AT_ONCE, row_groups=[piece.group.number], columns=[leaf])
            for batch in batches:
                if skip >= len(batch):
                    skip -= len(batch)
                    continue
                cells = batch.column(0).slice(skip, left)
                skip = 0
                if pa.types.is_struct(cells.type):
                    cells = pc.struct_field(cells, "bytes")
                for cell in cells.to_pylist():
                    missing = InvalidInput("the cell is empty")
                    yield Sent(shown(name) or path.name, row, cell or missing)
                    row += 1
                left -= len(cells)
                if not left:
                    break


def image_column(source: Path, schemas: list[pa.Schema], asked: str | None) -> str:
    """The column that holds images: binary, or a struct with a binary member ``bytes``.

    Raises:
        InvalidInput: it is not in every file, or there are none or several and none was named.
    """
    fitting = [field.name for field in schemas[0] if _holds_bytes(field.type)]
    if asked is None and len(fitting) != 1:
        listed = ", ".join(fitting) or "none"
        raise InvalidInput(
            f"{source}: name the column of images with --column; columns of bytes: {listed}"
        )
    column = asked or fitting[0]
    for schema in schemas:
        if column not in schema.names or not _holds_bytes(schema.field(column).type):
            raise InvalidInput(
                f"{source}: not every file has a column {column!r} of bytes (or of a struct with a "
                f"member bytes); columns of bytes in the first file: {', '.join(fitting) or 'none'}"
            )
    return column


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_struct(schema: pa.Schema, column: str) -> bool:
    return pa.types.is_struct(schema.field(column).type)
