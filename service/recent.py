"""The last values of each key, over all processes that serve together.

Each process writes into rings of its own, so that adding a value waits for no other process;
whoever looks reads the rings of all and takes the newest. With a folder, a ring is a small file
mapped into memory, ``<place>+<key>``. A process holds a place by a lock that ends with it; the one
begun after it takes the place that is free and goes on with its files, so that there are never more
of them than processes at a time, and what a dead process saw counts until newer values come.
"""

import fcntl
import logging
import mmap
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from threading import Lock
from time import time
from typing import Final

import numpy as np
from jaxtyping import Float64

log = logging.getLogger(__name__)

Key = tuple[str, ...]
_RECORD: Final = Struct("=dd")  # seconds since 1970, value
_TICK_S: Final = 1e-6
_BETWEEN: Final = "+"  # in no name of a model, version or source
_LOCKED: Final = "lock"


class Recent:
    """The last ``size`` values of each key; safe to use from any thread."""

    def __init__(self, size: int, folder: Path | None = None) -> None:
        """Nothing is kept yet, but what a process before this one left in ``folder``.

        Args:
            size: how many values a key has at most.
            folder: shared by the processes that serve together; None for one process alone.
        """
        self._size, self._folder = size, folder
        self._rings: dict[Key, _Ring] = {}
        self._lock, self._claims = Lock(), Lock()
        self._now = 0.0
        self._place = ""
        self._handle = -1
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._take_place(folder)

    def add(self, key: Key, values: Iterable[float]) -> None:
        """These values are the newest of ``key``."""
        ring = self._rings.get(key) or self._open(key)
        with self._lock:
            now = max(time(), self._now)
            for value in values:
                now += _TICK_S  # no two of a process are of one time: a ring has one newest
                ring.write(now, value)
            self._now = now

    def claim(self, key: Key, most: int, besides: str) -> set[Key]:
        """The first ``most`` keys, of all processes, that differ from ``key`` in their last part at
        most; ``key`` is among them from now on, where there was room.

        Args:
            key: to be known.
            most: how many there may be.
            besides: a last part that needs no room and takes none.

        Raises:
            OSError: the folder cannot be used.
        """

        def rivals(keys: Iterable[Key]) -> set[Key]:
            return {
                k for k in keys if k[:-1] == key[:-1] and len(k) == len(key) and k[-1] != besides
            }

        with self._claimed():
            known = rivals([*self._files(), *list(self._rings)])
            if len(known) < most:
                self._open(key)
                known.add(key)
            return known

    def newest(self) -> dict[Key, Float64[np.ndarray, " m"]]:
        """The last values of every key, of all processes, oldest first."""
        found: dict[Key, list[bytes]] = defaultdict(list)
        for key, ring in list(self._rings.items()):
            if self._folder is None or ring.apart:
                found[key].append(ring.copy())
        for key, paths in self._files().items():
            for path in paths:
                try:
                    found[key].append(path.read_bytes())
                except FileNotFoundError:  # forgotten just now
                    continue
        return {key: self._last(parts) for key, parts in found.items()}

    def forget(self, key: Key) -> None:
        """Nothing is kept of this process's values of ``key``."""
        with self._lock:
            ring = self._rings.pop(key, None)
        if ring is not None and self._folder is not None:
            self._path(self._folder, key).unlink(missing_ok=True)

    def close(self) -> None:
        """The place is free for another process."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """No other thread and no other process is within."""
        with self._claims:
            if self._folder is None:
                yield
                return
            handle = os.open(self._folder / _LOCKED, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)  # gives the lock back

    def _last(self, parts: list[bytes]) -> Float64[np.ndarray, " m"]:
        whole = b"".join(part[: len(part) // _RECORD.size * _RECORD.size] for part in parts)
        records = np.frombuffer(whole, np.float64).reshape(-1, 2)
        records = records[records[:, 0] > 0]
        order = np.argsort(records[:, 0], kind="stable")[-self._size :]
        return records[order, 1]

    def _open(self, key: Key) -> "_Ring":
        with self._lock:
            if key not in self._rings:
                self._rings[key] = self._new_ring(key)
            return self._rings[key]

    def _new_ring(self, key: Key) -> "_Ring":
        size = self._size * _RECORD.size
        if self._folder is None:
            return _Ring(bytearray(size))
        try:
            return _Ring(_mapped(self._path(self._folder, key), size))
        except OSError as error:  # a full disk stops no score
            log.error("%s: only this process counts %s: %s", self._folder, " ".join(key), error)
            return _Ring(bytearray(size), apart=True)

    def _files(self) -> dict[Key, list[Path]]:
        found: dict[Key, list[Path]] = defaultdict(list)
        if self._folder is not None:
            for path in self._folder.iterdir():
                _, separated, key = path.name.partition(_BETWEEN)
                if separated:
                    found[tuple(key.split(_BETWEEN))].append(path)
        return found

    def _path(self, folder: Path, key: Key) -> Path:
        return folder / _BETWEEN.join((self._place, *key))

    def _take_place(self, folder: Path) -> None:
        number = 0
        while True:
            handle = os.open(folder / f"place-{number}", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                number += 1
            else:
                self._place, self._handle = str(number), handle
                return


class _Ring:
    """Records in a buffer, the newest over the oldest."""

    def __init__(self, buffer: bytearray | mmap.mmap, *, apart: bool = False) -> None:
        self.apart = apart
        """True where there should be a file and is none."""
        self._buffer = buffer
        self._end = len(buffer)
        times = np.frombuffer(bytes(buffer), np.float64)[::2]
        self._at = int(times.argmax() + 1) * _RECORD.size % self._end if times.any() else 0

    def write(self, now: float, value: float) -> None:
        at = self._at
        # at once: whoever reads meanwhile sees the record before or this one
        self._buffer[at : at + _RECORD.size] = _RECORD.pack(now, value)
        self._at = (at + _RECORD.size) % self._end

    def copy(self) -> bytes:
        return bytes(self._buffer)


def _mapped(path: Path, size: int) -> mmap.mmap:
    """The file, of this size, in memory."""
    with path.open("a+b") as file:
        if os.fstat(file.fileno()).st_size != size:
            file.truncate(0)
            try:
                file.write(bytes(size))  # a hole would be filled later, where a full disk is fatal
                file.flush()
            except OSError:
                path.unlink()
                raise
        return mmap.mmap(file.fileno(), size)
