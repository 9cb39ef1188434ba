"""Admission: who is let in, and on which thread the numbers are made.

At most ``concurrency`` requests compute at once, in threads of their own; at most ``max_items``
items are in progress, further ones are refused at once instead of waiting for ever. ``score`` is
the one door to a scorer: what merges the items of several requests belongs behind it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from time import perf_counter
from typing import TypeVar

import numpy as np
from jaxtyping import Float32

from service.contract.errors import DeadlinePassed, DetectorFailure, Overloaded
from service.scoring import Scorer, Scores
from service.telemetry import Telemetry

T = TypeVar("T")


class Admission:
    """One per process; used from its event loop only."""

    def __init__(self, concurrency: int, max_items: int, telemetry: Telemetry) -> None:
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="score")
        self._max_items = max_items
        self._items = 0
        self._telemetry = telemetry

    @contextmanager
    def admit(self, model: str, items: int) -> Iterator[None]:
        """Room for ``items`` within the block; one request alone always fits.

        Raises:
            Overloaded: that many more would be too many in progress.
        """
        if self._items and self._items + items > self._max_items:
            raise Overloaded(
                f"{self._items} items are in progress and {items} more would exceed "
                f"{self._max_items}"
            )
        self._items += items
        self._telemetry.queue_depth(model, items)
        try:
            yield
        finally:
            self._items -= items
            self._telemetry.queue_depth(model, -items)

    async def run(self, model: str, work: Callable[[], T]) -> T:
        """What ``work`` returns, computed in a thread; the wait for one counts as ``queue``."""
        asked = perf_counter()

        def timed() -> T:
            self._telemetry.phases(model, {"queue": perf_counter() - asked})
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._threads, timed)

    async def score(self, scorer: Scorer, x: Float32[np.ndarray, "N ..."], *, maps: bool) -> Scores:
        """Scores of prepared items of one request.

        Raises:
            DetectorFailure: a runtime failed, or gave something that is not a number.
        """
        return await self.run(scorer.manifest.name, lambda: self.score_now(scorer, x, maps=maps))

    def score_now(self, scorer: Scorer, x: Float32[np.ndarray, "N ..."], *, maps: bool) -> Scores:
        """``score`` for code that already runs in one of the threads."""
        name = scorer.manifest.name
        scores = scorer.score(x, maps=maps)
        if not np.isfinite(scores.raw).all() or (
            scores.maps is not None and not np.isfinite(scores.maps).all()
        ):
            raise DetectorFailure(f"{name}: a raw score or residual is not finite")
        self._telemetry.batch(name, len(x))
        self._telemetry.phases(name, scores.phases_s)
        return scores

    def close(self) -> None:
        """No further work starts; work in hand ends."""
        self._threads.shutdown(wait=True, cancel_futures=True)


@asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """The block ends within ``seconds``; work that has not started by then never does.

    Raises:
        DeadlinePassed: it did not.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise DeadlinePassed(f"not done within {seconds:g} s") from error
