"""What was measured, cell by cell, in one JSON file that several commands may add to."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from service.contract.errors import InvalidInput

Record = dict[str, Any]
"""A cell as it is stored. Always: row, case, seed, digest, state; where measured also fingerprint
(of the data), metrics (an open set of figures by name), by_class, items, budget, seconds, device,
versions, commit."""


class Results:
    """The cells of one table; each is stored as soon as it is measured."""

    def __init__(self, path: Path) -> None:
        """A table's results.

        Args:
            path: the JSON file; need not be there yet.
        """
        self.path = path

    def read(self) -> dict[str, Record]:
        """The cells by their key.

        Raises:
            InvalidInput: the file holds something else.
        """
        if not self.path.exists():
            return {}
        try:
            cells: dict[str, Record] = json.loads(self.path.read_text())["cells"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{self.path} holds no table's figures: give the table another name, or --results "
                "another folder"
            ) from error
        return cells

    def put(self, key: str, record: Record) -> None:
        """One cell more, or anew; what other commands stored meanwhile is kept."""
        with self.locked():
            cells = dict(sorted((self.read() | {key: record}).items()))
            write_whole(self.path, json.dumps({"cells": cells}, indent=1) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Commands that write into the same folder wait for each other, wherever they train.

        The folder itself is locked: no file for it lies among results.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def write_whole(path: Path, text: str) -> None:
    """A file written at once: whoever reads sees the old or the new one."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Whoever else locks the same file waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
