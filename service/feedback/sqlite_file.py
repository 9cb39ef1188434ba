"""One SQLite file of answers and labels, shared by the processes of one machine.

Write-ahead logging: readers and the one writer at a time do not wait for each other, and processes
take turns for up to ``_BUSY_S``. That needs shared memory, so the file may lie in a volume that
containers of one machine share, and not on a network file system. A label is on disk
(``synchronous=FULL``) when ``add_label`` returns; of answers the last moments may be lost with the
machine.

Many rows go in and out by one statement: each by itself would ask for Python's interpreter lock,
and so wait for, and hold up, the requests of a busy service.
"""

import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, time_ns
from typing import Final

import orjson

from service.contract.errors import Unavailable
from service.feedback.records import Answered, Label

log = logging.getLogger(__name__)

_VERSION: Final = 1
_BUSY_S: Final = 5.0
_TRIM_EVERY_S: Final = 30.0
_READ_AT_ONCE: Final = 2000
_ADD_AT_ONCE: Final = 250
_TABLES = f"""
CREATE TABLE answers(
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, at_ns INTEGER NOT NULL, model TEXT NOT NULL,
    version INTEGER NOT NULL, digest TEXT NOT NULL, items INTEGER NOT NULL, facts BLOB NOT NULL
);
CREATE INDEX answers_by_request ON answers(request_id);
CREATE TABLE labels(
    id INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL, scored_at_ns INTEGER NOT NULL,
    item INTEGER NOT NULL, model TEXT NOT NULL, version INTEGER NOT NULL, label TEXT NOT NULL,
    UNIQUE(request_id, scored_at_ns, item)
);
PRAGMA user_version = {_VERSION};
"""
_ADD = "INSERT INTO answers(request_id, at_ns, model, version, digest, items, facts) VALUES "
_ROW = "(?, ?, ?, ?, ?, json_array_length(CAST(? AS TEXT), '$[2]'), ?)"
# the oldest go: what is too old, and what has too many items after it
_FORGET_OLD = """
DELETE FROM answers WHERE id < coalesce(
    (SELECT id FROM answers WHERE at_ns >= ? ORDER BY id LIMIT 1),
    (SELECT max(id) + 1 FROM answers), 0)
"""
_FORGET_MANY = """
DELETE FROM answers WHERE id <= (
    SELECT max(id) FROM (SELECT id, sum(items) OVER (ORDER BY id DESC) AS newer FROM answers)
    WHERE newer > ?)
"""
_ANSWERS = """
SELECT min(id), sum(items),
       json_group_array(json_array(request_id, at_ns, model, version, digest, CAST(facts AS TEXT)))
FROM (SELECT * FROM answers
      WHERE id < ? AND model = ? AND version = ? AND at_ns >= ? ORDER BY id DESC LIMIT ?)
"""
_LABELS = """
SELECT id, label FROM labels
WHERE id > :after
  AND (:model IS NULL OR model = :model) AND (:version IS NULL OR version = :version)
ORDER BY id LIMIT :limit
"""


class SqliteFile:
    """Synchronous; safe to use from any thread. The file is made when something is first kept."""

    def __init__(self, path: Path, ttl_s: float = 7 * 86_400, max_items: int = 250_000) -> None:
        self.path = path
        self._ttl_ns, self._max_items = round(1e9 * ttl_s), max_items
        self._lock = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._next_trim = 0.0

    def add_answers(self, answers: Sequence[Answered]) -> None:
        """These are remembered, and the oldest forgotten where there are too many.

        Raises:
            Unavailable: the file cannot be written.
        """
        with self._writing() as db:
            db.execute("PRAGMA synchronous = NORMAL")
            for first in range(0, len(answers), _ADD_AT_ONCE):
                part = answers[first : first + _ADD_AT_ONCE]
                values = [v for a in part for v in (*a[:5], a.facts, a.facts)]
                db.execute(_ADD + ",".join([_ROW] * len(part)), values)
            if monotonic() >= self._next_trim:
                self._next_trim = monotonic() + _TRIM_EVERY_S
                db.execute(_FORGET_OLD, (time_ns() - self._ttl_ns,))
                db.execute(_FORGET_MANY, (self._max_items,))

    def add_label(self, label: Label) -> None:
        """The label is on disk; one that the same item had is gone.

        Raises:
            Unavailable: the file cannot be written; nothing was changed.
        """
        key = (label.request_id, label.scored_at_ns, label.index)
        with self._writing() as db:
            db.execute("PRAGMA synchronous = FULL")
            db.execute(
                "INSERT OR REPLACE INTO labels(request_id, scored_at_ns, item, model, version, "
                "label) VALUES (?, ?, ?, ?, ?, ?)",
                (*key, label.model, label.version, label.dump().decode()),
            )

    def find(self, request_id: str) -> Answered | None:
        """The last answer to a request of this id that is remembered.

        Raises:
            Unavailable: the file cannot be read.
        """
        with self._reading() as db:
            if db is None:
                return None
            row = db.execute(
                "SELECT request_id, at_ns, model, version, digest, facts FROM answers "
                "WHERE request_id = ? AND at_ns >= ? ORDER BY at_ns DESC LIMIT 1",
                (request_id, time_ns() - self._ttl_ns),
            ).fetchone()
        return None if row is None else Answered(*row)

    def answers(self, model: str, version: int, since_ns: int) -> list[Answered]:
        """The answers of a model version since a moment, newest first, until they have
        ``max_items`` items.

        Raises:
            Unavailable: the file cannot be read.
        """
        found: list[Answered] = []
        since_ns = max(since_ns, time_ns() - self._ttl_ns)
        before, items = 2**62, 0
        with self._reading() as db:
            while db is not None and items < self._max_items:
                where = (before, model, version, since_ns, _READ_AT_ONCE)
                least, more, rows = db.execute(_ANSWERS, where).fetchone()
                if least is None:
                    break
                before, items = least, items + more
                found += [
                    Answered(i, at, m, v, digest, facts.encode())
                    for i, at, m, v, digest, facts in orjson.loads(rows)
                ]
        return found

    def labels(
        self, after: int, limit: int, model: str | None = None, version: int | None = None
    ) -> list[tuple[int, Label]]:
        """Labels in the order in which they were given, with what ``after`` goes on from.

        Raises:
            Unavailable: the file cannot be read.
        """
        where = {"after": after, "limit": limit, "model": model, "version": version}
        with self._reading() as db:
            rows = [] if db is None else db.execute(_LABELS, where).fetchall()
        try:
            return [(number, Label.load(text)) for number, text in rows]
        except ValueError as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """No connection is open."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
            self._writer = None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A connection; its statements take effect together at the end of the block."""
        with self._lock:
            try:
                if self._writer is None:
                    self._writer = self._open()
                db = self._writer
                with db:
                    yield db
            except sqlite3.Error as error:
                if self._writer is not None:
                    self._writer.close()
                self._writer = None  # begun anew: the file may have been replaced
                raise self._unusable(error) from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection of its own; None where there is no file yet."""
        if not self.path.exists():
            yield None
            return
        db = None
        try:
            db = self._open(make=False)
            yield db if _form(db) else None
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        finally:
            if db is not None:
                db.close()

    def _open(self, *, make: bool = True) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=_BUSY_S, check_same_thread=False)
        try:
            if make and not _form(db):
                db.execute("PRAGMA journal_mode = WAL")
                with db:
                    db.execute("BEGIN IMMEDIATE")  # of several processes one makes the tables
                    if not _form(db):
                        for statement in _TABLES.strip().split(";\n"):
                            db.execute(statement)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _unusable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"feedback cannot be kept in {self.path}: {error}. ANOMALY_FEEDBACK_FILE names a file "
            f"in a folder that can be written and has room"
        )


def _form(db: sqlite3.Connection) -> int:
    """The form that the tables of a file have; 0 where there are none."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version not in (0, _VERSION):
        raise sqlite3.DatabaseError(f"written by another release, in form {version}")
    return int(version)
