"""python -m training fit | publish | evaluate | recalibrate | score-files | benchmark."""

import json
import logging
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service.contract import store
from service.contract.errors import AnomalyError
from service.contract.manifest import Manifest, is_model_name
from service.runtime import Runtime
from service.scoring import Scorer
from training.benchmark import benchmark_artifacts
from training.bulk.command import score_files
from training.command_options import ModelsDir, open_model
from training.config import TrainConfig, load_data, make_config, prepare, read_config
from training.evaluation import Evaluation
from training.families import FAMILIES
from training.processes import Followed, is_first, started_together, wait_for
from training.publish import CONFIG, ParityError, evaluate, publish, read_run_config
from training.recalibrate_command import recalibrate
from training.run import Interrupted, Run

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train detectors on normal data and publish them as checked artifacts.",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

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
    family: Annotated[str, typer.Option(help="Without a TOML: " + ", ".join(FAMILIES))] = "nln",
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
    overrides = _overrides(setting or [])
    if device is not None:
        overrides["train.accelerator"] = device
    if config is not None and images is None:
        chosen = read_config(config, overrides)
    elif images is not None and config is None and name is not None:
        chosen = _config_for_images(images, name, family, size, overrides)
    else:
        raise typer.BadParameter("give a CONFIG, or --images and --name")
    folder = runs / chosen.name
    chosen.train.check()
    if is_first():
        _open_run_folder(folder, chosen, resume=resume, restart=restart)
    else:
        out.quiet = True
        wait_for(folder / CONFIG)
    run = Run(folder, seed=chosen.seed, train=chosen.train, progress=not quiet)
    if and_publish or (and_publish is None and images is not None):
        _publish(chosen, run, models, data_dir, activate=activate)
        return
    data = load_data(chosen, data_dir)
    out.print(f"data: {data.source.name}. {data.source.protocol}")
    run.check_data(data.fingerprint)
    _, prepared = prepare(chosen, data)
    chosen_family = FAMILIES[chosen.family]
    chosen_family.fit(chosen_family.Config.model_validate(chosen.model), prepared, run)
    out.print(f"trained: {folder}\npublish it: python -m training publish {folder}")


@app.command("publish")
def publish_command(
    run_folder: Annotated[Path, typer.Argument(help="A folder that fit made.")],
    activate: Activate = False,
    data_dir: DataDir = None,
    models: ModelsDir = Path("models"),
    quiet: Quiet = False,
) -> None:
    """Export, check, calibrate, evaluate and publish a run as the model's next version."""
    chosen = read_run_config(run_folder)
    run = Run(run_folder, seed=chosen.seed, train=chosen.train, progress=not quiet)
    _publish(chosen, run, models, data_dir, activate=activate)


@app.command("evaluate")
def evaluate_command(
    model: Annotated[str, typer.Argument(help="name or name/version")],
    data_dir: DataDir = None,
    models: ModelsDir = Path("models"),
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Score an artifact's test split anew and print its figures."""
    artifact = open_model(models, model)
    config = make_config(json.loads(artifact.file(CONFIG).read_text()), str(artifact.path))
    evaluation = evaluate(Scorer.open(artifact, Runtime()), load_data(config, data_dir))
    if as_json:
        figures = {key: metric.model_dump() for key, metric in evaluation.metrics.items()}
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        _print_figures(artifact.manifest, evaluation)


app.command()(recalibrate)
app.command("score-files")(score_files)


@app.command()
def benchmark(
    names: Annotated[list[str] | None, typer.Argument(help="Models; default all.")] = None,
    data_dir: DataDir = None,
    models: ModelsDir = Path("models"),
    results: Annotated[Path, typer.Option(help="Where the table goes.")] = Path(
        "benchmarks/results"
    ),
) -> None:
    """Re-measure artifacts beside controls and published numbers; write a table."""
    path = benchmark_artifacts(models, names or store.names(models), data_dir, results, out.print)
    out.print(path.read_text())


def _publish(
    config: TrainConfig, run: Run, models: Path, data_dir: Path | None, *, activate: bool
) -> None:
    artifact, evaluation = publish(
        config, run, models, data_dir, lambda step: out.print(f"publish: {step}")
    )
    manifest = artifact.manifest
    run.record(published=f"{manifest.name}/{manifest.version}")
    _print_figures(manifest, evaluation)
    found = manifest.calibration
    if found.fpr > config.calibration.fpr:
        out.print(
            f"note: {found.n} calibration items promise a false-positive rate of {found.fpr:.3f} "
            f"at the finest, not {config.calibration.fpr:g}; more normal items are needed for that"
        )
    active = store.read_active(models)
    mine = f"{manifest.name}/{manifest.version}"
    default = getattr(active, manifest.task)
    if activate or default is None or default.split("/")[0] == manifest.name:
        store.write_active(models, active.model_copy(update={manifest.task: mine}))
        out.print(f"default for {manifest.task}: {mine} (models/{store.ACTIVE})")
    route = "/score" if manifest.task == "image" else "/score/timeseries"
    where = "" if models == Path("models") else f"ANOMALY_MODELS_DIR={models} "
    body = "--data-binary @part.png -H 'Content-Type: image/png'"
    if manifest.task == "timeseries":
        body = "--data-binary @rows.csv -H 'Content-Type: text/csv'"
    out.print(
        f"published: {artifact.path} (card: {artifact.path / 'CARD.md'})\n"
        f"serve it:  {where}make serve   (one that runs already: restart it, or PUT "
        f"/models/{manifest.name}/aliases/stable)\n"
        f"score:     curl {body} 'http://127.0.0.1:8000{route}?model={manifest.name}'",
        soft_wrap=True,
    )


def _print_figures(manifest: Manifest, evaluation: Evaluation) -> None:
    table = Table(title=f"{manifest.name}/{manifest.version} ({manifest.family})")
    for heading in ("figure", "value", "interval", "n", "split"):
        table.add_column(heading)
    rows = dict(evaluation.metrics)
    for name, metrics in evaluation.control_metrics.items():
        rows |= {f"{key} of {name}": m for key, m in metrics.items() if key == "auroc"}
    for key, m in rows.items():
        interval = "" if m.low is None else f"[{m.low:.4f}, {m.high:.4f}]"
        table.add_row(key, f"{m.value:.4f}", interval, str(m.n), m.split)
    out.print(table)
    for note in evaluation.notes:
        out.print(f"note: {note}")


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


def _config_for_images(
    images: Path, name: str, family: str, size: int, overrides: dict[str, Any]
) -> TrainConfig:
    if not is_model_name(name):
        raise typer.BadParameter(
            f"--name {name!r}: lower case letters, digits, dots, dashes and underscores, at most 64"
        )
    if not images.is_dir():
        raise typer.BadParameter(f"--images {images}: no such folder")
    members: dict[str, Any] = {
        "name": name,
        "title": f"trained on {images.name}",
        "family": family,
        "data": {"name": "folder", "path": str(images.resolve()), "size": size},
    }
    for key, value in overrides.items():
        table, _, last = key.rpartition(".")
        (members.setdefault(table, {}) if table else members)[last] = value
    return make_config(members, "the settings")


def _open_run_folder(folder: Path, config: TrainConfig, *, resume: bool, restart: bool) -> None:
    path = folder / CONFIG
    if path.exists() and restart and started_together(config.train):
        raise typer.BadParameter(
            f"{folder}: remove it yourself; of processes that start together, one could be reading "
            "what another one removes"
        )
    if path.exists() and restart:
        shutil.rmtree(folder)
    elif path.exists() and not resume:
        raise typer.BadParameter(f"{folder} holds a run already; use --resume or --restart")
    elif path.exists() and read_run_config(folder).digest != config.digest:
        raise typer.BadParameter(f"{folder} was trained with other settings; use --restart")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(config.model_dump_json(indent=2) + "\n")


def main() -> None:
    """The command line; our errors become one line and exit status 1."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        app()
    except Followed:
        return
    except Interrupted as stop:
        err.print(f"{stop}; the last checkpoint is kept: run the same command with --resume")
        raise SystemExit(130) from stop
    except (AnomalyError, ParityError) as error:
        err.print(f"error: {error}", soft_wrap=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
