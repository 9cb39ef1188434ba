"""The files of results: written wholly or not at all, under names that say which part they are."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from service.contract.errors import InvalidInput
from training.bulk.plan import Plan

_VERDICT: list[tuple[str, pa.DataType]] = [
    ("score", pa.float64()),
    ("p_value", pa.float64()),
    ("raw_score", pa.float64()),
    ("threshold", pa.float64()),
    ("fpr", pa.float64()),
    ("decision", pa.string()),
    ("reason", pa.string()),
    ("error", pa.string()),
]
_FILE_KEYS: list[tuple[str, pa.DataType]] = [("path", pa.string()), ("row", pa.int64())]
_WINDOW_KEYS: list[tuple[str, pa.DataType]] = [
    ("recording", pa.string()),
    ("index", pa.int64()),
    ("start", pa.int64()),
    ("end", pa.int64()),
]


def schema_of(plan: Plan, columns: tuple[str, ...] = ()) -> pa.Schema:
    """The columns of every part.

    Args:
        columns: names of the sensors or features, in the order of the contributions.
    """
    fields = (_WINDOW_KEYS if plan.input.kind == "rows" else _FILE_KEYS) + _VERDICT
    if plan.options.contributions:
        fields = [*fields, ("contributions", pa.list_(pa.float64()))]
    about = {
        "anomaly.model": f"{plan.model.name}/{plan.model.version}",
        "anomaly.digest": plan.model.digest,
        "anomaly.columns": json.dumps(columns),
    }
    return pa.schema(fields, metadata=about)


def write_part(folder: Path, name: str, table: pa.Table) -> None:
    """A finished part. The same table gives the same bytes; a second writer changes nothing."""
    host = os.uname().nodename
    temporary = folder / f".{name}.{host}.{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            if name.endswith(".csv"):
                pa_csv.write_csv(_flat(table), file)
            else:
                pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)
    finally:
        temporary.unlink(missing_ok=True)


def _flat(table: pa.Table) -> pa.Table:
    """Lists as JSON, which csv has no cell for."""
    if "contributions" not in table.column_names:
        return table
    texts = [None if c is None else json.dumps(c) for c in table["contributions"].to_pylist()]
    at = table.schema.get_field_index("contributions")
    return table.set_column(at, "contributions", pa.array(texts, pa.string()))


def remove_unfinished(folder: Path) -> None:
    """What writers left that were killed."""
    for path in folder.glob(".part-*"):
        path.unlink(missing_ok=True)


def count(folder: Path, plan: Plan) -> dict[str, int]:
    """How often there is each decision and error, read from the finished parts.

    Raises:
        InvalidInput: a part does not hold as many items as it should; nothing is counted then.
    """
    found = {"normal": 0, "review": 0, "anomalous": 0, "not_scorable": 0, "error": 0}
    for part in range(plan.parts):
        first, end = plan.slice_of(part)
        path = folder / plan.name_of(part)
        table = _verdicts(path)
        if len(table) != end - first:
            raise InvalidInput(f"{path}: holds {len(table)} items, expected {end - first}")
        for entry in pc.value_counts(table["decision"]).to_pylist():
            found[entry["values"] or "error"] += entry["counts"]
    return found


def _verdicts(path: Path) -> Any:
    if path.suffix == ".parquet":
        return pq.read_table(path, columns=["decision"])
    options = pa_csv.ConvertOptions(
        include_columns=["decision"],
        column_types={"decision": pa.string()},
        strings_can_be_null=True,
    )
    lines = pa_csv.ParseOptions(newlines_in_values=True)
    return pa_csv.read_csv(path, convert_options=options, parse_options=lines)
