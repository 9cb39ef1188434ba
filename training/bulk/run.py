"""A run from IN to OUT: begun, or gone on with, to its summary."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from pydantic import ValidationError

from service.contract import store
from service.contract.calibration import Calibration
from service.contract.errors import InvalidInput
from service.contract.manifest import Manifest, SeriesInput, VectorInput
from service.decision import REVIEW_FACTOR
from training.bulk import parts, sources
from training.bulk.plan import (
    PLAN,
    Format,
    InputInfo,
    Job,
    ModelInfo,
    Options,
    Plan,
    check_same,
    versions,
    write_plan,
)

SUMMARY = "_SUCCESS.json"
_LOCK = "_lock"
_SHARE = 64
"""Into so many parts at least, so that they can be spread, unless they would be too small."""
_PART_SIZES = {"image": (16, 1000), "timeseries": (500, 50_000), "vectors": (500, 50_000)}


@dataclass(frozen=True)
class Wishes:
    """What the command line says of how to score; None is for the default."""

    column: str | None = None
    group_by: str | None = None
    fpr: float | None = None
    review_fpr: float | None = None
    stride: int | None = None
    contributions: bool = False
    max_pixels: int = 64_000_000
    format: Format = "parquet"
    part_items: int | None = None


class Teller(Protocol):
    """Who is told how far a run is."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def looking(self, text: str) -> None:
        """What is being done before the scoring; the next one replaces it."""

    def begin(self, items: int, finished: int) -> None:
        """Scoring begins; ``finished`` of the items were scored by an earlier run."""

    def advance(self, items: int) -> None:
        """So many items more; called by several threads."""


Engine = Callable[[Job, list[int], Callable[[int, int], None]], None]


def score_all(
    job: Job,
    artifact: store.Artifact,
    wishes: Wishes,
    engine: Engine,
    tell: Teller,
    *,
    restart: bool = False,
) -> dict[str, Any]:
    """The summary of a run whose every item is in the results now.

    Raises:
        InputError: the input, a setting or what is in OUT does not fit; nothing was scored.
        BulkFailure: a part could not be scored; the same call goes on.
    """
    sources.check_places(job.source, job.out)
    job.out.mkdir(parents=True, exist_ok=True)
    with _alone(job.out):
        if restart:
            _forget(job.out)
        plan = _plan(job, wishes, artifact, tell)
        parts.remove_unfinished(job.out)
        there = {path.name for path in job.out.glob(f"part-*.{plan.options.format}")}
        todo = [p for p in range(plan.parts) if plan.name_of(p) not in there]
        left = sum(end - first for first, end in map(plan.slice_of, todo))
        tell.begin(plan.input.items, plan.input.items - left)
        began = perf_counter()
        if todo:
            (job.out / SUMMARY).unlink(missing_ok=True)
            engine(job, todo, lambda _, items: tell.advance(items))
        seconds = perf_counter() - began
        if todo or not (job.out / SUMMARY).exists():
            _summarise(job.out, plan, left, seconds)
    found: dict[str, Any] = json.loads((job.out / SUMMARY).read_text())
    return found


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    with (out / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InvalidInput(f"{out}: another run is writing there; wait for it") from error
        yield


def _plan(job: Job, wishes: Wishes, artifact: store.Artifact, tell: Teller) -> Plan:
    """The plan of an earlier run where it is the same, else a new one."""
    out, manifest = job.out, artifact.manifest
    before = _read_plan(out)
    spec = manifest.input
    tell.looking(f"looking at {job.source}")
    source = sources.survey(job.source, out, spec, wishes.column, wishes.group_by)
    size = wishes.part_items or (before.options.part_items if before else 1)
    options = _options(wishes, artifact, size)
    info = InputInfo(
        kind=source.kind,
        fingerprint=source.fingerprint,
        items=before.input.items if before else 0,
        files=source.files,
        column=source.column,
        notes=before.input.notes if before else (),
    )
    model = ModelInfo(name=manifest.name, version=manifest.version, digest=artifact.digest)
    plan = Plan(input=info, model=model, options=options, versions=versions())
    if before is not None:
        check_same(out, before, plan)
        sources.forget_listing(out)
    else:
        sources.forget(out)
        items, notes = sources.prepare(source, out, spec, options.stride, tell.looking)
        if not items:
            raise InvalidInput(f"{job.source}: holds nothing to score")
        if wishes.part_items is None:
            least, most = _PART_SIZES[manifest.task]
            size = min(most, max(least, -(-items // _SHARE)))
        plan = plan.model_copy(
            update={
                "input": info.model_copy(update={"items": items, "notes": notes}),
                "options": options.model_copy(update={"part_items": size}),
            }
        )
        write_plan(out, plan)
    for note in plan.input.notes:
        tell.note(note)
    return plan


def _options(wishes: Wishes, artifact: store.Artifact, part_items: int) -> Options:
    manifest: Manifest = artifact.manifest
    fpr = manifest.calibration.fpr if wishes.fpr is None else wishes.fpr
    Calibration(artifact.arrays(store.CALIBRATION)["scores"]).check_fpr(fpr)
    band = min(REVIEW_FACTOR * fpr, 1.0) if wishes.review_fpr is None else wishes.review_fpr
    stride = wishes.stride
    if isinstance(manifest.input, SeriesInput):
        stride = stride or manifest.input.stride
    elif stride is not None:
        raise InvalidInput(f"--stride is for rows; {manifest.name} scores {manifest.input.kind}")
    elif wishes.contributions and not isinstance(manifest.input, VectorInput):
        raise InvalidInput(f"--contributions is for rows and vectors, not {manifest.name}'s images")
    return Options(
        fpr=fpr,
        review_fpr=max(band, fpr),
        stride=stride,
        contributions=wishes.contributions,
        max_pixels=wishes.max_pixels,
        format=wishes.format,
        part_items=part_items,
    )


def _read_plan(out: Path) -> Plan | None:
    path = out / PLAN
    if path.exists():
        try:
            return Plan.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise InvalidInput(
                f"{path}: not a plan that this version reads; name another folder or --restart"
            ) from error
    others = [p.name for p in out.iterdir() if not p.name.startswith((".", "_"))]
    if others:
        raise InvalidInput(
            f"{out}: holds {sorted(others)[0]} and no results; name a folder that is new or empty"
        )
    return None


def _forget(out: Path) -> None:
    """Nothing that an earlier run wrote is left."""
    (out / PLAN).unlink(missing_ok=True)
    for path in [out / SUMMARY, *out.glob("part-*.parquet"), *out.glob("part-*.csv")]:
        path.unlink(missing_ok=True)
    sources.forget(out)


def _summarise(out: Path, plan: Plan, items: int, seconds: float) -> None:
    summary = {
        "model": f"{plan.model.name}/{plan.model.version}",
        "items": plan.input.items,
        "counts": parts.count(out, plan),
        "fpr": plan.options.fpr,
        "parts": plan.parts,
        "last_run": {
            "items": items,
            "seconds": round(seconds, 3),
            "items_per_second": round(items / max(seconds, 1e-9), 1),
        },
    }
    temporary = out / f".{SUMMARY}.{os.getpid()}"
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    temporary.replace(out / SUMMARY)
