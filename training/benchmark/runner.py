"""Which cell is next, what came out, how far it is."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.cores import usable_cores
from training.benchmark.cell import Place, now_utc
from training.benchmark.current import current
from training.benchmark.definition import Cell, Job, TableConfig, jobs_of
from training.benchmark.report import write_report
from training.benchmark.results import Record, Results
from training.benchmark.workers import in_turn, side_by_side
from training.command_options import err


@dataclass(frozen=True)
class Limits:
    """How much is done at once, and for how long."""

    processes: int = 1
    minutes: float | None = None
    """No job begins later than this; one that has begun is finished."""
    anew: bool = False
    """Cells that were measured with the same settings are measured again."""


def run_table(
    name: str,
    table: TableConfig,
    jobs: Sequence[Job],
    folder: Path,
    runs: Path,
    data_dir: Path | None,
    limits: Limits,
    *,
    progress: bool = True,
) -> Path:
    """The missing cells of ``jobs`` measured; the table as markdown, written after every cell.

    Raises:
        Interrupted: Ctrl-C in the middle of a fit; nothing that was measured is lost.
    """
    threads = max(1, usable_cores() // limits.processes)
    results = Results(folder / f"{name}.json")
    place = Place(runs, data_dir, results.path, threads, now_utc(), limits.anew)
    known = results.read()
    seeds = {cell.seed for job in jobs for cell in job.cells}
    expected = _expected(table, known, seeds)
    done = set() if limits.anew else _done(known, expected)
    missing = [job for job in (_missing(job, done) for job in jobs) if job.cells]
    until = time.monotonic() + 60 * (limits.minutes if limits.minutes is not None else 1e9)
    waiting, told = iter(missing), set[str]()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cells"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, disable=not progress, console=err) as bar:
        task = bar.add_task(name, total=sum(len(job.cells) for job in missing))

        def next_job() -> Job | None:
            job = next(waiting, None) if time.monotonic() < until else None
            if job is not None:
                cell = job.cells[0]
                bar.update(task, description=f"{cell.row}, {cell.case}, seed {cell.seed}")
            return job

        def store(cell: Cell, record: Record) -> None:
            results.put(cell.key, record)
            write_report(name, table, results, expected)
            bar.advance(task)
            if record["state"] == "failed" and record["error"] not in told:
                told.add(record["error"])
                bar.console.print(f"failed: {cell.key}: {record['error']}", markup=False)

        if limits.processes > 1:
            side_by_side(next_job, place, store, limits.processes)
        else:
            in_turn(next_job, place, store)
    return write_report(name, table, results, expected)


def _expected(table: TableConfig, known: dict[str, Record], asked: Collection[int]) -> list[Cell]:
    """Every cell there should be, those of seeds beyond the table's own included."""
    seeds = dict.fromkeys((*table.seeds, *asked, *(r["seed"] for r in known.values())))
    return [cell for job in jobs_of(table, seeds=seeds) for cell in job.cells]


def _done(known: Mapping[str, Record], expected: Sequence[Cell]) -> set[str]:
    """Keys of what was measured with these settings and on this data; failed ones come again."""
    measured = current(known, expected).measured
    return {f"{r['row']} | {r['case']} | {r['seed']}" for r in measured}


def _missing(job: Job, done: Collection[str]) -> Job:
    return Job(job.run, tuple(c for c in job.cells if c.key not in done))
