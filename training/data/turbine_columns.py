"""The 26 SCADA channels of the blade icing contest: names, order, units, and a published scale.

The contest's publisher standardised every channel by constants of their own, which they do not
state. ``zero`` and ``one`` are our reading of them: the physical values that the standardised 0
and 1 stand for, chosen so that a 1.5 MW turbine (82 m rotor) simulated in physical units has the
ranges, corners and steps of the two short excerpts at hand. They were fitted to nothing else, and
the units are an assumption.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Channel:
    """One sensor: ``standardised = (physical - zero) / one``."""

    name: str
    unit: str
    zero: float
    one: float
    step: float
    """Quantisation of a one-minute mean, in standardised units; 0: none visible."""


def _blades(
    pattern: str, unit: str, zero: float, one: float, step: float
) -> tuple[Channel, Channel, Channel]:
    a, b, c = (Channel(pattern.format(i), unit, zero, one, step) for i in (1, 2, 3))
    return a, b, c


CHANNELS: tuple[Channel, ...] = (
    Channel("wind_speed", "m/s", 6.5, 2.6, 0.0),
    Channel("generator_speed", "rpm", 1300.0, 356.0, 0.0),
    Channel("power", "kW", 432.0, 445.0, 0.0),
    Channel("wind_direction", "deg", 0.0, 8.0, 0.0),
    Channel("wind_direction_mean", "deg", 0.0, 11.0, 0.0),
    Channel("yaw_position", "deg", 0.0, 220.0, 0.00024),
    Channel("yaw_speed", "deg/s", 0.0, 0.257, 0.0),
    *_blades("pitch{}_angle", "deg", -3.0, 15.0, 1 / 225),
    *_blades("pitch{}_speed", "deg/s", 0.0, 0.04, 0.005),
    *_blades("pitch{}_moto_tmp", "degC", 14.0, 10.0, 0.004),
    Channel("acc_x", "g", -0.0010089, 0.01, 0.0),
    Channel("acc_y", "g", -0.00061109, 0.01, 0.0),
    Channel("environment_tmp", "degC", -3.4, 6.0, 0.0),
    Channel("int_tmp", "degC", 12.0, 6.0, 0.0),
    *_blades("pitch{}_ng5_tmp", "degC", 8.0, 13.0, 1 / 117),
    *_blades("pitch{}_ng5_DC", "A", 0.0, 1.0, 0.005),
)
NAMES: tuple[str, ...] = tuple(channel.name for channel in CHANNELS)

_ZERO = np.array([channel.zero for channel in CHANNELS])
_ONE = np.array([channel.one for channel in CHANNELS])


def standardised(rows: Float64[np.ndarray, "T 26"]) -> Float64[np.ndarray, "T 26"]:
    """Rows in physical units on the publisher's scale."""
    return np.asarray((rows - _ZERO) / _ONE)


def quantised(rows: Float64[np.ndarray, "T 26"]) -> Float64[np.ndarray, "T 26"]:
    """Rows in physical units, rounded as the sensors round."""
    out = rows.copy()
    for j, channel in enumerate(CHANNELS):
        if channel.step:
            step = channel.step * channel.one
            out[:, j] = np.round((rows[:, j] - channel.zero) / step) * step + channel.zero
    return out
