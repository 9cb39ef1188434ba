"""One job done: a fit, and the figures of each of its read-outs."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from service.contract.errors import InvalidInput
from service.runtime import Runtime
from training.benchmark.definition import Cell, Job
from training.benchmark.measuring import by_class, figures_of, measure
from training.benchmark.results import Record, Results, locked
from training.commit import commit_of_the_code
from training.config import TrainConfig, load_data
from training.data.base import Data
from training.families import FAMILIES
from training.fitted import fit_and_open
from training.publish import tool_versions
from training.run import Interrupted, Run


@dataclass(frozen=True)
class Place:
    """Where cells are measured."""

    runs: Path
    """Run folders, shared by all tables."""
    data_dir: Path | None
    results: Path
    """Where the table's cells are stored."""
    threads: int
    began_utc: str
    """What other commands measured after it, while a job waited for them, is not measured again."""
    anew: bool = False
    """Fits that the run folders hold are thrown away."""


def do(job: Job, place: Place, store: Callable[[Cell, Record], None]) -> None:
    """Every cell of a job measured and handed to ``store``; one that fails is stored as failed.

    Raises:
        Interrupted: Ctrl-C; what was trained is kept.
    """
    with locked(place.runs / f"{job.run}.lock"):
        done = _meanwhile(job, place)
        if place.anew and len(done) < len(job.cells):
            shutil.rmtree(place.runs / job.run, ignore_errors=True)
        for cell in job.cells:
            try:
                record = done.get(cell.key) or _measured(cell, job, place)
            except Interrupted:
                raise
            except Exception as error:
                record = failed(cell, f"{type(error).__name__}: {error}")
            store(cell, record)


def now_utc() -> str:
    """The time as records have it; later ones sort behind earlier ones."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _meanwhile(job: Job, place: Place) -> dict[str, Record]:
    known = Results(place.results).read()
    return {
        cell.key: record
        for cell in job.cells
        if (record := known.get(cell.key)) is not None
        and (record["state"], record["digest"]) == ("measured", cell.digest)
        and record["measured_utc"] > place.began_utc
    }


def failed(cell: Cell, error: str) -> Record:
    """A cell that could not be measured."""
    return _record(cell, state="failed", error=error)


def _measured(cell: Cell, job: Job, place: Place) -> Record:
    config = cell.config
    data = _data(config.model_dump_json(include={"name", "family", "data", "seed"}), place.data_dir)
    run = Run(place.runs / job.run, seed=config.seed, train=config.train, progress=False)
    _check_data(run, data)
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit_and_open(config, data, run, Path(folder), Runtime(threads=place.threads))
        scored = measure(fitted.detector, fitted.spec, data, fitted.prepared, config.seed)
        metrics = figures_of(scored)
        labels = scored.test.labels
        return _record(
            cell,
            state="measured",
            fingerprint=data.fingerprint,
            metrics=metrics,
            by_class=by_class(scored),
            notes=[*scored.test.notes, *(["synthetic anomalies"] * scored.test.synthetic)],
            items={
                "train": len(fitted.prepared.train),
                "validation": len(fitted.prepared.validation),
                "test": len(labels),
                "anomalous": int(labels.sum()),
            },
            budget=_budget(config),
            seconds={
                "fit": round(fitted.fit_s, 3),
                "export": round(fitted.export_s, 3),
                "score": round(scored.seconds, 3),
            },
            device=_device(run, place.threads),
            protocol=data.source.protocol,
        )


def _check_data(run: Run, data: Data) -> None:
    try:
        run.check_data(data.fingerprint)
    except InvalidInput as error:
        raise InvalidInput(
            f"the data changed since {run.folder.name} was trained on it: what was measured before "
            "is of other data; measure these cases again with --anew"
        ) from error


def _record(cell: Cell, **members: Any) -> Record:
    return {
        "row": cell.row,
        "case": cell.case,
        "seed": cell.seed,
        "digest": cell.digest,
        **members,
        "measured_utc": now_utc(),
        "commit": commit_of_the_code(),
        "versions": tool_versions(),
    }


@lru_cache(maxsize=1)  # the systems of one case and seed follow each other
def _data(config: str, data_dir: Path | None) -> Data:
    return load_data(TrainConfig.model_validate_json(config), data_dir)


def _budget(config: TrainConfig) -> dict[str, int]:
    """How long it trained, as configured: every setting that counts epochs or steps."""
    settings = FAMILIES[config.family].Config.model_validate(config.model).model_dump()
    return {k: v for k, v in settings.items() if k.endswith(("epochs", "steps"))}


def _device(run: Run, threads: int) -> str:
    name = torch.cuda.get_device_name(0) if run.on_gpu else "CPU"
    return f"{name}, {threads} threads"
