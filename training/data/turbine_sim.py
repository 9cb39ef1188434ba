"""The simulated turbine as a data set: every split from other periods of the cold season."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from training.data.base import Recording, SeriesData, Source
from training.data.options import Options
from training.data.turbine import LABELLED_LOSS, Icing, draw_icing, simulate
from training.data.turbine_columns import CHANNELS, NAMES


class TurbineOptions(Options):
    """Days of each split, in uninterrupted periods at a random time between October and April."""

    days: int = Field(default=60, ge=1, description="of training")
    validation_days: int = Field(default=10, ge=1)
    calibration_days: int = Field(default=30, ge=1)
    test_days: int = Field(default=30, ge=1, description="without ice, and as many again with ice")
    period_days: int = Field(default=2, ge=1)
    episodes: int = Field(default=1, ge=1, description="of icing in an icing period, at most")
    units: Literal["physical", "standardised"] = "standardised"


def load_turbine(options: TurbineOptions, _data_dir: Path | None, seed: int) -> SeriesData:
    """Simulated recordings; nothing is read. ``training.data.turbine`` says what is simulated."""
    counts = [
        -(-days // options.period_days)
        for days in (
            options.days,
            options.validation_days,
            options.calibration_days,
            options.test_days,
            options.test_days,
        )
    ]
    seeds = np.random.SeedSequence(seed).generate_state(sum(counts)).tolist()
    train, validation, calibration, healthy, iced = (
        part.tolist() for part in np.split(np.array(seeds), np.cumsum(counts)[:-1])
    )
    return SeriesData(
        source=Source(
            name="turbine_sim",
            licence="Apache-2.0 (made by this project's own simulator)",
            source="training/data/turbine.py; fitted to the published scale of two short excerpts "
            "of the 2017 blade icing contest (turbine 15), and to nothing else",
            protocol=f"simulated periods of {options.period_days} days between October and April, "
            f"each with its own seed derived from {seed}: {len(train)} train, {len(validation)} "
            f"validation, {len(calibration)} calibration, {len(healthy)} test without ice and "
            f"{len(iced)} test with up to {options.episodes} icing episodes; a row is labelled "
            f"anomalous where ice takes at least {LABELLED_LOSS:.0%} of the power coefficient",
            simulated=True,
        ),
        columns=NAMES,
        units=tuple(
            channel.unit if options.units == "physical" else "standardised" for channel in CHANNELS
        ),
        period_s=60.0,
        train=_normal(train, options),
        validation=_normal(validation, options),
        calibration=_normal(calibration, options),
        test=(
            *(_period(s, options, None) for s in healthy),
            *(
                _period(s, options, draw_icing(options.period_days, s, options.episodes))
                for s in iced
            ),
        ),
    )


def _normal(seeds: list[int], options: TurbineOptions) -> tuple[Recording, ...]:
    recordings = (_period(seed, options, None) for seed in seeds)
    return tuple(Recording(r.rows, r.timestamps_s, None, r.name) for r in recordings)


def _period(seed: int, options: TurbineOptions, icing: list[Icing] | None) -> Recording:
    return simulate(options.period_days, seed, icing, options.units)
