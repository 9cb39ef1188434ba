"""A table's TOML: its base, what systems share, which of them it has."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.contract.errors import InvalidInput
from training.benchmark.command import ARTIFACTS
from training.benchmark.definition import TableConfig, merge

TABLES = Path(__file__).parents[1] / "configs" / "tables"


def table_names() -> list[str]:
    """The tables there are; a file whose name begins with _ is a base of others."""
    return sorted(p.stem for p in TABLES.glob("*.toml") if not p.stem.startswith("_"))


def read_table(name: str) -> tuple[str, TableConfig]:
    """Name and contents of a table: one of ``configs/tables``, or a TOML of the user's own.

    Raises:
        InvalidInput: no such table, one of the user's own with the name of one of the project's, or
            contents that are not allowed.
    """
    path = Path(name) if name.endswith(".toml") else TABLES / f"{name}.toml"
    if not path.is_file():
        raise InvalidInput(f"no table {name!r}; there are {', '.join(table_names())}")
    own = path.resolve().parent != TABLES.resolve()
    if own and path.stem in (*table_names(), ARTIFACTS):
        raise InvalidInput(
            f"{path}: its figures would replace those of the table {path.stem}; give the file "
            "another name"
        )
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


def _with_base(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in above:
        raise InvalidInput(f"{above[0]}: a table whose base, or the base of that, is itself")
    try:
        members = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: {error}") from error
    base = members.pop("base", None)
    if not base:
        return members
    return merge(_with_base(path.with_name(f"{base}.toml"), (*above, path.resolve())), members)
