"""The published rows that belong beside one of our results."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from training.tables.images import IMAGES
from training.tables.kinds import Published, Setting, Table
from training.tables.vectors import VECTORS

PUBLISHED: tuple[Table, ...] = (*IMAGES, *VECTORS)
_MEAN = ("mean", "all")


def data_name(options: Mapping[str, Any]) -> str:
    """What ``[data]`` options ask for, by one name: the loader's, and the set where it has many."""
    return "-".join(str(options[key]) for key in ("name", "set") if key in options)


def tables_about(data: str, setting: Setting) -> list[Table]:
    """The published tables of a data set in a setting; case and punctuation do not matter."""
    name = plain(data)
    return [t for t in PUBLISHED if _is_about(t.data, name) and t.setting == setting]


def published_for(
    family: str, data: str, normal: Iterable[int] = (), novel: Iterable[int] = ()
) -> list[Published]:
    """The published figures for this data and choice of classes, the same method's first.

    Of each table the cell of the class (or category, or set) and the mean over cases are given;
    relative gains are left out. An empty list where nothing was published for the setting.

    Args:
        family: our family, to tell the same method from the others.
        data: name of the data set as ``data_name`` gives it; case and punctuation do not matter.
        normal: classes that are normal; of the ten classes, all that are not novel by default.
        novel: classes that are anomalous; by default all that are not normal.
    """
    name = plain(data)
    normal, novel = sorted(set(normal)), sorted(set(novel))
    if bool(normal) != bool(novel):
        others = [c for c in range(10) if c not in (*normal, *novel)]
        normal, novel = normal or others, novel or others
    rows = []
    for table in PUBLISHED:
        about = _is_about(table.data, name) and table.metric != "reconstruction_gain"
        if not about or not _setting_fits(table.setting, normal, novel):
            continue
        case = _case(table, name, normal, novel)
        for column, label in enumerate(table.cases):
            if label not in (case, *_MEAN):
                continue
            for model, values in table.rows.items():
                value = values[column]
                if value is not None:
                    rows.append(_row(table, model, value, label, family))
    return sorted(rows, key=lambda row: not row.same_method)


def plain(name: str) -> str:
    """A name without case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _row(table: Table, model: str, value: float, case: str, family: str) -> Published:
    return Published(
        model=model,
        value=value,
        case=case,
        metric=table.metric,
        source=f"{table.paper.cite}, {table.label}",
        tuned_on_test=table.tuned_on_test(model),
        same_method=model in table.own and table.paper.family == family,
        note=table.note,
    )


def _is_about(data: str, name: str) -> bool:
    if data in ("mvtec", "adbench"):
        return name.startswith(data)
    aliases = {"fashionmnist": ("fashionmnist", "fashion", "fmnist"), "wtbi": ("wtbi", "icing")}
    return name in aliases.get(data, (data,))


def _setting_fits(setting: Setting, normal: list[int], novel: list[int]) -> bool:
    if setting == "many-vs-one":
        return len(novel) == 1 and len(normal) > 1
    if setting == "one-vs-rest":
        return len(normal) == 1 and len(novel) > 1
    if setting == "many-vs-many":
        return len(normal) == 5 and len(novel) == 5
    return True


def _case(table: Table, name: str, normal: list[int], novel: list[int]) -> str | None:
    """The label of the column for this choice of classes; None where only the mean applies."""
    if table.setting == "many-vs-one":
        position = novel[0]
    elif table.setting == "one-vs-rest":
        position = normal[0]
    elif table.setting == "many-vs-many":
        sets = [label for label in table.cases if sorted(label) == [str(c) for c in normal]]
        return sets[0] if sets else None
    else:
        found = [c for c in table.cases if name.endswith(plain(c))]
        return max(found, key=len) if found else None
    return table.cases[position] if 0 <= position < len(table.cases) - 1 else None
