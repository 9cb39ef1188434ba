"""What was measured, cell by cell, in one JSON file that several commands may add to."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Record = dict[str, Any]
"""A cell as it is stored. Always: row, case, seed, digest, state; where measured also metrics (an
open set of figures by name), by_class, items, budget, seconds, device, versions, commit."""


class Results:
    """The cells of one table; each is stored as soon as it is measured."""

    def __init__(self, path: Path, locks: Path) -> None:
        """A table's results.

        Args:
            path: the JSON file; need not be there yet.
            locks: a folder for the lock, beside which no results lie.
        """
        self.path = path
        self._lock = locks / f"{path.stem}.lock"

    def read(self) -> dict[str, Record]:
        """The cells by their key."""
        if not self.path.exists():
            return {}
        cells: dict[str, Record] = json.loads(self.path.read_text())["cells"]
        return cells

    def put(self, key: str, record: Record) -> None:
        """One cell more, or anew; what other commands stored meanwhile is kept."""
        with locked(self._lock):
            cells = self.read() | {key: record}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(".new")
            ordered = dict(sorted(cells.items()))
            temporary.write_text(json.dumps({"cells": ordered}, indent=1) + "\n")
            temporary.replace(self.path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Whoever else locks the same file waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
