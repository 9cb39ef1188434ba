"""What the commands that need torch do, once their arguments are read."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from service.contract import store
from service.contract.errors import InputError
from service.contract.manifest import Manifest, Task, is_model_name
from service.runtime import Runtime
from service.scoring import Scorer
from training.command_options import err, out
from training.config import TrainConfig, load_data, make_config, prepare
from training.data.folder import called
from training.evaluation import Evaluation
from training.families import FAMILIES
from training.processes import Followed, is_first, started_together, wait_for
from training.publish import CONFIG, evaluate, publish, read_run_config
from training.run import DATA_DIGEST, Interrupted, Run

_SEND: dict[Task, tuple[str, str]] = {
    "image": ("/score", "--data-binary @part.png -H 'Content-Type: image/png'"),
    "timeseries": ("/score/timeseries", "--data-binary @rows.csv -H 'Content-Type: text/csv'"),
    "vectors": (
        "/score/vectors",
        "--data-binary @vectors.json -H 'Content-Type: application/json'",
    ),
}
"""Route and body of a first request, by what the model scores."""


@dataclass(frozen=True)
class Target:
    """Where a run is published to."""

    models: Path
    activate: bool


def config_for_images(
    images: Path, name: str, family: str, size: int, overrides: dict[str, Any]
) -> TrainConfig:
    """The configuration of a run on a folder of images."""
    if not is_model_name(name):
        raise typer.BadParameter(
            f"--name {name!r}: lower case letters, digits, dots, dashes and underscores, at most 64"
        )
    if not images.is_dir():
        raise typer.BadParameter(f"--images {images}: no such folder")
    members: dict[str, Any] = {
        "name": name,
        "title": f"trained on {called(images)}",
        "family": family,
        "data": {"name": "folder", "path": str(images.resolve()), "size": size},
    }
    for key, value in overrides.items():
        table, _, last = key.rpartition(".")
        (members.setdefault(table, {}) if table else members)[last] = value
    return make_config(members, "the settings")


def fit(
    config: TrainConfig,
    folder: Path,
    data_dir: Path | None,
    target: Target | None,
    *,
    resume: bool,
    restart: bool,
    progress: bool,
) -> None:
    """A run in ``folder``, published where there is a target."""
    config.train.check()
    fresh = False
    if is_first():
        fresh = _open_run_folder(folder, config, resume=resume, restart=restart)
    else:
        out.quiet = True
        wait_for(folder / CONFIG)
    run = Run(folder, seed=config.seed, train=config.train, progress=progress)
    with _endings():
        try:
            if target is not None:
                _publish(config, run, data_dir, target)
            else:
                _train(config, run, data_dir)
        except InputError:
            if fresh and {path.name for path in folder.iterdir()} <= {CONFIG, DATA_DIGEST}:
                shutil.rmtree(folder)  # nothing was trained: the name is free again
            raise


def publish_run(folder: Path, data_dir: Path | None, target: Target, *, progress: bool) -> None:
    """The run in ``folder`` as its model's next version."""
    config = read_run_config(folder)
    with _endings():
        _publish(config, Run(folder, config.seed, config.train, progress), data_dir, target)


def evaluate_artifact(artifact: store.Artifact, data_dir: Path | None, *, as_json: bool) -> None:
    """The figures of an artifact's test split, printed."""
    config = make_config(json.loads(artifact.file(CONFIG).read_text()), str(artifact.path))
    evaluation = evaluate(Scorer.open(artifact, Runtime()), load_data(config, data_dir))
    if as_json:
        figures = {key: metric.model_dump() for key, metric in evaluation.metrics.items()}
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        _print_figures(artifact.manifest, evaluation)


@contextmanager
def _endings() -> Iterator[None]:
    """What ends a training before its time is told, or is no matter."""
    try:
        yield
    except Followed:
        return
    except Interrupted as stop:
        err.print(f"{stop}; the last checkpoint is kept: run the same command with --resume")
        raise typer.Exit(130) from stop


def _train(config: TrainConfig, run: Run, data_dir: Path | None) -> None:
    data = load_data(config, data_dir)
    out.print(f"data: {data.source.name}. {data.source.protocol}")
    run.check_data(data.fingerprint)
    _, prepared = prepare(config, data)
    family = FAMILIES[config.family]
    family.fit(family.Config.model_validate(config.model), prepared, run)
    out.print(f"trained: {run.folder}\npublish it: python -m training publish {run.folder}")


def _publish(config: TrainConfig, run: Run, data_dir: Path | None, target: Target) -> None:
    models = target.models
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
    if target.activate or default is None or default.split("/")[0] == manifest.name:
        store.write_active(models, active.model_copy(update={manifest.task: mine}))
        out.print(f"default for {manifest.task}: {mine} (models/{store.ACTIVE})")
    route, body = _SEND[manifest.task]
    where = "" if models == Path("models") else f"ANOMALY_MODELS_DIR={models} "
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


def _open_run_folder(folder: Path, config: TrainConfig, *, resume: bool, restart: bool) -> bool:
    """Whether the folder is there for this run alone, and not gone on with."""
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
    fresh = not path.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(config.model_dump_json(indent=2) + "\n")
    return fresh
