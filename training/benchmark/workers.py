"""Jobs done one after the other in this process, or side by side in several.

Processes are started anew, not forked: torch, faiss and onnxruntime hold threads. One that dies,
for want of memory say, fails its own job and is replaced.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from training.benchmark.cell import Place, do, failed
from training.benchmark.definition import Cell, Job
from training.benchmark.results import Record

Store = Callable[[Cell, Record], None]
NextJob = Callable[[], Job | None]
_PATIENCE_S = 10


def in_turn(next_job: NextJob, place: Place, store: Store) -> None:
    """Jobs in this process until there is none."""
    with _threads(place.threads):
        while (job := next_job()) is not None:
            do(job, place, store)


def side_by_side(next_job: NextJob, place: Place, store: Store, processes: int) -> None:
    """Jobs in several processes until there is none; only this one calls ``store``."""
    workers: list[_Worker] = []
    try:
        for _ in range(processes):
            if (job := next_job()) is not None:
                workers.append(_Worker(place))
                workers[-1].begin(job)
        while busy := [w for w in workers if w.job is not None]:
            ready = wait([w.pipe for w in busy])
            for worker in [w for w in busy if w.pipe in ready]:
                if not worker.answer(store):
                    continue
                job = next_job()
                if job is not None and not worker.process.is_alive():
                    workers.remove(worker)
                    workers.append(worker := _Worker(place))
                if job is not None:
                    worker.begin(job)
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process and the job it does."""

    def __init__(self, place: Place) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, place), daemon=True)
        with _environment(OMP_NUM_THREADS=str(place.threads)):
            self.process.start()
        theirs.close()
        self.job: Job | None = None
        self._left: list[Cell] = []

    def begin(self, job: Job) -> None:
        self.job, self._left = job, list(job.cells)
        with suppress(OSError):  # it died meanwhile: answering says so
            self.pipe.send(job)

    def answer(self, store: Store) -> bool:
        """One message taken; whether the job is over."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(_PATIENCE_S)
            reason = f"the process died with exit status {self.process.exitcode}"
            for cell in self._left:
                store(cell, failed(cell, reason))
            self.job = None
            return True
        if message is None:
            self.job = None
            return True
        cell, record = message
        self._left = [c for c in self._left if c.key != cell.key]
        store(cell, record)
        return False

    def end(self) -> None:
        """Stopped; a fit keeps its last checkpoint."""
        self.pipe.close()
        if self.job is not None:
            self.process.terminate()
        self.process.join(_PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(pipe: Connection, place: Place) -> None:
    """The life of a process: jobs come, records go, None says that a job is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends us
    with _threads(place.threads):
        while True:
            try:
                job: Job = pipe.recv()
            except EOFError:
                return
            do(job, place, lambda cell, record: pipe.send((cell, record)))
            pipe.send(None)


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Torch, BLAS and OpenMP with ``n`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        with threadpool_limits(limits=n):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before: dict[str, Any] = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
