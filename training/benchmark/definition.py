"""A table, and the cells that it asks for."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.contract.errors import InvalidInput
from training.benchmark.digest import data_digest, digest_of
from training.config import TrainConfig, make_config
from training.families import FAMILIES
from training.processes import TrainSettings
from training.tables import Table, data_name, tables_about
from training.tables.kinds import Setting

Device = Literal["auto", "cpu", "gpu"]


class _Members(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ReadoutConfig(_Members):
    """Another score of the same fit: a row of its own."""

    label: str
    published: tuple[str, ...] = ()
    model: dict[str, Any] = {}
    """What differs from the system's ``[model]``: what the family names in ``score_only``."""


class SystemConfig(_Members):
    """One system of a table."""

    label: str
    family: str
    published: tuple[str, ...] = ()
    """Its rows in the published tables; ``S1 VAE`` is the row VAE of the paper S1 alone."""
    data: dict[str, Any] = {}
    input: dict[str, Any] = {}
    model: dict[str, Any] = {}
    training_stride: int = 1
    readouts: dict[str, ReadoutConfig] = {}
    """Instead of the row of the system itself, one for each."""
    note: str = ""
    """What a reader must know of its settings."""

    @model_validator(mode="after")
    def _read_outs_share_the_fit(self) -> Self:
        if self.family not in FAMILIES:
            return self  # told by its name where the cells are made
        free = FAMILIES[self.family].Config.score_only
        for name, readout in self.readouts.items():
            if wrong := sorted(set(readout.model) - free):
                raise ValueError(
                    f"read-out {name} sets {', '.join(wrong)}, which may change what is trained: "
                    f"of family {self.family} only {', '.join(sorted(free)) or 'nothing'} does "
                    "not; make it a system of its own"
                )
        return self


class TableConfig(_Members):
    """One TOML of ``configs/tables``."""

    title: str
    protocol: str
    """What is normal, what is anomalous and how the data is split, in a sentence or two."""
    setting: Setting
    published: tuple[str, ...] = ()
    """Keys of the published tables that stand beside it, such as ``S1 Table II``."""
    published_cases: tuple[str, ...] = ()
    """Of those tables, the columns of the same protocol; empty: all."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    metric: str = "auroc"
    by_class: bool = False
    """Whether the AUROC of each anomalous class alone is shown too."""
    mean: bool = True
    """Whether a mean over cases says anything; without, each case stands for itself."""
    seen: str = ""
    """What figures of the test split were seen while the settings were found; empty for none."""
    data: dict[str, Any]
    cases: dict[str, dict[str, Any]] = Field(min_length=1)
    """What each case adds to ``data``; its name is that of the published column."""
    groups: dict[str, tuple[str, ...]] = {}
    """Cases whose mean is shown by itself."""
    systems: dict[str, SystemConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        unknown = {c for members in self.groups.values() for c in members} - set(self.cases)
        if unknown:
            raise ValueError(f"groups name cases that there are not: {sorted(unknown)}")
        columns = {*self.cases, *self.groups}
        if unknown := set(self.published_cases) - columns:
            raise ValueError(f"published_cases that there are not: {sorted(unknown)}")
        known = {t.key for t in self.tables()}
        if wrong := set(self.published) - known:
            raise ValueError(
                f"nothing was published as {sorted(wrong)} of {data_name(self.data)}, "
                f"{self.setting}; known are {sorted(known)}"
            )
        return self

    def tables(self) -> list[Table]:
        """The published tables that may stand beside this one."""
        return tables_about(data_name(self.data), self.setting)

    def published_tables(self) -> list[Table]:
        """Those that do, cut down to ``published_cases``."""
        found = [t for t in self.tables() if t.key in self.published]
        return (
            [_of_cases(t, self.published_cases) for t in found] if self.published_cases else found
        )

    @property
    def rows(self) -> dict[str, SystemConfig | ReadoutConfig]:
        """What has a row, by its key."""
        found: dict[str, SystemConfig | ReadoutConfig] = {}
        for key, system in self.systems.items():
            for readout, config in system.readouts.items():
                found[f"{key}/{readout}"] = config
            if not system.readouts:
                found[key] = system
        return found


@dataclass(frozen=True)
class Cell:
    """One row on one case with one seed."""

    row: str
    case: str
    seed: int
    config: TrainConfig

    @property
    def key(self) -> str:
        return f"{self.row} | {self.case} | {self.seed}"

    @cached_property
    def digest(self) -> str:
        """Of everything that is said of this cell, defaults included; not of the code."""
        return digest_of(self.config)

    @cached_property
    def data_digest(self) -> str:
        """The same where the same data is asked for, split by the same seed."""
        return data_digest(self.config)


@dataclass(frozen=True)
class Job:
    """The cells that one fit serves."""

    run: str
    """Name of the run folder: the same for the same fit, whatever table asks for it."""
    cells: tuple[Cell, ...]


def jobs_of(
    table: TableConfig,
    *,
    cases: Collection[str] = (),
    seeds: Collection[int] = (),
    systems: Collection[str] = (),
    device: Device = "auto",
) -> list[Job]:
    """The fits that a table asks for, in the order in which they are best made: every system has
    the first case and seed before any has the second.

    Args:
        table: what there is.
        cases: by name or by the number of the class; all by default.
        seeds: those of the table by default.
        systems: keys, or rows with their read-out; all by default.
        device: Lightning's accelerator.

    Raises:
        InvalidInput: a case or system that there is not, or settings that a family does not allow.
    """
    chosen = _chosen_cases(table, cases)
    wanted = _chosen_rows(table, systems)
    jobs = []
    for seed in seeds or table.seeds:
        for case in chosen:
            for key, system in table.systems.items():
                members = {
                    "name": "benchmark",
                    "family": system.family,
                    "seed": seed,
                    "data": merge(merge(table.data, system.data), table.cases[case]),
                    "input": system.input,
                    "training_stride": system.training_stride,
                    "model": system.model,
                    "train": TrainSettings(accelerator=device).model_dump(),
                }
                fit = make_config(members, f"systems.{key}")
                cells = tuple(
                    Cell(row, case, seed, _read_out(members, table.rows[row], row))
                    for row in wanted
                    if row.partition("/")[0] == key
                )
                if cells:
                    jobs.append(Job(f"{system.family}-{digest_of(fit)[:16]}", cells))
    return jobs


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, tables within tables likewise."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        inside = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(merged[key], value) if inside else value
    return merged


def _of_cases(table: Table, cases: Collection[str]) -> Table:
    kept = [i for i, case in enumerate(table.cases) if case in cases]
    return dataclasses.replace(
        table,
        cases=tuple(table.cases[i] for i in kept),
        rows={model: tuple(values[i] for i in kept) for model, values in table.rows.items()},
    )


def _read_out(members: dict[str, Any], row: SystemConfig | ReadoutConfig, name: str) -> TrainConfig:
    return make_config(members | {"model": merge(members["model"], row.model)}, f"systems.{name}")


def _chosen_cases(table: TableConfig, wanted: Collection[str]) -> list[str]:
    """Names of cases; a number that is no name is that of a case's only class."""
    by_number = {}
    for name, options in table.cases.items():
        for key in ("novel", "normal"):
            if len(options.get(key, ())) == 1:
                by_number[str(options[key][0])] = name
    found = [w if w in table.cases else by_number.get(w, "") for w in wanted]
    if "" in found:
        raise InvalidInput(f"no case {', '.join(wanted)}; there are {', '.join(table.cases)}")
    return [c for c in table.cases if not wanted or c in found]


def _chosen_rows(table: TableConfig, wanted: Collection[str]) -> list[str]:
    unknown = set(wanted) - set(table.systems) - set(table.rows)
    if unknown:
        raise InvalidInput(
            f"no system {', '.join(sorted(unknown))}; there are {', '.join(table.systems)}"
        )
    return [r for r in table.rows if not wanted or {r, r.partition("/")[0]} & set(wanted)]
