"""Faults of the Redis that caches results and keeps streams: never a delay of more than 50 ms,
never another score, never an append that was acknowledged and is gone.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import servers
from callers import calling, words
from outcomes import Outcome, Pace

sys.path.append(str(servers.ROOT))
from tests.redis_server import RedisServer, redis_server

DELAY_MS, NOISE_MS = 50.0, 15.0
_DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def killed(pace: Pace) -> Outcome:
    return _fault("Redis killed (-9), started again", pace, RedisServer.kill, _start_again)


def paused(pace: Pace) -> Outcome:
    return _fault("Redis stopped (SIGSTOP), continued", pace, RedisServer.pause, RedisServer.go_on)


def full(pace: Pace) -> Outcome:
    return _fault("Redis full (noeviction, maxmemory reached)", pace, RedisServer.fill, _make_room)


def _start_again(redis: RedisServer) -> None:
    redis.start(*_DURABLE)


def _make_room(redis: RedisServer) -> None:
    with redis.client() as client:
        client.config_set("maxmemory", "0")


def _fault(
    what: str,
    pace: Pace,
    inject: Callable[[RedisServer], None],
    repair: Callable[[RedisServer], None],
) -> Outcome:
    folder = tempfile.TemporaryDirectory()
    with (
        folder as path,
        redis_server(Path(path), *_DURABLE) as redis,
        servers.service(redis_url=redis.url) as server,
        calling(server, 1, 0.01) as callers,
    ):
        stream = _Stream(server)
        start = time.monotonic()
        _append_for(stream, pace.seconds / 2)
        broken_at = time.monotonic()
        inject(redis)
        _append_for(stream, pace.seconds)
        repaired_at = time.monotonic()
        repair(redis)
        took = _until(lambda: stream.append() == 200, 15)
        kept = stream.rows_kept()
        seen = callers.outcomes(start)
        before = callers.slowest_ms(start, broken_at)
        during = callers.slowest_ms(broken_at, repaired_at)
    short = stream.acknowledged - kept
    return Outcome(
        what,
        f"scores: {words(seen)}, slowest {before:.0f} ms before, {during:.0f} ms during the fault; "
        f"appends: {stream.outcomes}; streams work again after {took:.1f} s",
        f"{max(short, 0)} of {stream.acknowledged} acknowledged rows",
        ok=set(seen) == {"200"}
        and during <= before + DELAY_MS + NOISE_MS
        and short <= 0
        and took < 15,
    )


class _Stream:
    """Appends rows of the example turbine one by one, and counts what was acknowledged."""

    def __init__(self, server: servers.Server) -> None:
        lines = (servers.ROOT / "examples" / "turbine.csv").read_text().splitlines()
        self._head, self._rows = lines[0], lines[1:]
        self._url = f"{server.url}/streams/faults"
        self._client = httpx.Client(timeout=10, headers={"Content-Type": "text/csv"})
        self._next = 0
        self.acknowledged = 0
        self.outcomes: dict[int | str, int] = {}

    def append(self) -> int | str:
        """The status of appending the next row; a row is repeated until it was acknowledged."""
        body = f"{self._head}\n{self._rows[self._next % len(self._rows)]}\n"
        key = {"Idempotency-Key": f"row-{self._next}"}
        outcome: int | str
        try:
            answer = self._client.post(f"{self._url}/rows", content=body, headers=key)
            outcome = answer.status_code
        except httpx.TransportError as error:
            outcome = type(error).__name__
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        if outcome == 200:
            self._next += 1
            self.acknowledged += 1
        return outcome

    def rows_kept(self) -> int:
        return int(self._client.get(self._url).json()["rows_seen"])


def _append_for(stream: _Stream, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stream.append()
        time.sleep(0.05)


def _until(true: Callable[[], bool], within_s: float) -> float:
    started = time.monotonic()
    while time.monotonic() - started < within_s and not true():
        time.sleep(0.1)
    return time.monotonic() - started


SCENARIOS = {"Redis killed": killed, "Redis paused": paused, "Redis full": full}
