"""The files below a folder, in one order, without holding more than one folder's names."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from service.contract.errors import InvalidInput

INPUT = "_input.parquet"
"""Beside the results: the files, or the row groups, that are scored."""
PARQUET = (".parquet", ".pq")
_AT_ONCE = 8192
_SCHEMA = pa.schema([("name", pa.binary()), ("bytes", pa.int64()), ("changed_ns", pa.int64())])


class Listed(NamedTuple):
    """A file; ``bytes`` is -1 for what is none (a pipe, a link to nothing)."""

    name: bytes
    """Below the folder, as the system writes it."""
    bytes: int
    changed_ns: int

    @property
    def shown(self) -> str:
        return shown(self.name)


def shown(name: bytes) -> str:
    r"""A name as text; bytes that are no UTF-8 as ``\xff``."""
    return name.decode("utf-8", errors="backslashreplace")


def walk(root: Path) -> Iterator[Listed]:
    """Every file below ``root``, folder by folder, each in the order of its names.

    Names that begin with a dot are passed over. Links are followed, but not into a folder that one
    is in already.

    Raises:
        InvalidInput: a folder cannot be read.
    """
    yield from _walk(root, b"", frozenset())


def _walk(folder: Path, below: bytes, inside: frozenset[tuple[int, int]]) -> Iterator[Listed]:
    try:
        about = folder.stat()
        with os.scandir(os.fsencode(folder)) as entries:
            # not the entries, which keep six times as much
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise InvalidInput(f"{folder}: cannot be listed ({error.strerror})") from error
    here = (about.st_dev, about.st_ino)
    if here in inside:
        return
    for own, is_folder in found:
        if own.startswith(b"."):
            continue
        name, path = below + own, folder / os.fsdecode(own)
        if is_folder:
            yield from _walk(path, name + b"/", inside | {here})
            continue
        try:
            about = path.stat()
        except OSError:
            yield Listed(name, -1, 0)
            continue
        regular = stat.S_ISREG(about.st_mode)
        yield Listed(name, about.st_size if regular else -1, about.st_mtime_ns)


def single(path: Path) -> Listed:
    """A file that is named by itself."""
    about = path.stat()
    return Listed(b"", about.st_size, about.st_mtime_ns)


class Fingerprint:
    """sha256 of a listing, file by file."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.files = 0

    def add(self, file: Listed) -> None:
        self._sha.update(b"%s\0%d %d\n" % file)
        self.files += 1

    def hex(self) -> str:
        return self._sha.hexdigest()


def write_listing(root: Path, path: Path) -> tuple[str, int]:
    """Fingerprint and number of the files below ``root``, which are listed in ``path``."""
    fingerprint = Fingerprint()
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        some: list[Listed] = []
        for file in walk(root):
            fingerprint.add(file)
            some.append(file)
            if len(some) == _AT_ONCE:
                _flush(writer, some)
        _flush(writer, some)
    return fingerprint.hex(), fingerprint.files


def _flush(writer: pq.ParquetWriter, some: list[Listed]) -> None:
    if some:
        columns = [pa.array(values, field.type) for values, field in zip(zip(*some), _SCHEMA)]  # noqa: B905
        writer.write_table(pa.table(columns, schema=_SCHEMA))
        some.clear()


def read_listing(path: Path, first: int, end: int) -> list[Listed]:
    """Files ``first`` to ``end`` of a listing."""
    with pq.ParquetFile(path) as listing:
        groups = range(first // _AT_ONCE, -(-end // _AT_ONCE))
        table = listing.read_row_groups(list(groups))
    table = table.slice(first - groups.start * _AT_ONCE, end - first)
    return [Listed(*row.values()) for row in table.to_pylist()]


def parquet_files(source: Path) -> list[Listed]:
    """The parquet files of a dataset, in the order of their names; a file is its own dataset.

    Names that begin with an underscore or a dot are passed over, as other readers do.
    """
    if not source.is_dir():
        return [single(source)]
    return [
        file
        for file in walk(source)
        if file.shown.endswith(PARQUET) and not Path(file.shown).name.startswith("_")
    ]
