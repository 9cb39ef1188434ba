"""Answers on their way into the store: taken at once, written behind the requests.

``remember`` appends to a queue of bounded length and returns; a task takes what has gathered twice
a second. What cannot be written is dropped, and told once: feedback on those answers will say that
they are not known, and no score is delayed or lost for it.
"""

import asyncio
import logging
from collections import deque
from contextlib import suppress
from time import monotonic, time_ns
from typing import Final

from service.contract.errors import Unavailable
from service.feedback.records import DIGEST_CHARS, Answered
from service.feedback.store import FeedbackStore

log = logging.getLogger(__name__)

EVERY_S: Final = 0.5
MAX_WAITING: Final = 10_000
"""Answers; what comes while so many wait drops the oldest of them."""
_AT_ONCE: Final = 2000
_PATIENCE_S: Final = 1.0
_ASK_AGAIN_S: Final = 0.25
_ENDING_S: Final = 2.0


class Memory:
    """What a process remembers of its answers; ``remember`` may be called from any thread."""

    def __init__(self, store: FeedbackStore, *, enabled: bool = True) -> None:
        """Nothing is remembered yet.

        Args:
            store: where it goes.
            enabled: False remembers nothing.
        """
        self.store, self.enabled = store, enabled
        self._waiting: deque[Answered] = deque(maxlen=MAX_WAITING)
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._flushing: set[asyncio.Task[None]] = set()
        self._lost = 0
        self._failure: Unavailable | None = None

    def remember(
        self, request_id: str, model: str, version: int, digest: str, facts: bytes
    ) -> None:
        """The answer will be known by the id of its request, before long.

        Not so without ``facts``: a service that remembers nothing put it into a cache they share.
        """
        if self.enabled and facts:
            digest = digest[:DIGEST_CHARS]
            answered = Answered(request_id, time_ns(), model, version, digest, facts)
            self._waiting.append(answered)

    async def find(self, request_id: str) -> Answered | None:
        """The last answer to a request of this id, of whatever process.

        Raises:
            Unavailable: the store cannot be used, or could not be when answers were last written.
        """
        await self.flush()
        until = monotonic() + _PATIENCE_S
        while True:  # another process writes it within a moment
            found = await self.store.find(request_id)
            if found is None and self._failure is not None:
                raise self._failure
            if found is not None or monotonic() >= until:
                return found
            await asyncio.sleep(_ASK_AGAIN_S)

    async def flush(self) -> None:
        """What waited when this was called is in the store, or was dropped.

        It goes on where whoever called it is interrupted: others' answers are on their way too.
        """
        flushing = asyncio.create_task(self._flush(), name="feedback flush")
        self._flushing.add(flushing)
        flushing.add_done_callback(self._flushing.discard)
        await asyncio.shield(flushing)

    async def _flush(self) -> None:
        async with self._writing:
            for _ in range(-(-len(self._waiting) // _AT_ONCE)):
                count = min(len(self._waiting), _AT_ONCE)
                await self._write([self._waiting.popleft() for _ in range(count)])

    def start(self) -> None:
        """From here on what is remembered is written."""
        if self.enabled:
            self._task = asyncio.create_task(self._keep_writing(), name="feedback")

    async def close(self) -> None:
        """What waited is written, as far as that takes no more than a moment."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_ENDING_S):
                await self.flush()
        for flushing in self._flushing:
            flushing.cancel()
        await asyncio.gather(*self._flushing, return_exceptions=True)
        await self.store.close()

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            if self._waiting:
                await self.flush()

    async def _write(self, batch: list[Answered]) -> None:
        try:
            await self.store.add_answers(batch)
        except Exception as error:  # a bug here must not end the task
            if not self._lost:
                log.warning("answers are not remembered, so feedback cannot name them: %s", error)
            if not isinstance(error, Unavailable):
                log.exception("answers could not be remembered")
                error = Unavailable("answers could not be remembered; the log holds the cause")
            self._lost += len(batch)
            self._failure = error
        else:
            if self._lost:
                log.warning("answers are remembered again; %d were not", self._lost)
            self._lost, self._failure = 0, None
