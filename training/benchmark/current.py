"""Which stored cells still say what the table asks for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from training.benchmark.definition import Cell
from training.benchmark.results import Record


@dataclass(frozen=True)
class Current:
    """The cells of a table, sorted."""

    measured: tuple[Record, ...]
    failed: tuple[Record, ...]
    older_settings: int
    """Measured, or failed, with settings that the table no longer has."""
    other_data: int
    """Measured on files that have changed since."""


def current(records: Mapping[str, Record], expected: Iterable[Cell]) -> Current:
    """What may stand in one report.

    Cells of the same data and split must have seen the same arrays. Where they have not, the files
    changed between them: those of the last measurement count, the others are left out.
    """
    found = [(c, records[c.key]) for c in expected if c.key in records]
    same = [(c, r) for c, r in found if r.get("digest") == c.digest]
    measured = [(c, r) for c, r in same if r["state"] == "measured"]
    newest: dict[str, Record] = {}
    for cell, record in measured:
        last = newest.setdefault(cell.data_digest, record)
        if record["measured_utc"] > last["measured_utc"]:
            newest[cell.data_digest] = record
    kept = [
        r for c, r in measured if r.get("fingerprint") == newest[c.data_digest].get("fingerprint")
    ]
    return Current(
        measured=tuple(kept),
        failed=tuple(r for _, r in same if r["state"] == "failed"),
        older_settings=len(found) - len(same),
        other_data=len(measured) - len(kept),
    )
