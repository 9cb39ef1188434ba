"""The command ``score-files``."""

from functools import partial
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal, Self

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.contract.errors import AnomalyError
from service.cores import usable_cores
from training.bulk import cluster, local
from training.bulk.plan import Format, Job
from training.bulk.run import Wishes, score_all
from training.command_options import ModelsDir, err, open_model
from training.command_options import out as out_console


class Bar:
    """A progress bar; nothing but notes where it is quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._lock = Lock()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=err,
            disable=quiet,
        )
        self._task = self._progress.add_task("", total=None, rate="")
        self._before = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and self._progress.tasks[0].total is None:
            self._progress.update(self._task, visible=False)  # nothing was begun
        self._progress.stop()

    def note(self, text: str) -> None:
        self._progress.console.print(f"note: {text}")

    def looking(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def begin(self, items: int, finished: int) -> None:
        self._before = finished
        if finished:
            self.note(f"{finished:,} of {items:,} were scored before; going on")
        self._progress.reset(self._task, description="scoring", total=items, completed=finished)

    def advance(self, items: int) -> None:
        with self._lock:
            self._progress.advance(self._task, items)
            task = self._progress.tasks[0]
            elapsed = max(task.elapsed or 0.0, 1e-3)
            rate = (task.completed - self._before) / elapsed
            self._progress.update(self._task, rate=f"{rate:,.0f}/s")


def score_files(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="A folder of images, csv, or parquet: of rows, vectors, or a column of images.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="A folder for the results; the same one to go on."),
    ],
    model: Annotated[str, typer.Option(help="NAME or NAME/VERSION.")],
    group_by: Annotated[
        str | None, typer.Option(help="Rows: the column that names their recording (turbine).")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Parquet of images: the column that holds them.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Rows between windows; default the model's.")
    ] = None,
    fpr: Annotated[
        float | None, typer.Option(help="False-alarm rate to decide by; default the model's.")
    ] = None,
    review_fpr: Annotated[
        float | None,
        typer.Option(envvar="ANOMALY_REVIEW_FPR", help="p-value up to which to say review."),
    ] = None,
    contributions: Annotated[
        bool,
        typer.Option("--contributions", help="Rows, vectors: the share of each column, as a list."),
    ] = False,
    file_format: Annotated[Format, typer.Option("--format", help="Of the results.")] = "parquet",
    part_items: Annotated[
        int | None, typer.Option(min=1, help="Items of one file of results; default by number.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default one a core (of the cluster).")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="HOST:PORT of the cluster's head."),
    ] = None,
    provider: Annotated[
        Literal["cpu", "cuda", "cuda!"],
        typer.Option(envvar="ANOMALY_PROVIDERS", help="Where graphs run; as for the service."),
    ] = "cpu",
    max_pixels: Annotated[
        int, typer.Option(envvar="ANOMALY_MAX_PIXELS", min=1, help="Of one image.")
    ] = 64_000_000,
    models: ModelsDir = Path("models"),
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw the results in OUT away first.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Score files in bulk into OUT; the same command goes on where it was interrupted."""
    job = Job(source.resolve(), out.resolve(), models.resolve(), provider)
    wishes = Wishes(
        column, group_by, fpr, review_fpr, stride, contributions, max_pixels, file_format,
        part_items,
    )  # fmt: skip
    if engine == "ray":
        chosen = partial(_on_cluster, workers=workers, address=ray_address)
    else:
        chosen = partial(_locally, workers=workers or usable_cores())
    try:
        artifact = open_model(models, model)
        with Bar(quiet=quiet) as bar:
            summary = score_all(job, artifact, wishes, chosen, bar, restart=restart)
    except KeyboardInterrupt as stop:
        err.print("interrupted; the same command goes on with what is missing")
        raise typer.Exit(130) from stop
    except AnomalyError as error:
        err.print(f"error: {error}", soft_wrap=True)
        raise typer.Exit(1) from error
    _print(out, summary)


def _on_cluster(job: Job, todo: list[int], finished: Any, *, workers: Any, address: Any) -> None:
    cluster.run(job, todo, workers, address, finished)


def _locally(job: Job, todo: list[int], finished: Any, *, workers: int) -> None:
    local.run(job, todo, min(workers, len(todo)), finished)


def _print(out: Path, summary: dict[str, Any]) -> None:
    counts = ", ".join(f"{n:,} {name}" for name, n in summary["counts"].items() if n)
    last = summary["last_run"]
    out_console.print(
        f"{summary['items']:,} items by {summary['model']} at fpr {summary['fpr']:g}: {counts}\n"
        f"{last['items']:,} in {last['seconds']:,.1f} s, {last['items_per_second']:,.0f} a second\n"
        f"results: {out} ({summary['parts']} parts)",
        soft_wrap=True,
    )


def main() -> None:
    """``python -m training.bulk IN OUT``, for machines without what training needs."""
    typer.run(score_files)
