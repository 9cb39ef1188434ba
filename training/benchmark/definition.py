"""A table's TOML, and the cells that it asks for."""

import hashlib
import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.contract.errors import InvalidInput
from training.config import TrainConfig, make_config
from training.processes import TrainSettings
from training.tables import Table, data_name, tables_about
from training.tables.kinds import Setting

Device = Literal["auto", "cpu", "gpu"]
TABLES = Path(__file__).parents[1] / "configs" / "tables"


class _Members(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ReadoutConfig(_Members):
    """Another score of the same fit: a row of its own."""

    label: str
    published: tuple[str, ...] = ()
    model: dict[str, Any] = {}
    """What differs from the system's ``[model]``; must not change what is trained."""


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


class TableConfig(_Members):
    """One TOML of ``configs/tables``."""

    title: str
    protocol: str
    """What is normal, what is anomalous and how the data is split, in a sentence or two."""
    setting: Setting
    published: tuple[str, ...] = ()
    """Keys of the published tables that stand beside it, such as ``S1 Table II``."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    metric: str = "auroc"
    by_class: bool = False
    """Whether the AUROC of each anomalous class alone is shown too."""
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

    @property
    def digest(self) -> str:
        """Of everything that the table says of this cell; not of the code."""
        return digest_of(self.config)


@dataclass(frozen=True)
class Job:
    """The cells that one fit serves."""

    run: str
    """Name of the run folder: the same for the same fit, whatever table asks for it."""
    cells: tuple[Cell, ...]


def digest_of(config: TrainConfig) -> str:
    """sha256 of what decides a fit and its score."""
    members = config.model_dump(include=_DECIDING, mode="json")
    return hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()


_DECIDING = {"family", "seed", "data", "input", "training_stride", "model"}


def table_names() -> list[str]:
    """The tables there are; a file whose name begins with _ is a base of others."""
    return sorted(p.stem for p in TABLES.glob("*.toml") if not p.stem.startswith("_"))


def read_table(name: str) -> tuple[str, TableConfig]:
    """Name and contents of a table: one of ``configs/tables``, or a TOML of the user's own.

    Raises:
        InvalidInput: no such table, or its contents are not allowed.
    """
    path = Path(name) if name.endswith(".toml") else TABLES / f"{name}.toml"
    if not path.is_file():
        raise InvalidInput(f"no table {name!r}; there are {', '.join(table_names())}")
    members = _with_base(path)
    defaults = members.pop("defaults", {})
    systems = members.get("systems", {})
    only, leave_out = members.pop("only", list(systems)), members.pop("leave_out", [])
    if unknown := {*only, *leave_out} - set(systems):
        raise InvalidInput(f"{path}: no systems {', '.join(sorted(unknown))}")
    members["systems"] = {
        key: merge(defaults.get(system.get("family"), {}), system)
        for key, system in systems.items()
        if key in only and key not in leave_out
    }
    try:
        return path.stem, TableConfig.model_validate(members)
    except ValidationError as error:
        listing = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidInput(f"{path}: {listing}") from error


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


def _with_base(path: Path) -> dict[str, Any]:
    try:
        members = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: {error}") from error
    base = members.pop("base", None)
    return merge(_with_base(path.with_name(f"{base}.toml")), members) if base else members


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
