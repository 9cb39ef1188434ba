"""Callers who keep asking while something breaks, and remember what each of them got."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import loads
from servers import Server

PNG = {"Content-Type": loads.RAW_TYPE}
PATH = "/score?map=none&model=digits-nln"


@dataclass(frozen=True)
class Call:
    """One request: when, how long, and its status, or what happened instead of an answer."""

    at: float
    seconds: float
    outcome: str


class Callers:
    """``count`` threads that each ask for one score after the other, ``pause_s`` apart."""

    def __init__(
        self, server: Server, count: int, pause_s: float, images: list[bytes], key: str = ""
    ) -> None:
        self.calls: list[Call] = []
        self._server, self._pause_s, self._images = server, pause_s, images
        self._headers = PNG | ({"X-API-Key": key} if key else {})
        self._expected: dict[bytes, float] = {}
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(count)]
        with httpx.Client() as client:
            for image in images:
                answer = client.post(
                    server.url + PATH, content=image, headers=self._headers, timeout=30
                )
                self._expected[image] = answer.json()["results"][0]["raw_score"]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def outcomes(self, start: float = 0, end: float = float("inf")) -> Counter[str]:
        """How often each outcome, of requests sent in that time."""
        return Counter(call.outcome for call in self.calls if start <= call.at < end)

    def slowest_ms(self, start: float = 0, end: float = float("inf")) -> float:
        return 1000 * max((c.seconds for c in self.calls if start <= c.at < end), default=0.0)

    def _ask(self, turn: int) -> None:
        with httpx.Client(timeout=10) as client:
            while not self._done.is_set():
                turn += 1
                image = self._images[turn % len(self._images)]
                at = time.monotonic()
                try:
                    answer = client.post(
                        self._server.url + PATH, content=image, headers=self._headers
                    )
                    outcome = str(answer.status_code)
                    if answer.status_code == 200:
                        raw = answer.json()["results"][0]["raw_score"]
                        if abs(raw - self._expected[image]) > 1e-5:
                            outcome = "200 with another score"
                except httpx.TimeoutException:
                    outcome = "no answer in 10 s"
                except httpx.ConnectError:
                    outcome = "connection refused"
                except httpx.TransportError:
                    outcome = "connection lost"
                self.calls.append(Call(at, time.monotonic() - at, outcome))
                time.sleep(self._pause_s)


@contextmanager
def calling(
    server: Server, count: int = 4, pause_s: float = 0.005, key: str = ""
) -> Iterator[Callers]:
    """Callers at work during the block."""
    callers = Callers(server, count, pause_s, loads.digits(64), key)
    callers.start()
    try:
        yield callers
    finally:
        callers.stop()


def words(outcomes: Counter[str]) -> str:
    """412 x 200, 3 x connection lost."""
    return ", ".join(f"{count} x {what}" for what, count in outcomes.most_common()) or "nothing"
