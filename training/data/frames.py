"""A user's table as a frame whose columns are called by what a person reads in its header."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from service.contract.errors import FieldError, InvalidInput


def read_frame(path: Path) -> pd.DataFrame:
    """A csv or parquet file; names of columns are text without spaces around them.

    Raises:
        InvalidInput: it cannot be read, columns have no name or the same one, the first line of a
            csv file is no header, or its rows have more cells than that.
    """
    try:
        if path.suffix.lower() == ".parquet":
            frame = pd.read_parquet(path)
            header = list(map(str, frame.columns))
        else:
            # with a header, pandas would call a second "a" a.1, make a name where there is none,
            # and take the first cells for an index where rows have one more than the header
            first = pd.read_csv(path, header=None, nrows=2, dtype=str, keep_default_na=False)
            header = first.iloc[0].tolist()
            frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path}: not a readable table ({error})") from error
    names = [name.strip() for name in header]
    _check_names(path, names)
    frame.columns = pd.Index(names)
    return frame


def _check_names(path: Path, names: Sequence[str]) -> None:
    if "" in names:
        place = names.index("") + 1
        raise InvalidInput(
            f"{path}: column {place} has no name; every column needs one (the index that pandas "
            "writes has none: index=False leaves it out)"
        )
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise InvalidInput(
            f"{path}: column {twice[0]!r} occurs twice", (FieldError(f"/{twice[0]}", "twice"),)
        )
    numbered = sorted(names) == sorted(map(str, range(len(names))))
    if path.suffix.lower() != ".parquet" and not numbered and all(map(_is_number, names)):
        raise InvalidInput(f"{path}: the first line must be a header with the names of the columns")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
