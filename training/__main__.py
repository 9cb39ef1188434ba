"""python -m training fit | publish | evaluate | recalibrate | score-files | benchmark | tune.

What needs torch is loaded by the commands that do (``commands``): it takes seconds.
"""

import logging
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from service.contract.errors import AnomalyError
from service.detectors import DETECTORS
from training.benchmark.command import benchmark
from training.bulk.command import score_files
from training.command_options import ModelsDir, err, open_model
from training.recalibrate_command import recalibrate
from training.tune_command import tune

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train detectors on normal data and publish them as checked artifacts.",
)

DataDir = Annotated[
    Path | None,
    typer.Option(envvar="ANOMALY_DATA_DIR", help="Where data files lie; else they are downloaded."),
]
RunsDir = Annotated[Path, typer.Option(help="Where run folders are kept.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Device = Annotated[
    str | None, typer.Option(help="Lightning's accelerator: auto, cpu, gpu; else as configured.")
]
Activate = Annotated[bool, typer.Option(help="Make it the default of its task in active.json.")]


@app.command()
def fit(
    config: Annotated[Path | None, typer.Argument(help="A TOML as in training/configs.")] = None,
    family: Annotated[str, typer.Option(help="Without a TOML: " + ", ".join(DETECTORS))] = "nln",
    images: Annotated[Path | None, typer.Option(help="Without a TOML: a folder of images.")] = None,
    name: Annotated[str | None, typer.Option(help="Without a TOML: the model's name.")] = None,
    size: Annotated[int, typer.Option(help="With --images: side in pixels after resizing.")] = 128,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. --set model.epochs=5")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue a run that was interrupted.")] = False,
    restart: Annotated[bool, typer.Option(help="Throw an existing run away.")] = False,
    and_publish: Annotated[
        bool | None, typer.Option("--publish/--no-publish", help="Default: with --images only.")
    ] = None,
    activate: Activate = False,
    data_dir: DataDir = None,
    runs: RunsDir = Path("runs"),
    models: ModelsDir = Path("models"),
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Train a detector into a run folder; --resume continues after Ctrl-C."""
    from training import commands  # noqa: PLC0415 loads torch
    from training.config import read_config  # noqa: PLC0415

    overrides = _overrides(setting or [])
    if device is not None:
        overrides["train.accelerator"] = device
    if config is not None and images is None:
        chosen = read_config(config, overrides)
    elif images is not None and config is None and name is not None:
        chosen = commands.config_for_images(images, name, family, size, overrides)
    else:
        raise typer.BadParameter("give a CONFIG, or --images and --name")
    wanted = images is not None if and_publish is None else and_publish
    target = commands.Target(models, activate) if wanted else None
    commands.fit(
        chosen, runs / chosen.name, data_dir, target,
        resume=resume, restart=restart, progress=not quiet,
    )  # fmt: skip


@app.command("publish")
def publish_command(
    run_folder: Annotated[Path, typer.Argument(help="A folder that fit made.")],
    activate: Activate = False,
    data_dir: DataDir = None,
    models: ModelsDir = Path("models"),
    quiet: Quiet = False,
) -> None:
    """Export, check, calibrate, evaluate and publish a run as the model's next version."""
    from training import commands  # noqa: PLC0415 loads torch

    target = commands.Target(models, activate)
    commands.publish_run(run_folder, data_dir, target, progress=not quiet)


@app.command("evaluate")
def evaluate_command(
    model: Annotated[str, typer.Argument(help="name or name/version")],
    data_dir: DataDir = None,
    models: ModelsDir = Path("models"),
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Score an artifact's test split anew and print its figures."""
    from training import commands  # noqa: PLC0415 loads torch

    artifact = open_model(models, model)
    commands.evaluate_artifact(artifact, data_dir, as_json=as_json)


app.command()(recalibrate)
app.command("score-files")(score_files)
app.command()(benchmark)
app.command()(tune)


def _overrides(settings: list[str]) -> dict[str, Any]:
    """``a.b=value`` pairs, values as TOML (a bare word is a string)."""
    found: dict[str, Any] = {}
    for item in settings:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"--set {item}: expected KEY=VALUE, e.g. model.epochs=5")
        try:
            found[key] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            found[key] = text
    return found


def main() -> None:
    """The command line; our errors become one line and exit status 1."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        app()
    except AnomalyError as error:
        err.print(f"error: {error}", soft_wrap=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
