"""Sensor recordings from the user's own tables, and from the blade icing contest's files."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from pydantic import Field

from service.contract.errors import FieldError, InvalidInput
from training.data.base import Recording, SeriesData, Source
from training.data.blocks import BlockOptions, cut_at_gaps, split_blocks
from training.data.download import data_folder, require
from training.data.frames import read_frame
from training.data.turbine_columns import CHANNELS, NAMES

TIME_NAMES = frozenset({"time", "timestamp", "date"})
LABEL_NAMES = frozenset({"group", "label"})


class CsvOptions(BlockOptions):
    """A csv or parquet file with a header."""

    path: Path = Field(description="absolute, or relative to the data folder or the working one")
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The sensors in order; default every column that is neither time nor label."""
    time_column: str | None = None
    """Default: a column named time, timestamp or date, in any case."""
    label_column: str | None = None
    """0, false or normal: normal; anything else anomalous. Default: all rows are normal."""
    units: dict[str, str] = Field(default_factory=dict)
    period_s: float | None = Field(default=None, gt=0, description="default: the median time step")
    licence: str = "the user's own"


class IcingOptions(BlockOptions):
    """The blade icing contest's files of one turbine, as its organisers published them.

    ``<turbine>_data.csv`` (time, 26 channels, group) with ``<turbine>_normalTimeRange.csv`` and
    ``<turbine>_failureTimeRange.csv`` (startTime, endTime); or one csv with a label column.
    """

    turbine: int = 15
    file: str | None = Field(default=None, description="default <turbine>_data.csv")
    label_column: str | None = None
    average_s: float | None = Field(
        default=60.0, gt=0, description="rows are averaged to this period; none: as they are"
    )
    protocol: Literal["clean", "paper"] = "clean"
    """``clean``: blocks with guard bands. ``paper``: overlapping windows drawn at random, as in the
    literature; nearly every test window then shares rows with training windows. For comparison
    only: its figures promise nothing."""
    window: int = Field(default=26, ge=2, description="of protocol paper: rows of a window")


@dataclass(frozen=True)
class Table:
    """A table of readings; NaN marks a missing one."""

    columns: tuple[str, ...]
    rows: Float64[np.ndarray, "T D"]
    timestamps_s: Float64[np.ndarray, " T"] | None
    labels: Int64[np.ndarray, " T"] | None

    @property
    def normal_rows(self) -> int:
        """How many rows are not labelled as anomalous."""
        return len(self.rows) if self.labels is None else int((self.labels == 0).sum())


def load_csv(options: CsvOptions, data_dir: Path | None, _seed: int) -> SeriesData:
    """A table split in time; nothing is drawn, so the seed has no effect.

    Raises:
        InvalidInput: no such file, a column that is not there, or a reading that is no number.
    """
    folder = data_folder(data_dir)
    places = [folder / options.path, options.path] if folder else [options.path]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise InvalidInput(f"no file {' or '.join(map(str, places))}; option path names a table")
    table = read_table(path, options.columns, options.time_column, options.label_column)
    unknown = set(options.units) - set(table.columns)
    if unknown:
        raise InvalidInput(f"units of unknown columns {sorted(unknown)}; there are {table.columns}")
    period_s = options.period_s or _median_step(table.timestamps_s)
    source = Source(
        name=path.stem,
        licence=options.licence,
        source=f"file {path.name}",
        protocol=options.rule(table.normal_rows),
    )
    units = tuple(options.units.get(name, "") for name in table.columns)
    return _series(table, units, period_s, options, source)


def load_icing(options: IcingOptions, data_dir: Path | None, seed: int) -> SeriesData:
    """The contest's recordings split in time; rows outside the listed intervals are removed.

    Raises:
        InvalidInput: a file or a column is missing.
    """
    how = (
        "the data of the 2017 industrial big data contest (blade icing of wind turbines) is handed "
        "out by its organisers only; put their csv files there"
    )
    data = require("icing", [options.file or f"{options.turbine}_data.csv"], data_dir, how)
    table = read_table(data, NAMES, None, options.label_column)
    if table.timestamps_s is None:
        raise InvalidInput(f"{data}: no column named time")
    if options.label_column is None:
        normal, icing = (
            _within(
                table.timestamps_s,
                require("icing", [f"{options.turbine}_{kind}TimeRange.csv"], data_dir, how),
            )
            for kind in ("normal", "failure")
        )
        # rows in neither list, or in both, are invalid
        table = _rows(table, normal ^ icing, icing.astype(np.int64))
    if options.average_s is not None:
        table = _averaged(table, options.average_s)
    source = Source(
        name=f"icing contest, turbine {options.turbine}",
        licence="contest data, not redistributable",
        source="2017 industrial big data contest (China), blade icing of wind turbines",
        protocol=f"{options.rule(table.normal_rows)}; rows outside the listed normal and icing "
        "intervals removed" + (f"; {options.average_s:g} s means" if options.average_s else ""),
    )
    units = ("standardised",) * len(CHANNELS)
    if options.protocol == "paper":
        return _random_windows(table, units, options, source, seed)
    period_s = options.average_s or _median_step(table.timestamps_s)
    return _series(table, units, period_s, options, source)


def _random_windows(
    table: Table, units: tuple[str, ...], options: IcingOptions, source: Source, seed: int
) -> SeriesData:
    """Every window a recording of its own: of the normal ones 30 % test, beside all icy ones.

    Normal and icy rows are each put end to end, gaps and all, before windows are cut at every row.
    """
    assert table.labels is not None
    windows: list[list[Recording]] = []
    for label, name in ((0, "normal"), (1, "icing")):
        rows = table.rows[table.labels == label]
        if len(rows) < options.window:
            raise InvalidInput(f"{source.name}: {len(rows)} {name} rows do not fill one window")
        labels = np.full(options.window, label)
        cut = (rows[i : i + options.window] for i in range(len(rows) - options.window + 1))
        windows.append([Recording(part, None, labels, name) for part in cut])
    normal, icy = windows
    order = np.random.default_rng(seed).permutation(len(normal))
    held_out = [round(share * len(normal)) for share in (0.3, 0.4, 0.5)]
    parts = [tuple(normal[i] for i in part) for part in np.split(order, held_out)]
    test, validation, calibration, train = parts
    protocol = (
        f"the literature's, which leaks: windows of {options.window} rows at every row, drawn at "
        f"random (seed {seed}); 30 % of the normal ones test, beside all icy ones"
    )
    return SeriesData(
        source=replace(source, protocol=protocol),
        columns=table.columns,
        units=units,
        period_s=None,  # windows stand for themselves: nothing goes by a clock
        train=train,
        validation=validation,
        calibration=calibration,
        test=(*test, *icy),
    )


def read_scada_csv(
    path: Path,
) -> tuple[tuple[str, ...], Float64[np.ndarray, "T D"], Float64[np.ndarray, " T"] | None]:
    """Column names, rows and timestamps (seconds since 1970) of a csv such as the icing excerpt's.

    A column named time, timestamp or date (any case) gives the timestamps; group or label columns
    are left out.

    Raises:
        InvalidInput: not such a file.
    """
    table = read_table(path)
    return table.columns, table.rows, table.timestamps_s


def read_table(
    path: Path,
    columns: tuple[str, ...] | None = None,
    time_column: str | None = None,
    label_column: str | None = None,
) -> Table:
    """The named columns of a csv or parquet file.

    Raises:
        InvalidInput: it cannot be read, a column is missing, has no name or is there twice, a
            reading is no number or a label is missing; the message names the column and the row.
    """
    frame = read_frame(path)
    if len(frame) == 0:
        raise InvalidInput(f"{path}: no rows")
    time_column = time_column or next((c for c in frame.columns if c.lower() in TIME_NAMES), None)
    apart = {time_column, label_column}
    if columns is None:
        columns = tuple(c for c in frame.columns if c not in apart and c.lower() not in LABEL_NAMES)
    wanted = [*columns, *(c for c in (time_column, label_column) if c is not None)]
    missing = [c for c in wanted if c not in frame.columns]
    if missing:
        raise InvalidInput(
            f"{path}: no column {', '.join(missing)}; there are {', '.join(frame.columns)}",
            tuple(FieldError(f"/{c}", "missing") for c in missing),
        )
    return Table(
        columns=columns,
        rows=np.stack([_numbers(frame[c], path) for c in columns], axis=1),
        timestamps_s=None if time_column is None else _seconds(frame[time_column], path),
        labels=None if label_column is None else _labels(frame[label_column], path),
    )


def _numbers(column: pd.Series, path: Path) -> Float64[np.ndarray, " T"]:
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = np.flatnonzero(numbers.isna() & column.notna())
    if len(wrong):
        i = int(wrong[0])
        raise InvalidInput(
            f"{path}: column {column.name!r}, row {i + 1}: {column.iloc[i]!r} is not a number"
        )
    return np.asarray(numbers, dtype=np.float64)


def _seconds(column: pd.Series, path: Path) -> Float64[np.ndarray, " T"]:
    if pd.api.types.is_numeric_dtype(column):
        return np.asarray(column, dtype=np.float64)
    times = pd.to_datetime(column, errors="coerce", format="mixed", utc=True)
    wrong = np.flatnonzero(times.isna())
    if len(wrong):
        i = int(wrong[0])
        raise InvalidInput(
            f"{path}: column {column.name!r}, row {i + 1}: {column.iloc[i]!r} is not a time"
        )
    since = times - pd.Timestamp(0, tz="UTC")
    return np.asarray(since.dt.total_seconds(), dtype=np.float64)


def _labels(column: pd.Series, path: Path) -> Int64[np.ndarray, " T"]:
    missing = np.flatnonzero(column.isna())
    if len(missing):
        i = int(missing[0])
        raise InvalidInput(f"{path}: column {column.name!r}, row {i + 1}: the label is missing")
    text = column.astype(str).str.strip().str.lower()
    return np.asarray(~text.isin(["0", "0.0", "false", "normal"]), dtype=np.int64)


def _median_step(timestamps_s: Float64[np.ndarray, " T"] | None) -> float | None:
    if timestamps_s is None or len(timestamps_s) < 2:
        return None
    step = float(np.median(np.diff(timestamps_s)))
    return step if step > 0 else None


def _within(times: Float64[np.ndarray, " T"], path: Path) -> np.ndarray:
    """Which times lie in an interval of a file with columns startTime and endTime."""
    try:
        frame = read_frame(path)
        start, end = (_seconds(frame[name], path) for name in ("startTime", "endTime"))
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{path}: expected columns startTime and endTime ({error})") from error
    inside = np.zeros(len(times), dtype=bool)
    for a, b in zip(start, end, strict=True):
        inside |= (times >= a) & (times <= b)
    return inside


def _rows(table: Table, keep: np.ndarray, labels: Int64[np.ndarray, " T"]) -> Table:
    times = table.timestamps_s
    return Table(
        table.columns, table.rows[keep], None if times is None else times[keep], labels[keep]
    )


def _averaged(table: Table, period_s: float) -> Table:
    """Means over consecutive periods; a period is anomalous when any of its rows is."""
    if table.timestamps_s is None:
        return table
    frame = pd.DataFrame(table.rows)
    slot = np.floor(table.timestamps_s / period_s).astype(np.int64)
    means = frame.groupby(slot).mean()
    labels = None
    if table.labels is not None:
        labels = np.asarray(pd.Series(table.labels).groupby(slot).max(), dtype=np.int64)
    times = np.asarray(means.index, dtype=np.float64) * period_s
    return Table(table.columns, np.asarray(means, dtype=np.float64), times, labels)


def _series(
    table: Table,
    units: tuple[str, ...],
    period_s: float | None,
    options: BlockOptions,
    source: Source,
) -> SeriesData:
    recordings: tuple[Recording, ...] = cut_at_gaps(
        table.rows, table.timestamps_s, table.labels, period_s, source.name
    )
    split = split_blocks(recordings, options, source.name)
    return SeriesData(
        source=source,
        columns=table.columns,
        units=units,
        period_s=period_s,
        train=split.train,
        validation=split.validation,
        calibration=split.calibration,
        test=split.test,
    )
