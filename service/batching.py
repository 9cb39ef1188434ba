"""Admission and dynamic batching: who is let in, what is scored together, on which thread.

    admit ─> queue of (scorer, maps) ─> batch of several requests ─> one thread: fill, score, finish

A request is admitted when its items fit in the model's bound, else refused at once. Its share then
waits in a queue. As soon as one of ``concurrency`` slots is free, the shares at the head of a queue
(queues take turns) become a batch: each writes its items into its rows, all are scored in one call,
each makes its own answer from its own rows. While slots are busy batches grow by themselves, so
waiting on purpose (``batch_max_delay_s``) is for accelerators. A share whose client went away or
whose deadline passed is dropped before it costs anything; one that fails takes no other with it.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import perf_counter
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float32
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.contract.errors import DetectorFailure, Overloaded
from service.decoding.images import SMALL_BYTES, SMALL_PIXELS, NotSmallError
from service.interruption import Interruption
from service.scoring import Scorer, Scores
from service.telemetry import Telemetry

T = TypeVar("T")
PictureFill = Callable[[np.ndarray, dict[str, float], int | None], int]
"""A ``Fill`` that raises ``NotSmallError`` before decoding more pixels than the last argument."""
Fill = Callable[[np.ndarray, dict[str, float]], int]
"""Writes items into rows, adds the seconds it took by phase, and says how many rows it used."""
_WATCH_AFTER_S = 0.05
_QUICK_S, _QUICK_BYTES = 0.003, 16 * 1024


class Share:
    """What one request adds to a batch, and what it makes of its part of the scores."""

    __slots__ = ("asked", "error", "fill", "finish", "future", "items", "quick", "result", "rows")

    def __init__(
        self,
        items: int,
        fill: Fill,
        finish: Callable[[Scores], Any],
        future: "asyncio.Future[Any]",
        *,
        quick: bool,
    ) -> None:
        self.items = items
        self.quick = quick
        self.fill = fill
        self.finish = finish
        self.future = future
        self.asked = perf_counter()
        self.rows = 0
        self.result: Any = None
        self.error: BaseException | None = None


class _Queue:
    """Shares of one scorer that wait, oldest first."""

    def __init__(self, scorer: Scorer, *, maps: bool) -> None:
        self.scorer = scorer
        self.maps = maps
        self.shares: deque[Share] = deque()
        self.items = 0

    def add(self, share: Share) -> None:
        self.shares.append(share)
        self.items += share.items

    def take(self, most: int) -> list[Share]:
        """The oldest shares whose requests still wait: at most ``most`` items, or one share."""
        taken: list[Share] = []
        room = most
        while self.shares and (self.shares[0].items <= room or not taken):
            share = self.shares.popleft()
            self.items -= share.items
            if not share.future.done():
                taken.append(share)
                room -= share.items
        return taken


class Admission:
    """One per process; used from its event loop only."""

    def __init__(
        self,
        concurrency: int,
        max_items: int,
        telemetry: Telemetry,
        *,
        batch_max_size: int = 64,
        batch_max_delay_s: float = 0.0,
    ) -> None:
        self._batches = ThreadPoolExecutor(concurrency, thread_name_prefix="batch")
        # large bodies are decoded, and large answers encoded, without taking a batch's place
        self._apart = ThreadPoolExecutor(concurrency, thread_name_prefix="apart")
        self._concurrency = self._slots = concurrency
        self._max_items = max_items
        self._admitted: Counter[str] = Counter()
        self._telemetry = telemetry
        self._batch_max_size = batch_max_size
        self._batch_max_delay_s = batch_max_delay_s
        self._queues: dict[tuple[int, bool], _Queue] = {}
        self._alone_s: WeakKeyDictionary[Scorer, float] = WeakKeyDictionary()
        self._gathering = False
        self._arrived = self._taken = 0
        """Shares since the beginning; their difference is what waits."""

    @property
    def busy(self) -> bool:
        """Whether every slot is taken, or something waits for one."""
        return not self._slots or bool(self._queues)

    def check_room(self, model: str, items: int = 1) -> None:
        """Nothing, where ``items`` more would be admitted now.

        Raises:
            Overloaded: that many more would be too many in progress.
        """
        admitted = self._admitted[model]
        if admitted and admitted + items > self._max_items:
            raise Overloaded(
                f"{admitted} items of {model} are in progress and {items} more would exceed "
                f"{self._max_items} (ANOMALY_QUEUE_MAX_ITEMS)"
            )

    def admit(self, model: str, items: int, receive: Receive | None = None) -> "_Admitted":
        """A context manager: room for ``items`` of a model within; one request alone always fits.

        Args:
            model: whose room it is.
            items: images, or 1 for a recording.
            receive: of the request, whose body was read: the block, in a task, ends when its
                client goes away, and what it waits for is never scored.

        Raises:
            Overloaded: see ``check_room``.
            ClientDisconnect: from the block, when the client went away.
        """
        self.check_room(model, items)
        return _Admitted(self, model, items, receive)

    def count(self, model: str, change: int) -> None:
        """So many items more, or fewer, of a model are in progress."""
        admitted = self._admitted[model] = self._admitted[model] + change
        if not admitted:  # else told once a batch, which is often enough and costs less
            self._telemetry.queue_depth(model, 0)

    async def run(self, model: str, work: Callable[[], T]) -> T:
        """What ``work`` returns, computed in a thread; the wait for one counts as ``queue``."""
        asked = perf_counter()

        def timed() -> T:
            self._telemetry.phases(model, {"queue": perf_counter() - asked})
            return work()

        loop = asyncio.get_running_loop()
        running = self._apart.submit(timed)
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            # the answer is not wanted any more, but a thread is at it: it counts until it ends
            if not running.cancel() and not running.done():
                self.count(model, 1)
                running.add_done_callback(lambda _: self._ended(loop, model))
            raise

    def _ended(self, loop: asyncio.AbstractEventLoop, model: str) -> None:
        with suppress(RuntimeError):  # the loop has ended before
            loop.call_soon_threadsafe(self.count, model, -1)

    async def score(self, scorer: Scorer, x: Float32[np.ndarray, "N ..."], *, maps: bool) -> Scores:
        """Scores of prepared items, batched with those of other requests.

        Raises:
            DetectorFailure: a runtime failed, or gave something that is not a number.
        """

        def fill(rows: np.ndarray, _phases_s: dict[str, float]) -> int:
            rows[:] = x
            return len(x)

        return await self.batch(scorer, len(x), fill, lambda scores: scores, maps=maps)

    async def batch(
        self,
        scorer: Scorer,
        items: int,
        fill: Fill,
        finish: Callable[[Scores], T],
        *,
        maps: bool,
        quick: bool = False,
    ) -> T:
        """What ``finish`` makes of the scores of the items that ``fill`` wrote.

        Both run in a thread, ``fill`` with this request's rows of the batch; it returns how many
        of them it used (the first ones), which may be fewer than ``items``.

        Args:
            scorer: scores the batch; only shares of the same one are batched.
            items: at most so many rows.
            fill: writes prepared items; what it raises fails this request alone.
            finish: gets the scores of exactly the rows that were used.
            maps: whether residual maps are computed.
            quick: ``fill`` and ``finish`` are known to take next to no time.

        Raises:
            DetectorFailure: a runtime failed, or gave something that is not a number.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        key = (id(scorer), maps)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(scorer, maps=maps)
        queue.add(Share(items, fill, finish, future, quick=quick))
        self._arrived += 1
        self._dispatch_soon(loop)
        return await future

    async def pictures(
        self,
        scorer: Scorer,
        items: int,
        fill: PictureFill,
        finish: Callable[[Scores], T],
        *,
        maps: bool,
        body_bytes: int,
        apart: bool = False,
    ) -> T:
        """``batch`` for pictures; large ones are decoded, and their answer made, apart from it, so
        that no request waits for the pictures of another.

        Args:
            scorer, items, fill, finish, maps: see ``batch``.
            body_bytes: of all of them.
            apart: ``finish`` takes so long that nobody else is to wait for it.

        Raises:
            InputError: what ``fill`` raised.
            DetectorFailure: see ``batch``.
        """
        if body_bytes <= SMALL_BYTES and not apart:
            try:
                return await self.batch(
                    scorer,
                    items,
                    lambda rows, phases_s: fill(rows, phases_s, SMALL_PIXELS),
                    finish,
                    maps=maps,
                    quick=body_bytes <= _QUICK_BYTES,
                )
            except NotSmallError:
                pass
        name = scorer.manifest.name
        x = np.empty((items, *scorer.shape), dtype=np.float32)

        def fill_apart() -> int:
            phases_s: dict[str, float] = {}
            used = fill(x, phases_s, None)
            self._telemetry.phases(name, phases_s)
            return used

        used = await self.run(name, fill_apart)
        scores = await self.score(scorer, x[:used], maps=maps)

        def finish_apart() -> T:
            with self._telemetry.phase(name, "encode"):
                return finish(scores)

        return await self.run(name, finish_apart)

    def _dispatch_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once a turn of the loop has brought nothing new: requests that come together, after a
        batch was answered say, are scored together.
        """
        if not self._gathering:
            self._gathering = True
            loop.call_soon(self._gather, loop, self._arrived)

    def _gather(self, loop: asyncio.AbstractEventLoop, before: int) -> None:
        if self._arrived != before and self._arrived - self._taken < self._batch_max_size:
            loop.call_soon(self._gather, loop, self._arrived)
        else:
            self._gathering = False
            self._dispatch(loop)

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        now, taken = perf_counter(), False
        for key in list(self._queues):
            if not self._slots:
                return
            queue = self._queues.pop(key)  # and to the end of the row, if anything is left
            wait_s = self._wait_s(queue, now)
            if wait_s > 0:
                self._queues[key] = queue
                loop.call_later(wait_s, self._dispatch_soon, loop)
                continue
            waiting = len(queue.shares)
            shares = queue.take(self._batch_max_size)
            self._taken += waiting - len(queue.shares)
            if queue.shares:
                self._queues[key] = queue
            if shares:
                taken = True
                name = queue.scorer.manifest.name
                self._telemetry.queue_depth(name, self._admitted[name])
                self._slots -= 1
                if self._is_quick(queue.scorer, shares):
                    self._work(queue.scorer, queue.maps, shares)
                    self._done(loop, shares)
                else:
                    self._batches.submit(self._work_apart, loop, queue.scorer, queue.maps, shares)
        if taken and self._queues:
            self._dispatch_soon(loop)

    def _is_quick(self, scorer: Scorer, shares: list[Share]) -> bool:
        """Whether a lone item is scored in less time than two threads take to pass it on and back;
        the event loop does not notice, and no other request waits.
        """
        first, idle = shares[0], self._slots == self._concurrency - 1
        alone = len(shares) == 1 and first.items == 1 and first.quick and idle
        return alone and self._alone_s.get(scorer, _QUICK_S) < _QUICK_S

    def _wait_s(self, queue: _Queue, now: float) -> float:
        if not self._batch_max_delay_s or queue.items >= self._batch_max_size:
            return 0.0
        return queue.shares[0].asked + self._batch_max_delay_s - now

    def _work_apart(
        self, loop: asyncio.AbstractEventLoop, scorer: Scorer, maps: bool, shares: list[Share]
    ) -> None:
        """``_work`` in a thread of its own."""
        self._work(scorer, maps, shares)
        loop.call_soon_threadsafe(self._done, loop, shares)

    def _work(self, scorer: Scorer, maps: bool, shares: list[Share]) -> None:
        """The batch from beginning to end; errors go to the shares they belong to."""
        try:
            self._score_shares(scorer, shares, maps=maps)
        except BaseException as error:  # whatever it was, nobody may wait for ever
            for share in shares:
                share.error = share.error or error

    def _done(self, loop: asyncio.AbstractEventLoop, shares: list[Share]) -> None:
        self._slots += 1
        if self._queues:
            self._dispatch_soon(loop)
        for share in shares:
            if share.future.done():
                continue
            if share.error is not None:
                share.future.set_exception(share.error)
            else:
                share.future.set_result(share.result)

    def _score_shares(self, scorer: Scorer, shares: list[Share], *, maps: bool) -> None:
        name, telemetry = scorer.manifest.name, self._telemetry
        started = perf_counter()
        telemetry.queued(name, [started - share.asked for share in shares])
        x = np.empty((sum(s.items for s in shares), *scorer.shape), np.float32)
        used = 0
        phases_s: dict[str, float] = {}
        for share in shares:
            try:
                share.rows = share.fill(x[used : used + share.items], phases_s)
                used += share.rows
            except Exception as error:
                share.error = error
        scored = [share for share in shares if share.rows]
        if not scored:
            telemetry.phases(name, phases_s)
            for share in shares:  # several files, all of them broken
                self._finish(share, scorer.score(x[:0], maps=maps))
            return
        try:
            scores = scorer.score(x[:used], maps=maps)
            all_finite = scores.finite
            telemetry.batch(name, used)
        except Exception as error:
            if len(scored) == 1:
                scored[0].error = error
                return
            for share in scored:  # one of them may be what the runtime stumbles on
                self._score_shares(scorer, [share], maps=maps)
            return
        at = 0
        began = perf_counter()
        for share in shares:
            part = scores.part(at, at + share.rows)
            if all_finite or part.finite:
                self._finish(share, part)
            else:
                share.error = DetectorFailure(f"{name}: a raw score or residual is not finite")
            at += share.rows
        phases_s |= scores.phases_s
        phases_s["encode"] = perf_counter() - began
        telemetry.phases(name, phases_s)
        if used == 1:
            before, now = self._alone_s.get(scorer, _QUICK_S), perf_counter() - started
            # at once up: one slow picture is enough to go back to threads; and down by halves
            self._alone_s[scorer] = max(now, (before + now) / 2)

    @staticmethod
    def _finish(share: Share, scores: Scores) -> None:
        if share.error is not None:
            return
        try:
            share.result = share.finish(scores)
        except Exception as error:
            share.error = error

    def close(self) -> None:
        """No further work starts; work in hand ends, but is not waited for."""
        self._batches.shutdown(wait=False, cancel_futures=True)
        self._apart.shutdown(wait=False, cancel_futures=True)


class _Admitted:
    """See ``Admission.admit``. The client is looked after once the block has taken a while only,
    as most answers are there sooner.
    """

    __slots__ = ("_admission", "_gone", "_items", "_model", "_receive", "_timer", "_watcher")

    def __init__(
        self, admission: Admission, model: str, items: int, receive: Receive | None
    ) -> None:
        self._admission, self._model, self._items = admission, model, items
        self._receive = receive
        self._gone: Interruption | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._admission.count(self._model, self._items)
        if self._receive is not None:
            self._gone = Interruption()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_WATCH_AFTER_S, self._begin, loop, self._gone)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._admission.count(self._model, -self._items)
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone is not None and self._gone.caused(kind):
            raise ClientDisconnect from error

    def _begin(self, loop: asyncio.AbstractEventLoop, gone: Interruption) -> None:
        self._watcher = loop.create_task(self._watch(gone))

    async def _watch(self, gone: Interruption) -> None:
        assert self._receive is not None
        while (await self._receive())["type"] != "http.disconnect":
            pass
        gone.interrupt()
