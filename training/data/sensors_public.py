"""Two public benchmarks: the Tennessee Eastman process and the SKAB water pump rig."""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from service.contract.errors import InvalidInput
from training.data.base import Recording, SeriesData, Source
from training.data.blocks import BlockOptions, split_blocks
from training.data.download import require

TEP_COLUMNS = (*(f"XMEAS{i}" for i in range(1, 42)), *(f"XMV{i}" for i in range(1, 12)))
TEP_FAULT_STARTS = 160
_TEP_HOME = "github.com/camaramm/tennessee-eastman-profBraatz"
SKAB_COLUMNS = (
    "Accelerometer1RMS",
    "Accelerometer2RMS",
    "Current",
    "Pressure",
    "Temperature",
    "Thermocouple",
    "Voltage",
    "Volume Flow RateRMS",
)
_SKAB_UNITS = ("g", "g", "A", "bar", "degC", "degC", "V", "l/min")
_SKAB_HOME = "github.com/waico/SKAB"
_SKAB_NORMAL = "anomaly-free_anomaly-free"


class _Benchmark(BlockOptions):
    """The test split is the benchmark's own; a little of the normal run is dropped for it."""

    calibration_share: float = Field(default=0.25, gt=0, lt=1)
    test_share: float = Field(default=0.05, gt=0, lt=1)
    guard_rows: int = Field(default=5, ge=0)


class TepOptions(_Benchmark):
    """Which faults are in the test split."""

    faults: tuple[int, ...] = Field(default=tuple(range(1, 22)), min_length=1)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if not set(self.faults) <= set(range(1, 22)):
            raise ValueError("faults are numbered 1..21")
        return self


class SkabOptions(_Benchmark):
    """The split of the anomaly-free run."""


def load_tep(options: TepOptions, data_dir: Path | None, _seed: int) -> SeriesData:
    """Normal operation for training, and test runs whose fault starts at row 160.

    Raises:
        InvalidInput: neither ``tep.npz`` nor the original ``d00.dat``, ... are there.
    """
    how = f"get d00.dat, d00_te.dat, ... from {_TEP_HOME}"
    path = require("tep", ("tep.npz", "d00.dat"), data_dir, how)
    runs = _read_tep(path, ["d00", *(f"d{k:02d}_te" for k in (0, *options.faults))])
    normal = Recording(runs["d00"], name="d00")
    test = [_tep_test(0, runs["d00_te"])]
    test += [_tep_test(k, runs[f"d{k:02d}_te"]) for k in options.faults]
    source = Source(
        name="tep",
        licence="permissive, University of Illinois",
        source=f"Chiang, Russell & Braatz, Fault detection and diagnosis, 2001; {_TEP_HOME}",
        protocol=f"d00 (normal): {options.rule(len(normal.rows))}; the test share is dropped. "
        f"Test: d00_te and faults {list(options.faults)}, anomalous from row {TEP_FAULT_STARTS} on",
    )
    return _benchmark(normal, test, TEP_COLUMNS, ("",) * len(TEP_COLUMNS), 180.0, options, source)


def load_skab(options: SkabOptions, data_dir: Path | None, _seed: int) -> SeriesData:
    """The anomaly-free run for training, 34 labelled runs for test.

    Raises:
        InvalidInput: neither ``skab.npz`` nor the original folder is there.
    """
    how = f"get the folder data of {_SKAB_HOME} as skab/"
    path = require("skab", ("skab.npz", "anomaly-free"), data_dir, how)
    runs = dict(_read_skab(path))
    if _SKAB_NORMAL not in runs:
        raise InvalidInput(f"{path}: no run anomaly-free/anomaly-free")
    normal = runs.pop(_SKAB_NORMAL)
    source = Source(
        name="skab",
        licence="GPL-3.0",
        source=f"Katser & Kozitsin, Skoltech Anomaly Benchmark, 2020; {_SKAB_HOME}",
        protocol=f"the anomaly-free run: {options.rule(len(normal.rows))}; the test share is "
        f"dropped. Test: the {len(runs)} other runs with the labels of their rows",
    )
    # one row a second, but every tenth or so was not recorded: no fixed period
    return _benchmark(normal, list(runs.values()), SKAB_COLUMNS, _SKAB_UNITS, None, options, source)


def _benchmark(
    normal: Recording,
    test: list[Recording],
    columns: tuple[str, ...],
    units: tuple[str, ...],
    period_s: float | None,
    options: BlockOptions,
    source: Source,
) -> SeriesData:
    for recording in (normal, *test):
        if recording.rows.shape[1] != len(columns):
            raise InvalidInput(
                f"{source.name}: run {recording.name} has {recording.rows.shape[1]} columns, "
                f"expected {len(columns)}"
            )
    split = split_blocks([normal], options, source.name)
    return SeriesData(
        source=source,
        columns=columns,
        units=units,
        period_s=period_s,
        train=split.train,
        validation=split.validation,
        calibration=split.calibration,
        test=tuple(test),
    )


def _tep_test(fault: int, rows: np.ndarray) -> Recording:
    labels = np.zeros(len(rows), dtype=np.int64)
    if fault:
        labels[TEP_FAULT_STARTS:] = 1
    return Recording(rows, None, labels, f"d{fault:02d}_te")


def _read_tep(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as npz:
                return {name: npz[name].astype(np.float64) for name in names}
        runs = {name: np.loadtxt(path.with_name(f"{name}.dat")) for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{path}: not the Tennessee Eastman runs ({error})") from error
    # d00.dat alone is published with a column per time
    return {k: x.T if x.shape[0] == len(TEP_COLUMNS) else x for k, x in runs.items()}


def _read_skab(path: Path) -> Iterable[tuple[str, Recording]]:
    try:
        if path.is_dir():
            files = sorted(path.parent.glob("*/*.csv"))
            return [(f"{p.parent.name}_{p.stem}", _read_skab_csv(p)) for p in files]
        with np.load(path, allow_pickle=False) as npz:
            names = [key.removesuffix("_x") for key in npz.files if key.endswith("_x")]
            return [
                (
                    name,
                    Recording(
                        npz[f"{name}_x"].astype(np.float64),
                        npz[f"{name}_t"].astype(np.float64),
                        npz[f"{name}_anomaly"].astype(np.int64)
                        if f"{name}_anomaly" in npz.files
                        else None,
                        name,
                    ),
                )
                for name in names
            ]
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{path}: not the SKAB runs ({error})") from error


def _read_skab_csv(path: Path) -> Recording:
    frame = pd.read_csv(path, sep=";", parse_dates=["datetime"])
    since = (frame["datetime"] - pd.Timestamp(0)).dt.total_seconds()
    labels = None
    if "anomaly" in frame.columns:
        labels = np.asarray(frame["anomaly"], dtype=np.int64)
    return Recording(
        np.asarray(frame[list(SKAB_COLUMNS)], dtype=np.float64),
        np.asarray(since, dtype=np.float64),
        labels,
        f"{path.parent.name}_{path.stem}",
    )
