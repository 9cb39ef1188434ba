"""``python -m training tune``: what a user types, and the processes that search side by side."""

import json
import multiprocessing
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cores import usable_cores
from training.command_options import err, out


def tune(
    config: Annotated[Path, typer.Argument(help="A TOML as in training/configs.")],
    trials: Annotated[int, typer.Option(help="Trials in the study when it ends.", min=1)] = 30,
    study: Annotated[str, typer.Option(help="Its name; default that of the model.")] = "",
    storage: Annotated[
        str, typer.Option(help="A database URL or a file that all processes and machines see.")
    ] = "runs/tune/studies.log",
    space: Annotated[
        list[str] | None,
        typer.Option(help="Beside [tune], e.g. model.learning_rate=log:1e-4:1e-2"),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes side by side on this machine.", min=1)] = 1,
    write: Annotated[
        Path | None, typer.Option("--out", help="The configuration with the best settings.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, gpu; else as configured.")] = None,
    runs: Annotated[Path, typer.Option(help="Where trials train.")] = Path("runs/tune"),
    data_dir: Annotated[
        Path | None,
        typer.Option(envvar="ANOMALY_DATA_DIR", help="Where data files lie; else downloaded."),
    ] = None,
) -> None:
    """Search for hyperparameters on validation normals and synthetic anomalies; goes on when run
    again.
    """
    from training import tune as tuning  # noqa: PLC0415 loads torch

    members, found_space = tuning.read_space(config, space or [])
    if device is not None:
        members = tuning.with_settings(members, {"train.accelerator": device})
    plan = tuning.Tuning(members, found_space, runs, data_dir, max(1, usable_cores() // jobs))
    name = study or str(members.get("name", config.stem))
    opened = tuning.open_study(storage, name, int(members.get("seed", 0)))
    err.print(f"study {name} in {storage}: {len(opened.trials)} trials so far", markup=False)
    others = [_start(storage, name, plan, trials, number) for number in range(1, jobs)]
    try:
        tuning.run_study(opened, plan, trials, _tell)
        for process in others:
            process.join()
    except KeyboardInterrupt as stop:
        err.print("interrupted; the study keeps what has ended: the same command goes on")
        raise typer.Exit(130) from stop
    finally:
        for process in others:
            process.terminate()
    died = [process.exitcode for process in others if process.exitcode]
    _conclude(opened, plan, config, name, write)
    if died:
        ends = ", ".join(map(str, died))
        err.print(f"{len(died)} of {jobs} processes ended with exit status {ends}", markup=False)
        raise typer.Exit(1)


def _start(storage: str, name: str, plan: Any, trials: int, number: int) -> Any:
    """Another process at the same study; a daemon, so that it does not outlive this one."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_join, args=(storage, name, plan, trials, number), daemon=True)
    process.start()
    return process


def _join(storage: str, name: str, plan: Any, trials: int, number: int) -> None:
    from training import tune as tuning  # noqa: PLC0415 loads torch

    # its draws shall differ from those of the processes that began at the same time
    seed = int(plan.members.get("seed", 0)) + 7919 * number
    tuning.run_study(tuning.open_study(storage, name, seed), plan, trials, _tell)


def _tell(trial: Any) -> None:
    values = ", ".join(f"{name} = {value}" for name, value in trial.params.items())
    result = f"{trial.value:.4f}" if trial.value is not None else trial.state.name.lower()
    reason = trial.user_attrs.get("error", "")
    text = f"trial {trial.number}: {result} ({values})"
    err.print(text + (f": {reason}" if reason else ""), markup=False, soft_wrap=True)


def _conclude(opened: Any, plan: Any, config: Path, name: str, write: Path | None) -> None:
    from training import tune as tuning  # noqa: PLC0415 loads torch

    states = [trial.state.name.lower() for trial in opened.trials]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    try:
        best = opened.best_trial
    except ValueError:
        err.print(f"no trial of study {name} was completed ({counts})", markup=False)
        raise typer.Exit(1) from None
    said = (
        f"# best of study {name} ({counts}): trial {best.number}, "
        f"AUROC {best.value:.4f} of validation normals against synthetic anomalies"
    )
    settings = tuning.chosen(plan.space, best)
    lines = [f"{key} = {as_toml(value)}" for key, value in settings.items()]
    out.print("\n".join([said, *lines]), markup=False, soft_wrap=True)
    if write is not None:
        header = f"{said}\n# tuned from {config.name}\n"
        write.write_text(header + toml_of(tuning.with_settings(plan.members, settings)))
        out.print(f"written: {write}", markup=False)


def toml_of(members: dict[str, Any], inside: str = "") -> str:
    """TOML of nested tables of plain values."""
    plain = {k: v for k, v in members.items() if not isinstance(v, dict)}
    text = "".join(f"{_key(k)} = {as_toml(v)}\n" for k, v in plain.items())
    for key, table in members.items():
        if isinstance(table, dict):
            name = f"{inside}{_key(key)}"
            text += f"\n[{name}]\n{toml_of(table, f'{name}.')}"
    return text


def as_toml(value: Any) -> str:
    """A plain value, or a list of such or of tables, as TOML."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(k)} = {as_toml(v)}' for k, v in value.items())}}}"
    return repr(value) if isinstance(value, float) else _quoted(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _quoted(value: Any) -> str:
    # TOML has no raw DEL, and no pairs of surrogates, which ASCII alone would need
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
