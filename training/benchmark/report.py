"""A table as markdown: ours, published, both over the same cases, what it cost, what is missing."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from training.benchmark.definition import TableConfig
from training.benchmark.results import Record
from training.benchmark.summary import Row, beside, gains, rows_of
from training.markdown import table as as_table
from training.tables import Table

_TUNED = {
    True: "tuned on test",
    False: "not tuned on test",
    None: "selection not stated",
}
_DIGITS = 3
_WIDE = 12
"""Columns beyond which systems become the columns and cases the rows."""


def write_report(
    name: str,
    table: TableConfig,
    records: Mapping[str, Record],
    expected: Mapping[str, str],
    folder: Path,
) -> Path:
    """``<name>.md`` in ``folder``, written anew.

    Args:
        name: of the table.
        table: what it asks for.
        records: cells by key, as stored.
        expected: digest of each cell that there should be; what was measured with others is left
            out, and counted.
        folder: the JSON file lies there too.
    """
    current = [
        records[k] for k, d in expected.items() if k in records and records[k]["digest"] == d
    ]
    cells = [r for r in current if r["state"] == "measured"]
    failures = [r for r in current if r["state"] == "failed"]
    published = [t for t in table.tables() if t.key in table.published]
    rows = rows_of(table, cells, table.metric)
    lines = [
        f"# {table.title}",
        "",
        table.protocol,
        "",
        *_state(name, table, cells, failures, len(expected), len(_stale(records, expected))),
        *_ours(table, rows),
        *_theirs(table, rows, published),
        *_beside(table, rows, published),
        *_gains(table, rows, published),
        *_other_figures(table, cells),
        *_cost(table, cells),
        *_classes(table, cells),
        *_failed(failures),
    ]
    path = folder / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".md.new")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(path)
    return path


def _stale(records: Mapping[str, Record], expected: Mapping[str, str]) -> list[str]:
    return [k for k, d in expected.items() if k in records and records[k]["digest"] != d]


def _state(
    name: str,
    table: TableConfig,
    cells: Sequence[Record],
    failures: Sequence[Record],
    total: int,
    stale: int,
) -> list[str]:
    counted = f"**{len(cells)} of {total} cells measured**"
    if failures:
        counted += f", {len(failures)} failed"
    if stale:
        counted += f", {stale} measured with older settings left out"
    example = [r["protocol"] for r in cells[:1]]
    commits = sorted({r["commit"] for r in cells})
    seen = table.seen or "none"
    return [
        f"{counted}; made by `python -m training benchmark {name}`"
        + (f" at commit {', '.join(commits)}" if commits else "")
        + f". Seeds {', '.join(map(str, table.seeds))}.",
        "",
        "A cell is the mean over seeds; empty: not measured. The mean is over the measured cases "
        "of its row; ± is half of its 95 % interval over repetitions with other seeds (Student's "
        "t over the seeds that have all of these cases; none below two seeds), which says nothing "
        "of other data. Scores are those of the exported files, as served. Figures of the test "
        f"split seen while settings were found: {seen}.",
        *(f"\nOf the loader, for one of the cases: {text}." for text in example),
        *(f"\n{row.label}: {row.note}" for row in table.systems.values() if row.note),
        *(f"\nNote: {note}." for note in sorted({n for r in cells for n in r["notes"]})),
    ]


def _ours(table: TableConfig, rows: Sequence[Row]) -> list[str]:
    heading = ["system", *table.cases, *table.groups, "mean", "±", "cases"]
    lines = [
        [
            row.label,
            *(_number(row.columns.get(c)) for c in (*table.cases, *table.groups)),
            _number(row.mean),
            _number(row.interval),
            f"{len(row.by_case)} of {len(table.cases)}",
        ]
        for row in rows
    ]
    return ["", f"## Measured, {table.metric}", "", *_matrix(heading, lines)]


def _theirs(table: TableConfig, rows: Sequence[Row], published: Sequence[Table]) -> list[str]:
    measured = {c for row in rows for c in row.columns}
    lines: list[str] = []
    for theirs in published:
        if theirs.metric != table.metric:
            continue
        columns = [c for c in (*table.cases, *table.groups) if c in theirs.cases]
        both = [c for c in columns if c in measured]
        over = [f"mean of the {len(both)} measured"] if columns else []
        heading = ["system", *columns, *over, "mean as printed", "settings"]
        body = []
        for model, values in theirs.rows.items():
            printed = dict(zip(theirs.cases, values, strict=True))
            known = [v for c in both if (v := printed[c]) is not None]
            body.append(
                [
                    model,
                    *(_number(printed[c]) for c in columns),
                    *([_number(_mean(known))] if columns else []),
                    _number(printed.get("mean", printed.get("all"))),
                    _TUNED[theirs.tuned_on_test(model)],
                ]
            )
        note = f" {theirs.note[:1].upper()}{theirs.note[1:]}." if theirs.note else ""
        lines += ["", f"{theirs.paper.cite}, {theirs.label}.{note}", "", *_matrix(heading, body)]
    return ["", "## Published", *lines] if lines else []


def _beside(table: TableConfig, rows: Sequence[Row], published: Sequence[Table]) -> list[str]:
    pairs = beside(table, rows, published)
    if not pairs:
        return []
    heading = ["ours", "published", "ours", "published", "difference", "cases", "published row"]
    lines = [
        [
            pair.ours,
            pair.theirs,
            _number(pair.our_mean),
            _number(pair.their_mean),
            f"{pair.our_mean - pair.their_mean:+.{_DIGITS}f}",
            str(len(pair.cases)),
            _TUNED[pair.table.tuned_on_test(pair.row)],
        ]
        for pair in pairs
    ]
    return [
        "",
        "## Ours beside theirs, over the same cases",
        "",
        "The protocols differ in more than the tuning: this is no test of who is better.",
        "",
        *as_table(heading, lines),
    ]


def _gains(table: TableConfig, rows: Sequence[Row], published: Sequence[Table]) -> list[str]:
    printed = [t for t in published if t.metric == "reconstruction_gain"]
    ours = gains(table, rows)
    if not printed or not ours:
        return []
    lines = []
    for key, gain in ours.items():
        system = table.systems[key]
        names = {n.removeprefix(f"{t.paper.key} "): t for t in printed for n in system.published}
        values = [t.rows[n][0] for n, t in names.items() if n in t.rows]
        theirs = f"{values[0]:.1%}" if values and values[0] is not None else ""
        lines.append([system.label, f"{gain:.1%}", theirs])
    heading = ["system", "1 - reconstruction / NLN", f"{printed[0].key} (tuned on test)"]
    return ["", "## Gain of nearest neighbours", "", *as_table(heading, lines)]


def _other_figures(table: TableConfig, cells: Sequence[Record]) -> list[str]:
    names = dict.fromkeys(n for r in cells for n in r["metrics"] if n != table.metric)
    if not names:
        return []
    lines = []
    for key, row in table.rows.items():
        own = [r["metrics"] for r in cells if r["row"] == key]
        if own:
            figures = [_number(_mean(m[n] for m in own if n in m)) for n in names]
            lines.append([row.label, *figures, str(len(own))])
    heading = ["system", *names, "cells"]
    return ["", "## Other figures, mean over measured cells", "", *as_table(heading, lines)]


def _cost(table: TableConfig, cells: Sequence[Record]) -> list[str]:
    lines = []
    for key, row in table.rows.items():
        own = [r for r in cells if r["row"] == key]
        if not own:
            continue
        per_item = [1e3 * r["seconds"]["score"] / r["items"]["test"] for r in own]
        lines.append(
            [
                row.label,
                ", ".join(f"{k} {v}" for k, v in own[-1]["budget"].items()),
                f"{np.mean([r['items']['train'] for r in own]):.0f}",
                f"{np.mean([r['seconds']['fit'] for r in own]):.1f}",
                f"{np.mean([r['seconds']['export'] for r in own]):.1f}",
                f"{np.mean(per_item):.3f}",
                "; ".join(sorted({r["device"] for r in own})),
            ]
        )
    if not lines:
        return []
    heading = ["system", "trained for", "items", "fit s", "export s", "score ms an item", "device"]
    return [
        "",
        "## Cost, mean over measured cells",
        "",
        "The seconds of a read-out are those of the fit that it shares with others, and its own.",
        "",
        *as_table(heading, lines),
    ]


def _classes(table: TableConfig, cells: Sequence[Record]) -> list[str]:
    names = dict.fromkeys(n for r in cells for n in r["by_class"])
    if not table.by_class or not names:
        return []
    keys = [k for k in table.rows if any(r["row"] == k for r in cells)]

    def mean(key: str, name: str) -> float | None:
        return _mean(
            r["by_class"][name] for r in cells if r["row"] == key and name in r["by_class"]
        )

    lines = [[name, *(_number(mean(key, name)) for key in keys)] for name in names]
    heading = ["anomalies", *(table.rows[k].label for k in keys)]
    text = "AUROC against all normal items, mean over measured cells."
    return ["", "## By class of anomaly", "", text, "", *as_table(heading, lines)]


def _failed(failures: Sequence[Record]) -> list[str]:
    if not failures:
        return []
    by_error: dict[str, list[str]] = {}
    for r in failures:
        by_error.setdefault(r["error"].splitlines()[0], []).append(
            f"{r['row']} on {r['case']}, seed {r['seed']}"
        )
    lines = [f"- {error} ({len(where)}: {_some(where)})" for error, where in by_error.items()]
    return ["", "## Failed", "", *lines]


def _matrix(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table, turned round where it is very wide."""
    if len(heading) <= _WIDE + 4:
        return as_table(heading, lines)
    first, *others = zip(heading, *lines, strict=True)
    return as_table(first, others)


def _some(items: Sequence[str], most: int = 3) -> str:
    return "; ".join(items[:most]) + ("; ..." if len(items) > most else "")


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.{_DIGITS}f}"
