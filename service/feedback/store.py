"""Where answers and labels are kept: the one interface, and the file behind it."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from service.feedback.records import Answered, Label
from service.feedback.sqlite_file import SqliteFile


class FeedbackStore(Protocol):
    """Answers for a while, labels for good. Everything raises ``Unavailable`` where it cannot."""

    async def add_answers(self, answers: Sequence[Answered]) -> None:
        """These are remembered."""

    async def add_label(self, label: Label) -> None:
        """The label is durable; one that the same item had is gone."""

    async def find(self, request_id: str) -> Answered | None:
        """The last answer to a request of this id that is remembered."""

    async def answers(self, model: str, version: int, since_ns: int) -> list[Answered]:
        """The newest answers of a model version since a moment, as many as are remembered."""

    async def labels(
        self, after: int, limit: int, model: str | None = None, version: int | None = None
    ) -> list[tuple[int, Label]]:
        """Labels in the order in which they were given, with what ``after`` goes on from; fewer
        than ``limit`` only at the end.
        """

    async def close(self) -> None:
        """Nothing is open."""


class FileStore:
    """A ``SqliteFile``, used from threads: one for what is written, others for what is read."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._writer = ThreadPoolExecutor(1, "feedback")

    async def add_answers(self, answers: Sequence[Answered]) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._file.add_answers, answers)

    async def add_label(self, label: Label) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._file.add_label, label)

    async def find(self, request_id: str) -> Answered | None:
        return await asyncio.to_thread(self._file.find, request_id)

    async def answers(self, model: str, version: int, since_ns: int) -> list[Answered]:
        return await asyncio.to_thread(self._file.answers, model, version, since_ns)

    async def labels(
        self, after: int, limit: int, model: str | None = None, version: int | None = None
    ) -> list[tuple[int, Label]]:
        return await asyncio.to_thread(self._file.labels, after, limit, model, version)

    async def close(self) -> None:
        await asyncio.to_thread(self._writer.shutdown)
        self._file.close()
