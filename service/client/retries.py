"""When a call is sent again, and when it is given up. No transport, no sleeping here.

========================================  ==================================================
what happened                             sent again
========================================  ==================================================
no connection could be made               yes: nothing was sent
429 or 503 with ``Retry-After``           yes: it was refused before anything was done
503 of a store that failed                where twice does what once does, for it may have been
                                          done: scoring is a pure function, an append carries
                                          its Idempotency-Key
the connection broke during the exchange  the same
the deadline passed                       no
any other 4xx, 500, 502, 504              no
========================================  ==================================================

Between attempts: at least ``Retry-After``, and a random part of a back-off that doubles. A wait
longer than ``cap_s``, or than what is left of the deadline, is not begun: the call fails at once.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from service.client.calls import Call
from service.client.failures import (
    ClientError,
    NoAnswer,
    OutOfTime,
    UnexpectedAnswer,
    problem_in,
    retry_after_s,
)

_CONNECT_S = 5.0
_PATIENT_CAP_S = 1.0
_REFUSED = frozenset({429, 503})
_MAY_BE_DONE = "urn:anomaly:problem:unavailable"  # a store may have acted, and answered too late
_NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_BROKEN = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)


@dataclass(frozen=True)
class Retries:
    """How often a call is sent, and how long is waited in between."""

    attempts: int = 5
    """Requests of one call; 1 = never again."""
    base_s: float = 0.2
    """The longest back-off before the second; it doubles."""
    cap_s: float = 30.0
    """The longest wait of all."""


class Attempts:
    """The way of one call: ``request`` to send it, then ``answered`` or ``failed``."""

    def __init__(
        self,
        call: Call[Any],
        retries: Retries,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call = call
        self._retries = retries
        self._clock = clock
        self._timeout_s = timeout_s if call.timeout_s is None else call.timeout_s
        self._until = clock() + self._timeout_s
        self._count = 0
        self._last: ClientError | None = None

    def request(self) -> dict[str, Any]:
        """The arguments of httpx's ``request`` for the next attempt.

        Raises:
            OutOfTime: there is no time left for one.
        """
        left = self._until - self._clock()
        if left <= 0:
            raise self._out_of_time() from self._last
        self._count += 1
        call = self._call
        return {
            "method": call.method,
            "url": call.path,
            "params": dict(call.params),
            # a little less than is left, so that the service's own 504 can arrive
            "headers": {**call.headers, "X-Request-Timeout": f"{max(left - 0.1, left / 2):.3f}"},
            "content": call.content,
            "files": call.files,
            "timeout": httpx.Timeout(left, connect=min(left, _CONNECT_S)),
        }

    def answered(self, response: httpx.Response) -> float | None:
        """None where the answer can be read, else the seconds to wait before the next attempt.

        Raises:
            ServiceProblem: the answer is an error that is not to be tried again.
            UnexpectedAnswer: neither success nor error: a redirect.
            OutOfTime: a patient call's deadline passed.
        """
        if response.status_code in self._call.accepts:
            return None
        if not response.is_error:
            where = response.headers.get("location", "")
            raise UnexpectedAnswer(
                f"{response.url} answered {response.status_code} {where}".strip()
            )
        problem = problem_in(response)
        asked = retry_after_s(response)
        if self._call.patient and response.status_code in _REFUSED:
            return self._wait(problem, 0.0)
        if response.status_code not in _REFUSED or asked is None:
            raise problem
        if problem.type == _MAY_BE_DONE and not self._call.repeatable:
            raise problem
        return self._wait(problem, asked)

    def failed(self, error: httpx.RequestError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            NoAnswer: the call is not to be tried again.
            OutOfTime: no time is left.
        """
        what = str(error) or type(error).__name__
        found = NoAnswer(f"{self._call.method} {self._call.path}: {what}")
        found.__cause__ = error
        if isinstance(error, _NOTHING_SENT):
            return self._wait(found, 0.0)
        if isinstance(error, httpx.TimeoutException):
            raise self._out_of_time() from error
        if isinstance(error, _BROKEN) and self._call.repeatable:
            return self._wait(found, 0.0)
        raise found

    def _wait(self, error: ClientError, at_least_s: float) -> float:
        retries, patient = self._retries, self._call.patient
        if not patient and (self._count >= retries.attempts or at_least_s > retries.cap_s):
            raise error
        cap = _PATIENT_CAP_S if patient else retries.cap_s
        back_off = min(cap, retries.base_s * 2 ** min(self._count - 1, 30))
        # random, so that callers refused together do not come back together
        wait = min(at_least_s + random.uniform(0.5, 1) * back_off, cap)  # noqa: S311
        self._last = error
        if self._clock() + wait < self._until:
            return wait
        if patient:
            raise self._out_of_time() from error
        raise error

    def _out_of_time(self) -> OutOfTime:
        call = self._call
        last = f"; last: {self._last}" if self._last else ""
        return OutOfTime(f"{call.method} {call.path}: no answer within {self._timeout_s:g} s{last}")
