"""Where the rows of a dataset of parquet files are: file by file, row group by row group."""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from service.contract.errors import InvalidInput
from training.bulk.listing import Listed


class Group(NamedTuple):
    """A row group."""

    file: int
    number: int
    rows: int


class Piece(NamedTuple):
    """Rows [first, end) of a row group."""

    group: Group
    first: int
    end: int
    row: int
    """The number of the first of them in its file."""


class Layout:
    """The rows of several files as one sequence."""

    def __init__(self, names: Sequence[bytes], groups: Sequence[Group]) -> None:
        self.names, self.groups = tuple(names), tuple(groups)
        self._begins = np.array([0, *accumulate(group.rows for group in groups)])
        self.rows = int(self._begins[-1])
        self._first_of_file: dict[int, int] = {}
        for group, begin in zip(groups, self._begins[:-1].tolist(), strict=True):
            self._first_of_file.setdefault(group.file, begin)

    @classmethod
    def of(cls, source: Path, files: list[Listed]) -> tuple[Self, list[pa.Schema]]:
        """The layout and the schema of each file.

        Raises:
            InvalidInput: a file is no parquet file, or there is none.
        """
        if not files:
            raise InvalidInput(f"{source}: holds no parquet file")
        groups: list[Group] = []
        schemas: list[pa.Schema] = []
        for i, file in enumerate(files):
            path = place(source, file.name)
            try:
                with pq.ParquetFile(path) as opened:
                    about = opened.metadata
                    schemas.append(opened.schema_arrow)
                    sizes = (about.row_group(g).num_rows for g in range(about.num_row_groups))
                    groups += [Group(i, g, rows) for g, rows in enumerate(sizes)]
            except (OSError, pa.ArrowInvalid) as error:
                raise InvalidInput(f"{path}: not a readable parquet file ({error})") from error
        return cls([file.name for file in files], groups), schemas

    def write(self, path: Path) -> None:
        """Kept beside the results, for those who score parts."""
        schema = pa.schema(
            [(field, pa.int64()) for field in Group._fields],
            metadata={"names": json.dumps([name.hex() for name in self.names])},
        )
        rows = [group._asdict() for group in self.groups]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What ``write`` wrote."""
        table = pq.read_table(path)
        names = json.loads(table.schema.metadata[b"names"])
        groups = [Group(**row) for row in table.to_pylist()]
        return cls([bytes.fromhex(name) for name in names], groups)

    def pieces(self, first: int, end: int) -> Iterator[Piece]:
        """Rows [first, end) of the sequence, row group by row group."""
        begins = self._begins
        for i in range(int(np.searchsorted(begins[1:], first, side="right")), len(self.groups)):
            group, begin = self.groups[i], int(begins[i])
            if begin >= end:
                return
            low, high = max(first - begin, 0), min(end - begin, group.rows)
            if low < high:
                yield Piece(group, low, high, begin + low - self._first_of_file[group.file])


def place(source: Path, name: bytes) -> Path:
    """The path of a file of a dataset, or of the dataset that is a file itself."""
    return source / os.fsdecode(name) if name else source
