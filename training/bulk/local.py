"""Parts scored by several processes of this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from threading import Event, Lock
from typing import Any

from service.contract.errors import AnomalyError
from training.bulk.plan import Job
from training.bulk.worker import encode

_ATTEMPTS = 3
# each process computes on one core; there are as many processes as cores
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class BulkFailure(AnomalyError):
    """A part could not be scored; what is finished is kept."""


class _Parts:
    """What is still to be done, handed out one by one."""

    def __init__(self, parts: Iterable[int]) -> None:
        self._parts, self._lock = iter(parts), Lock()

    def next(self) -> int | None:
        with self._lock:
            return next(self._parts, None)


class _Worker:
    """A process that can be started again."""

    def __init__(self, job: Job, stop: Event) -> None:
        self._job, self._stop = job, stop
        self._process: subprocess.Popen[str] | None = None

    def score(self, part: int) -> int:
        """How many items the part has.

        Raises:
            BulkFailure: it was refused, or the process ended three times while scoring it.
        """
        for _ in range(_ATTEMPTS):
            if self._process is None:
                self._start()
            assert self._process is not None
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):  # it ended; its answer is empty then
                self._process.stdin.write(f"{part}\n")
                self._process.stdin.flush()
            answer = self._answer()
            if "error" in answer:
                raise BulkFailure(f"part {part}: {answer['error']}")
            if "items" in answer:
                return int(answer["items"])
            if self._stop.is_set():
                raise BulkFailure("stopped")
            status = self.end()
        raise BulkFailure(
            f"part {part}: the process that scored it ended {_ATTEMPTS} times (status {status}; "
            "-9 is often too little memory: try fewer --workers)"
        )

    def _start(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 ourselves, and paths as one argument
            [sys.executable, "-m", "training.bulk.worker", encode(self._job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ONE_THREAD},
        )
        answer = self._answer()
        if "error" in answer:
            raise BulkFailure(answer["error"])

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else {}

    def end(self) -> int | None:
        """The exit status of the process, which is told to end where it has not."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.terminate()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        return process.wait()

    def interrupt(self) -> None:
        """The process ends, so that nobody waits for its answer; for other threads to call."""
        process = self._process
        if process is not None:
            process.terminate()


def run(job: Job, todo: Iterable[int], workers: int, finished: Callable[[int, int], None]) -> None:
    """Every part of ``todo`` is written; ``finished(part, items)`` is called for each.

    Raises:
        BulkFailure: a part could not be scored; the others in progress are given up.
        KeyboardInterrupt: Ctrl-C; likewise.
    """
    parts, stop = _Parts(todo), Event()
    crew = [_Worker(job, stop) for _ in range(workers)]

    def work(worker: _Worker) -> None:
        try:
            while not stop.is_set() and (part := parts.next()) is not None:
                finished(part, worker.score(part))
        finally:
            worker.end()

    with ThreadPoolExecutor(workers) as threads:
        waiting = {threads.submit(work, worker) for worker in crew}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                for one in done:
                    one.result()
        finally:
            stop.set()
            while waiting:
                for worker in crew:
                    worker.interrupt()
                waiting = wait(waiting, timeout=0.1).not_done
