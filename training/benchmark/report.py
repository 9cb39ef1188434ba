"""A table as markdown: ours, published, both over the same cases, what it cost, what is missing."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from training.benchmark.current import Current, current
from training.benchmark.definition import Cell, TableConfig
from training.benchmark.results import Record, Results, write_whole
from training.benchmark.summary import Row, beside, gains, rows_of
from training.markdown import table as as_table
from training.tables import Table

_TUNED = {
    True: "tuned on test",
    False: "not tuned on test",
    None: "selection not stated",
}
_DIGITS = 3
_MEANS = {
    True: "The mean is over the measured cases of its row; ± is half of its 95 % interval over "
    "repetitions with other seeds (Student's t over the seeds that have all of these cases; none "
    "below two seeds), which says nothing of other data.",
    False: "There is no mean over cases: they are not of one kind.",
}
_FEWER = (
    "Rows with fewer cells are means over other cases or seeds; in brackets: of how many cells a "
    "figure is the mean, where it is not of all."
)
_WIDE = 12
"""Columns beyond which systems become the columns and cases the rows."""


def write_report(name: str, table: TableConfig, results: Results, expected: Sequence[Cell]) -> Path:
    """``<name>.md`` beside the JSON file of the results, written anew from it.

    Args:
        name: of the table.
        table: what it asks for.
        results: the cells as stored.
        expected: the cells that there should be; what was measured with other settings or on other
            data is left out, and counted.
    """
    path = results.path.with_suffix(".md")
    with results.locked():  # else a command that read earlier could write later
        found = current(results.read(), expected)
        write_whole(path, "\n".join(_lines(name, table, found, len(expected))) + "\n")
    return path


def _lines(name: str, table: TableConfig, found: Current, total: int) -> list[str]:
    published = table.published_tables()
    rows = rows_of(table, found.measured, table.metric)
    return [
        f"# {table.title}",
        "",
        table.protocol,
        "",
        *_state(name, table, found, total),
        *_ours(table, rows),
        *_theirs(table, rows, published),
        *_beside(table, rows, published),
        *_gains(table, rows, published),
        *_other_figures(table, found.measured),
        *_cost(table, found.measured),
        *_classes(table, found.measured),
        *_failed(found.failed),
    ]


def _state(name: str, table: TableConfig, found: Current, total: int) -> list[str]:
    cells = found.measured
    counted = f"**{len(cells)} of {total} cells measured**"
    if found.failed:
        counted += f", {len(found.failed)} failed"
    if found.older_settings:
        counted += f", {found.older_settings} measured with older settings left out"
    if found.other_data:
        counted += f", {found.other_data} measured on data that changed since left out"
    example = [r["protocol"] for r in cells[:1]]
    commits = sorted({r["commit"] for r in cells})
    return [
        f"{counted}; made by `python -m training benchmark {name}`"
        + (f" at commit {', '.join(commits)}" if commits else "")
        + f". Seeds {', '.join(map(str, table.seeds))}.",
        "",
        f"A cell is the mean over seeds; empty: not measured. {_MEANS[table.mean]} Scores are "
        "those of the exported files, as served. Figures of the test split seen while settings "
        f"were found: {table.seen or 'none'}.",
        *(f"\nOf the loader, for one of the cases: {text}." for text in example),
        *(f"\n{row.label}: {row.note}" for row in table.systems.values() if row.note),
        *(f"\nNote: {note}." for note in sorted({n for r in cells for n in r["notes"]})),
    ]


def _ours(table: TableConfig, rows: Sequence[Row]) -> list[str]:
    over = ["mean", "±", "cases"] if table.mean else []
    heading = ["system", *table.cases, *table.groups, *over]
    lines = [
        [
            row.label,
            *(_number(row.columns.get(c)) for c in (*table.cases, *table.groups)),
            *(_over_cases(table, row) if table.mean else ()),
        ]
        for row in rows
    ]
    return ["", f"## Measured, {table.metric}", "", *_matrix(heading, lines)]


def _over_cases(table: TableConfig, row: Row) -> list[str]:
    spread = f"{row.repeated} seeds identical" if row.repeated else _number(row.interval)
    return [_number(row.mean), spread, f"{len(row.by_case)} of {len(table.cases)}"]


def _theirs(table: TableConfig, rows: Sequence[Row], published: Sequence[Table]) -> list[str]:
    measured = {c for row in rows for c in row.columns}
    lines: list[str] = []
    for theirs in published:
        if theirs.metric != table.metric:
            continue
        columns = [c for c in (*table.cases, *table.groups) if c in theirs.cases]
        both = [c for c in columns if c in measured]
        over = [f"mean of the {len(both)} measured"] if columns and table.mean else []
        printed_mean = ["mean as printed"] if {"mean", "all"} & set(theirs.cases) else []
        heading = ["system", *columns, *over, *printed_mean, "settings"]
        body = []
        for model, values in theirs.rows.items():
            printed = dict(zip(theirs.cases, values, strict=True))
            known = [v for c in both if (v := printed[c]) is not None]
            body.append(
                [
                    model,
                    *(_number(printed[c]) for c in columns),
                    *([_number(_mean(known))] if over else []),
                    *([_number(printed.get("mean", printed.get("all")))] if printed_mean else []),
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
            str(len(pair.cases)) if table.mean else pair.cases[0],
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
    if not printed or not ours or not table.mean:
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
    names = list(dict.fromkeys(n for r in cells for n in r["metrics"] if n != table.metric))
    if not names:
        return []
    lines = []
    for key, row in table.rows.items():
        for case in (None,) if table.mean else table.cases:
            own = [r["metrics"] for r in cells if r["row"] == key and case in (None, r["case"])]
            if own:
                figures = [_mean_of([m[n] for m in own if n in m], len(own)) for n in names]
                lines.append([row.label, *([case] if case else []), *figures, str(len(own))])
    heading = ["system", *([] if table.mean else ["case"]), *names, "cells"]
    title = "mean over measured cells" if table.mean else "mean over seeds"
    return ["", f"## Other figures, {title}", "", _FEWER, "", *as_table(heading, lines)]


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
    own = {k: [r["by_class"] for r in cells if r["row"] == k] for k in table.rows}
    own = {key: found for key, found in own.items() if found}
    lines = [
        [
            name,
            *(
                _mean_of([c[name] for c in found if name in c], len(found))
                for found in own.values()
            ),
        ]
        for name in names
    ]
    lines.append(["cells", *(str(len(found)) for found in own.values())])
    heading = ["anomalies", *(table.rows[key].label for key in own)]
    text = f"AUROC against all normal items, mean over measured cells. {_FEWER}"
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


def _mean_of(values: Sequence[float], cells: int) -> str:
    """The mean, and of how many cells where that is not all of them."""
    fewer = f" ({len(values)})" if 0 < len(values) < cells else ""
    return _number(_mean(values)) + fewer


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.{_DIGITS}f}"
