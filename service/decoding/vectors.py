"""From csv or JSON to feature vectors in the manifest's order of features.

Features are matched by name, in any order, where both the model and what was sent have names, else
by position. A vector is one item and must be whole: one feature without a finite number refuses
the request, and the answer says which vector and which feature.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from service.contract.errors import FieldError, InvalidInput
from service.contract.manifest import VectorInput
from service.decoding.cells import (
    LABEL_COLUMNS,
    MAX_ERRORS,
    TIME_COLUMNS,
    Table,
    check_width,
    csv_records,
    json_table,
    number_in_text,
    numbers,
    pick_columns,
    read_header,
)

NOUN = "vector"
_SHOWN = 8  # names in a message; a model may have thousands


@dataclass(frozen=True)
class Vectors:
    """Vectors ready for ``prepare_vectors``: every value is finite."""

    values: Float64[np.ndarray, "N D"]
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)


def feature_name(spec: VectorInput, feature: int) -> str | int:
    """What answers call a feature: its name, or its number from 0 where the model has no names."""
    return spec.names[feature] if spec.names else feature


def feature_label(spec: VectorInput, feature: int) -> str:
    """What messages call a feature."""
    return f"feature {feature_name(spec, feature)!r}"


def feature_names(spec: VectorInput) -> tuple[str, ...]:
    """Of the features in a header: their numbers, where they have no names."""
    return spec.names or tuple(map(str, range(spec.features)))


def read_json(spec: VectorInput, body: bytes, max_cells: int) -> Vectors:
    """The vectors of ``{"columns": [...]?, "vectors": [[...]]}``.

    Raises:
        MalformedInput: not JSON.
        InvalidInput: other members, wrong columns, lengths or cells, or no vector.
        InputTooLarge: more than ``max_cells`` cells.
    """
    table, _ = json_table(body, NOUN, spec.features, max_cells)
    return _vectors(spec, table)


def read_csv(spec: VectorInput, body: bytes, max_cells: int) -> Vectors:
    """The vectors of a csv file with a header line; comma, semicolon or tab between cells.

    Raises:
        MalformedInput: not UTF-8 text, or not csv.
        InvalidInput: wrong columns, lengths or cells, or no vector.
        InputTooLarge: more than ``max_cells`` cells.
    """
    names = feature_names(spec)
    rows, lines = csv_records(body, names, max_cells)
    check_width(len(rows[0]), spec.features)
    header = read_header(rows[0], names)
    vectors = _vectors(spec, Table(header, rows[1:], lines[1:], noun=NOUN))
    if spec.names or not all(number_in_text(cell) is not None for cell in header):
        return vectors
    told = (
        "the first line was taken for a header: it holds the numbers of the features; "
        "where it is a vector, put a header above it"
    )
    return Vectors(vectors.values, (*vectors.warnings, told))


def match_features(
    spec: VectorInput, header: tuple[str, ...] | None
) -> tuple[list[int], tuple[str, ...]]:
    """Where each of the manifest's features is, and what was ignored.

    Raises:
        InvalidInput: features are missing, unknown or there twice.
    """
    if header is None:
        return list(range(spec.features)), ()
    names = feature_names(spec)
    where, others, ignored = _located(names, header)
    warnings = tuple(
        f"column {header[i]!r} was taken for a {what} and ignored" for i, what in ignored.items()
    )
    if not spec.names and len(where) < spec.features:
        order = [i for i in range(len(header)) if i not in ignored]
        if len(order) != spec.features:
            raise InvalidInput(
                f"{len(order)} columns of features; the model has {spec.features}",
                (FieldError("/columns", f"{spec.features} are expected"),),
            )
        return order, warnings
    errors = [
        FieldError(f"/columns/{i}", f"column {header[i]!r} occurs twice")
        if header[i] in where
        else FieldError(f"/columns/{i}", f"unknown column {header[i]!r}")
        for i in others
    ]
    errors += [FieldError("/columns", f"missing column {n!r}") for n in names if n not in where]
    if errors:
        told = "; ".join(e.detail for e in errors[:5]) + ("; ..." if len(errors) > 5 else "")
        expected = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        raise InvalidInput(f"{told}. Expected columns: {expected}", tuple(errors[:MAX_ERRORS]))
    return [where[n] for n in names], warnings


def check_whole(
    spec: VectorInput,
    values: Float64[np.ndarray, "N D"],
    place: Callable[[int], str],
    pointer: Callable[[int, int], str],
) -> None:
    """Nothing, where there are vectors and each has a finite number for each feature.

    Args:
        spec: the manifest's rule.
        values: missing ones as NaN.
        place: what vector i is called.
        pointer: to a feature of a vector.

    Raises:
        InvalidInput: there are none, or it names the first features without a number.
    """
    if not len(values):
        raise InvalidInput(
            "no vector was sent; at least one is needed",
            (FieldError(f"/{NOUN}s", "at least one is needed"),),
        )
    if np.isfinite(values).all():
        return
    errors = []
    for i, j in np.argwhere(~np.isfinite(values))[:MAX_ERRORS].tolist():
        what = "is missing" if np.isnan(values[i, j]) else "is infinite"
        told = f"{place(i)}: {feature_label(spec, j)} {what}; every feature needs a finite number"
        errors.append(FieldError(pointer(i, j), told))
    raise InvalidInput(errors[0].detail, tuple(errors))


def _vectors(spec: VectorInput, table: Table) -> Vectors:
    order, warnings = match_features(spec, table.header)
    cells = pick_columns(table, order, spec.features)
    values = numbers(table, cells, order, lambda j: feature_label(spec, j))
    check_whole(spec, values, table.place, lambda i, j: f"{table.pointer(i)}/{order[j]}")
    return Vectors(values, warnings)


def _located(
    names: tuple[str, ...], header: tuple[str, ...]
) -> tuple[dict[str, int], list[int], dict[int, str]]:
    """Where each name is, the columns of no known name or one before, and those passed over."""
    known = set(names)
    where: dict[str, int] = {}
    others: list[int] = []
    ignored: dict[int, str] = {}
    for i, name in enumerate(header):
        if name in known and name not in where:
            where[name] = i
        elif name.lower() in LABEL_COLUMNS and name not in known:
            ignored[i] = "label"
        elif name.lower() in TIME_COLUMNS and name not in known:
            ignored[i] = "time"
        else:
            others.append(i)
    return where, others, ignored
