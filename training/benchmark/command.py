"""``python -m training benchmark``: what a user types."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from service.contract import store
from training.command_options import ModelsDir, err, out

ARTIFACTS = "artifacts"


def benchmark(
    table: Annotated[
        str | None, typer.Argument(help="A table, a TOML of your own, or artifacts; none: a list.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Argument(help="With artifacts: models; default all.")
    ] = None,
    classes: Annotated[
        str, typer.Option("--classes", "--cases", help="Cases, e.g. 1,2,9 or bottle; default all.")
    ] = "",
    seeds: Annotated[str, typer.Option(help="E.g. 0,1,2; default those of the table.")] = "",
    systems: Annotated[str, typer.Option(help="Systems, or system/read-out; default all.")] = "",
    device: Annotated[
        Literal["auto", "cpu", "gpu"], typer.Option(help="Where networks are trained.")
    ] = "auto",
    minutes: Annotated[
        float | None, typer.Option(help="No fit begins later than this.", min=0)
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Processes side by side, each with its share of the cores.", min=1)
    ] = 1,
    anew: Annotated[
        bool, typer.Option("--anew", help="Also what was measured with the same settings.")
    ] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(envvar="ANOMALY_DATA_DIR", help="Where data files lie; else downloaded."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where run folders are kept.")] = Path(
        "runs/benchmark"
    ),
    results: Annotated[Path, typer.Option(help="Where the table goes.")] = Path(
        "benchmarks/results"
    ),
    models: ModelsDir = Path("models"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Fit and measure the systems of a paper's table, cell by cell; stop and go on at any time."""
    if table == ARTIFACTS:
        from training.benchmark.artifacts import benchmark_artifacts  # noqa: PLC0415 loads torch

        made = benchmark_artifacts(
            models, names or store.names(models), data_dir, results, out.print
        )
        out.print(made.read_text())
        return
    from training.benchmark.definition import jobs_of  # noqa: PLC0415 loads torch
    from training.benchmark.reading import read_table, table_names  # noqa: PLC0415
    from training.benchmark.runner import Limits, run_table  # noqa: PLC0415
    from training.run import Interrupted  # noqa: PLC0415

    if table is None:
        out.print(f"tables: {', '.join(table_names())}\nand of what was published: {ARTIFACTS}")
        return
    if names:
        raise typer.BadParameter(f"{' '.join(names)}: only {ARTIFACTS} takes names of models")
    name, contents = read_table(table)
    planned = jobs_of(
        contents,
        cases=_listed(classes),
        seeds=_numbers(seeds),
        systems=_listed(systems),
        device=device,
    )
    limits = Limits(jobs, minutes, anew)
    try:
        path = run_table(
            name, contents, planned, results, runs, data_dir, limits, progress=not quiet
        )
    except (Interrupted, KeyboardInterrupt) as stop:
        err.print("interrupted; every measured cell is stored: the same command goes on")
        raise typer.Exit(130) from stop
    out.print(path.read_text(), markup=False, soft_wrap=True)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in _listed(text)]
    except ValueError as error:
        raise typer.BadParameter(f"--seeds {text}: numbers, e.g. 0,1,2") from error
    if any(n < 0 for n in found):
        raise typer.BadParameter(f"--seeds {text}: none below 0")
    return found
