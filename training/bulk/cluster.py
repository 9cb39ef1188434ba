"""Parts scored on a Ray cluster whose machines see the same folders.

A part is a Ray task that is a pure function with one file as its effect, so that Ray may repeat it:
when a machine is lost, its parts are done again on others, and machines that join get parts. The
process of a task keeps its opened model for the tasks after it.
"""

import logging
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from service.contract.errors import AnomalyError, InvalidInput
from training.bulk.local import BulkFailure
from training.bulk.plan import Job
from training.bulk.scoring import opened

_RETRIES = 5
"""Of a part whose process or machine was lost while it was scored."""
_WAITING_PER_CORE = 2


def score_part(job: Job, part: int) -> tuple[int, int, str]:
    """(part, items, what was wrong): our errors are answers, which Ray does not repeat."""
    try:
        return part, opened(job).write(part), ""
    except (AnomalyError, OSError) as error:
        return part, 0, str(error)


def run(
    job: Job,
    todo: Iterable[int],
    workers: int | None,
    address: str | None,
    finished: Callable[[int, int], None],
) -> None:
    """Every part of ``todo`` is written; ``finished(part, items)`` is called for each.

    Args:
        workers: parts that are scored at a time; default one a core of the cluster.
        address: ``host:port`` of the cluster's head; default RAY_ADDRESS, else that of a cluster
            that was started on this machine.

    Raises:
        BulkFailure: a part could not be scored.
        InvalidInput: Ray is not installed, or no such cluster can be reached.
    """
    ray = _connected(address)
    try:
        gpus = 0 if job.provider == "cpu" else 1
        task = ray.remote(score_part).options(
            num_cpus=1, num_gpus=gpus, max_retries=_RETRIES, name="score_part"
        )
        parts = iter(todo)
        waiting: list[Any] = []
        while True:
            cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
            room = (workers or cores * _WAITING_PER_CORE) - len(waiting)
            waiting += [task.remote(job, part) for part in islice(parts, max(0, room))]
            if not waiting:
                return
            done, waiting = ray.wait(waiting, num_returns=1, timeout=1.0)
            for part, items, wrong in _results(ray, done):
                if wrong:
                    raise BulkFailure(f"part {part}: {wrong}")
                finished(part, items)
    finally:
        ray.shutdown()


def _connected(address: str | None) -> Any:
    try:
        import ray  # noqa: PLC0415 an extra that only this engine needs
    except ImportError as error:
        raise InvalidInput("--engine ray needs Ray: pip install '.[ray]'") from error
    try:
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"no Ray cluster at {address or 'this machine'}: {error}. Start one with ray start "
            "--head, and name it with --ray-address HOST:PORT"
        ) from error
    return ray


def _results(ray: Any, done: list[Any]) -> list[tuple[int, int, str]]:
    try:
        return list(ray.get(done))
    except ray.exceptions.RayError as error:
        raise BulkFailure(f"a part was given up by Ray: {error}") from error
