"""A simulated wind turbine: 26 SCADA channels at one minute, with icing as a gradual power loss.

Stands in for the blade icing contest's data, which cannot be redistributed. A 1.5 MW turbine in the
cold season: wind (Weibull, hours of weather, minutes of turbulence) drives a rotor with a speed
range, a power curve and pitch control; yaw follows with a dead band; temperatures lag; cabinets are
heated by thermostats; an hourly pitch test in the cold moves the blades a little. Ice takes 20-50 %
of the power coefficient: less speed and power at the same wind, a reaction of the pitch, more
vibration. It grows only near or below 0 degC.

The simulator was fitted to the published scale and the visible habits of two short excerpts (380
and 614 rows) and to nothing else. Scores on it say that a method works, not how well it works on a
real turbine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from scipy.signal import lfilter
from scipy.special import expit, ndtr

from training.data.base import Recording
from training.data.turbine_columns import NAMES, quantised, standardised

DAY = 24 * 60
"""Rows of a day."""
RATED_KW = 1500.0
_RPM_PER_MPS, _MIN_RPM, _RATED_RPM = 207.1, 887.0, 1750.0
_KW_PER_V3 = 1.19
_ICE_GROWS_BELOW_DEGC = 1.0
LABELLED_LOSS = 0.05
"""Share of the power coefficient above which a row is labelled as icing."""

Signal = Float64[np.ndarray, " T"]


@dataclass(frozen=True)
class Icing:
    """Ice that grows from ``start`` to a loss of ``loss`` and falls off at ``end`` (minutes)."""

    start: int
    end: int
    loss: float


@dataclass(frozen=True)
class _Wind:
    speed: Signal  # at the nacelle
    rotor: Signal  # what the rotor feels, less what ice takes
    turbulence: Signal
    running: Signal  # 0 stands, 1 runs


def simulate(
    days: float,
    seed: int,
    icing: Sequence[Icing] | None = None,
    units: Literal["physical", "standardised"] = "standardised",
) -> Recording:
    """One uninterrupted recording; labels are 1 where ice takes at least 5 %.

    Args:
        days: its length; the time of the year, between October and April, is drawn.
        seed: the same one gives the same weather, with or without icing.
        icing: episodes; one has no effect while it is too warm for ice.
        units: physical, or the contest publisher's scale.
    """
    n = round(days * DAY)
    streams = _streams(seed)
    environment, start_s = _environment(n, streams["environment"])
    ice = _ice(n, environment, icing or ())
    wind = _wind(n, ice, streams["wind"])
    x = dict.fromkeys(NAMES, np.empty(0))
    x["wind_speed"], x["environment_tmp"] = wind.speed, environment
    _rotor(x, wind, streams["rotor"])
    _yaw(x, wind, streams["yaw"])
    _pitch(x, wind, ice, environment, streams["pitch"])
    _vibration(x, ice, streams["vibration"])
    _cabinets(x, environment, streams["cabinets"])
    rows = quantised(np.stack([x[name] for name in NAMES], axis=1))
    return Recording(
        rows=rows if units == "physical" else standardised(rows),
        timestamps_s=start_s + 60.0 * np.arange(n),
        labels=(ice >= LABELLED_LOSS).astype(np.int64),
        name=f"simulated-{seed}",
    )


def draw_icing(days: float, seed: int, episodes: int) -> list[Icing]:
    """Up to ``episodes`` episodes of 4 to 24 hours in the cold of ``simulate(days, seed)``."""
    n = round(days * DAY)
    environment, _ = _environment(n, _streams(seed)["environment"])
    rng = np.random.default_rng((seed, 1))
    drawn: list[Icing] = []
    for section in np.array_split(np.arange(n), episodes):
        length = min(int(rng.uniform(4, 24) * 60), len(section) // 2)
        starts = section[: len(section) - length]
        mean = np.convolve(environment[section], np.full(length, 1 / length), "valid")
        cold = starts[mean[: len(starts)] < _ICE_GROWS_BELOW_DEGC - 1.0]
        loss = float(rng.uniform(0.2, 0.5))
        if len(cold):
            start = int(rng.choice(cold))
            drawn.append(Icing(start, start + length, loss))
    return drawn


def _streams(seed: int) -> dict[str, np.random.Generator]:
    names = ("environment", "wind", "rotor", "yaw", "pitch", "vibration", "cabinets")
    children = np.random.SeedSequence(seed).spawn(len(names))
    return {k: np.random.default_rng(child) for k, child in zip(names, children, strict=True)}


def _wander(n: int, tau_min: float, rng: np.random.Generator) -> Signal:
    """A stationary AR(1) process of unit variance that forgets within ``tau_min`` minutes."""
    a = np.exp(-1.0 / tau_min)
    noise = rng.normal(size=n) * np.sqrt(1 - a * a)
    noise[0] = rng.normal()
    return np.asarray(lfilter([1.0], [1.0, -a], noise))


def _lagged(x: Signal, tau_min: float) -> Signal:
    """``x`` behind a first-order lag, in equilibrium at the first row."""
    a = np.exp(-1.0 / tau_min)
    return np.asarray(lfilter([1 - a], [1.0, -a], x, zi=[a * x[0]])[0])


def _environment(n: int, rng: np.random.Generator) -> tuple[Signal, float]:
    """Outside temperature, degC, and the time of the first row in seconds since 1970."""
    midnight = int(rng.integers(-90, 90))  # days from mid-January
    minute = rng.integers(DAY) + np.arange(n)
    day = midnight + minute / DAY
    season = -7.0 + 7.5 * (1 - np.cos(2 * np.pi * day / 365))
    sun = 3.5 * np.sin(2 * np.pi * (minute / DAY - 9 / 24))
    sun = np.where(sun > 0, sun, 0.6 * sun) * (1 + 0.4 * _wander(n, 2 * DAY, rng))
    front = 4.5 * _wander(n, 2.5 * DAY, rng) + 2.5 * _lagged(_wander(n, 90, rng), 20)
    start_s = 1_452_816_000.0 + 60.0 * (midnight * DAY + float(minute[0]))  # 2016-01-15 + ...
    return season + sun + front + 0.04 * _wander(n, 2, rng), start_s


def _ice(n: int, environment: Signal, icing: Sequence[Icing]) -> Signal:
    """Share of the power coefficient that ice takes."""
    ice = np.zeros(n)
    for episode in icing:
        span = slice(max(episode.start, 0), min(episode.end, n))
        cold = environment[span] < _ICE_GROWS_BELOW_DEGC
        growth = np.cumsum(cold) / max(1.0, 0.6 * len(cold))
        ice[span] = np.maximum(ice[span], episode.loss * np.minimum(growth, 1.0))
    return ice


def _wind(n: int, ice: Signal, rng: np.random.Generator) -> _Wind:
    minute = np.arange(n) + rng.integers(DAY)
    hours = 0.95 * _wander(n, 10 * 60, rng) + 0.3 * np.sin(2 * np.pi * minute / DAY)
    share = np.clip(ndtr(hours), 1e-6, 1 - 1e-6)
    mean = 7.4 * (-np.log1p(-share)) ** (1 / 2.3)  # Weibull
    turbulence = 0.02 + 0.06 * ndtr(_wander(n, 8 * 60, rng))
    gusts = _wander(n, 2.5, rng) + 1.2 * _wander(n, 25, rng)
    speed = np.maximum(mean * (1 + turbulence * gusts), 0.2)
    shear = 1 + 0.035 * _wander(n, 120, rng)
    running = _hysteresis(_lagged(speed, 10), low=2.6, high=3.3).astype(float)
    rotor = _lagged(speed, 1.2) * shear * np.cbrt(1 - ice)
    return _Wind(speed + 0.08 * rng.normal(size=n), rotor, turbulence, _lagged(running, 2.0))


def _hysteresis(x: Signal, low: float, high: float) -> np.ndarray:
    """True from above ``high`` until below ``low``."""
    change = np.where(x > high, 1, np.where(x < low, -1, 0))
    last = np.maximum.accumulate(np.where(change != 0, np.arange(len(x)), -1))
    return np.asarray(np.where(last >= 0, change[last], 1) > 0)


def _rotor(x: dict[str, Signal], wind: _Wind, rng: np.random.Generator) -> None:
    n, v, run = len(wind.rotor), wind.rotor, wind.running
    rpm = np.clip(_RPM_PER_MPS * v, _MIN_RPM, _RATED_RPM) + 3.0 * rng.normal(size=n)
    idle = 25.0 * v + 5.0 * rng.normal(size=n)
    x["generator_speed"] = run * rpm + (1 - run) * np.maximum(idle, 0.0)
    aero = _KW_PER_V3 * v**3 / RATED_KW
    power = RATED_KW * aero / (1 + aero**6) ** (1 / 6) * np.clip((v - 2.9) / 1.2, 0, 1)
    x["power"] = run * power - 6.0 * (1 - run) + (1.0 + 0.006 * power) * rng.normal(size=n)


def _yaw(x: dict[str, Signal], wind: _Wind, rng: np.random.Generator) -> None:
    """Nacelle kept within a dead band of the wind; directions are relative to the nacelle."""
    n = len(wind.speed)
    calm = np.clip(6.0 / np.maximum(wind.speed, 1.0), 0.6, 2.0)
    towards = 200.0 * _wander(n, 4 * DAY, rng) + 25.0 * _wander(n, 240, rng)
    towards += 5.0 * calm * _wander(n, 14, rng)
    nacelle = np.empty(n)
    position, seen = float(towards[0]), 0.0
    for i, direction in enumerate(towards.tolist()):
        seen += (direction - position - seen) / 6.0
        if abs(seen) > 8.0:
            position += min(max(seen, -15.0), 15.0)
            seen = 0.0
        nacelle[i] = position
    relative = towards - nacelle
    x["wind_direction_mean"] = relative + 1.8 * calm * rng.normal(size=n)
    x["wind_direction"] = _lagged(x["wind_direction_mean"], 0.9)
    moved = np.diff(nacelle, prepend=nacelle[0])
    x["yaw_speed"] = moved / 60.0 + 0.009 * rng.normal(size=n)
    x["yaw_position"] = nacelle + 0.35 * rng.normal(size=n)


def _pitch(
    x: dict[str, Signal],
    wind: _Wind,
    ice: Signal,
    environment: Signal,
    rng: np.random.Generator,
) -> None:
    """Blade angles (about 0 deg below rated power, feathering above, 60 deg at standstill), their
    speeds, and the motors' temperatures.
    """
    n, run = len(ice), wind.running
    above = _lagged(np.maximum(wind.rotor - 10.6, 0.0), 1.5)
    common = run * (6.0 * np.sqrt(above)) + 60.0 * (1 - run)
    common += run * 4.0 * ice * (wind.rotor > 5.0)  # less lift than expected: blades give way
    tested = (np.arange(n) + rng.integers(60)) % 60 == 0
    tested &= (environment < -4.0) & (run > 0.99) & (above == 0)
    pulse = np.where(tested & (rng.random(n) < 0.6), rng.choice([-1.0, 1.0], n), 0.0)
    level = np.maximum.accumulate(np.where(tested, np.arange(n), 0))
    bump = 0.7 * _lagged(tested.astype(float), 12) * 12
    effort = _lagged(np.minimum(np.abs(np.diff(common, prepend=common[0])), 3.0), 90)
    warmth = _lagged(environment, 9 * 60) + 3.0 * _lagged(run, 6 * 60) + 50.0 * effort + bump
    for blade in (1, 2, 3):
        offset = rng.normal(0.0, 0.25, n)[level]
        still = 0.004 * np.abs(np.diff(common, prepend=common[0])) * rng.normal(size=n)
        angle = common + offset + 0.3 * np.abs(pulse) + still
        x[f"pitch{blade}_angle"] = angle
        speed = np.diff(common, prepend=common[0]) / 60.0
        x[f"pitch{blade}_speed"] = speed + pulse * rng.normal(0.0100, 0.0008, n)
        own = 0.4 * rng.normal() + 0.2 * _wander(n, DAY, rng)
        x[f"pitch{blade}_moto_tmp"] = warmth + own + 1.0


def _vibration(x: dict[str, Signal], ice: Signal, rng: np.random.Generator) -> None:
    """Minute means of coarse accelerometers: whole steps around a rest position."""
    n = len(ice)
    spin = np.clip((x["generator_speed"] - _MIN_RPM) / (_RATED_RPM - _MIN_RPM), 0, 1)
    load = spin * (1 + 2.5 * ice)
    drift = 1.4 * _wander(n, 600, rng) * np.minimum(1, 3 * spin)
    swing = 0.35 + 1.9 * load + 3.0 * ice
    x["acc_x"] = 0.00140625 * np.round(drift + swing * rng.normal(size=n) * (spin > 0.02))
    sag = np.abs(rng.normal(size=n)) * (0.4 + 2.6 * load + 3.0 * ice)
    x["acc_y"] = 0.00158829 * np.round(0.3 + 0.5 * rng.normal(size=n) * spin - sag)


def _cabinets(x: dict[str, Signal], environment: Signal, rng: np.random.Generator) -> None:
    """Nacelle temperature; the pitch cabinets' heated temperatures and charging currents."""
    n = len(environment)
    nacelle = _lagged(environment + 13.5 + 5.0 * np.clip(x["power"], 0, None) / RATED_KW, 40)
    for blade in (1, 2, 3):
        # ventilation holds the cabinets near 17 degC until frost, whatever the air outside
        ambient = 2.0 + 15.0 * expit((_lagged(environment, 60) + 2.0) / 0.8)
        cabinet, heating = _thermostat(ambient, float(rng.uniform(38, 42)), rng)
        x[f"pitch{blade}_ng5_tmp"] = _mean_of_whole(cabinet)
        nacelle += 0.5 * _lagged(heating, 8)
        mean = 0.3 + 0.2 * _wander(n, 2 * DAY, rng)
        x[f"pitch{blade}_ng5_DC"] = mean + 0.42 * _wander(n, 0.4, rng)
    x["int_tmp"] = nacelle + 0.05 * _wander(n, 3, rng)


def _mean_of_whole(x: Signal) -> Signal:
    """Minute means of a sensor that reads whole numbers: they stand still between two steps."""
    whole = np.floor(x)
    return np.asarray(whole + ndtr((x - whole - 0.5) / 0.2))


def _thermostat(ambient: Signal, tau_min: float, rng: np.random.Generator) -> tuple[Signal, Signal]:
    """Temperature under an on-off heater with some inertia, and the heater's state."""
    cabinet, state = np.empty(len(ambient)), np.empty(len(ambient))
    temperature = max(float(ambient[0]), float(rng.uniform(16, 23)))
    heat, on = 0.0, 0.0
    for i, surrounding in enumerate(ambient.tolist()):
        on = 1.0 if temperature < 15.7 else 0.0 if temperature > 22.8 else on
        heat += (on - heat) / 6.0
        temperature += (surrounding - temperature) / tau_min + 1.15 * heat
        cabinet[i], state[i] = temperature, on
    return cabinet, state
