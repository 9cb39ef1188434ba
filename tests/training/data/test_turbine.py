"""The simulated turbine behaves as a turbine does, and on the published scale."""

import numpy as np
import pytest

from training.data import load
from training.data.base import Recording, SeriesData
from training.data.turbine import DAY, Icing, draw_icing, simulate
from training.data.turbine_columns import CHANNELS, NAMES, standardised

# per column: least and greatest reading of the two published excerpts (994 rows), standardised
EXCERPT_RANGE = {
    "wind_speed": (-1.22, 1.70),
    "generator_speed": (-1.19, 1.28),
    "power": (-0.97, 2.12),
    "wind_direction": (-2.90, 3.25),
    "wind_direction_mean": (-2.27, 2.62),
    "yaw_position": (-1.04, 1.52),
    "yaw_speed": (-0.66, 0.88),
    "pitch1_angle": (0.164, 0.227),
    "pitch1_speed": (-0.25, 0.28),
    "pitch1_moto_tmp": (-1.80, -0.07),
    "acc_x": (-1.02, 0.94),
    "acc_y": (-1.53, 0.378),
    "environment_tmp": (-1.89, 1.66),
    "int_tmp": (-1.86, 1.58),
    "pitch1_ng5_tmp": (0.55, 1.32),
    "pitch1_ng5_DC": (-0.85, 1.90),
}


@pytest.fixture(scope="module")
def season() -> list[Recording]:
    return [simulate(4, seed, units="physical") for seed in range(20)]


def of(recordings: list[Recording], name: str) -> np.ndarray:
    return np.concatenate([r.rows[:, NAMES.index(name)] for r in recordings])


def test_channels_are_the_contests_in_its_order() -> None:
    assert len(NAMES) == 26
    assert NAMES[:4] == ("wind_speed", "generator_speed", "power", "wind_direction")
    assert NAMES[-3:] == ("pitch1_ng5_DC", "pitch2_ng5_DC", "pitch3_ng5_DC")


@pytest.mark.parametrize("name", sorted(EXCERPT_RANGE))
def test_published_readings_are_within_what_is_simulated(
    season: list[Recording], name: str
) -> None:
    channel = CHANNELS[NAMES.index(name)]
    x = (of(season, name) - channel.zero) / channel.one
    low, high = EXCERPT_RANGE[name]
    assert x.min() <= low
    assert high <= x.max()
    assert x.std() < 4, "on the publisher's scale a channel varies by about one"


def test_power_follows_the_wind_up_to_the_rated_power(season: list[Recording]) -> None:
    wind, power = of(season, "wind_speed"), of(season, "power")
    means = [power[(wind >= v) & (wind < v + 1)].mean() for v in range(4, 11)]
    assert (np.diff(means) > 0).all()
    assert power[wind > 13].min() > 1400
    assert power.max() < 1560
    assert power[wind < 2].max() < 20


def test_blades_feather_above_rated_wind_and_rest_below(season: list[Recording]) -> None:
    wind, pitch, speed = (of(season, k) for k in ("wind_speed", "pitch1_angle", "generator_speed"))
    runs = speed > 900
    assert np.median(np.abs(pitch[runs & (wind < 8)])) < 1.0
    assert np.median(pitch[runs & (wind > 14)]) > 8.0


def test_the_rotor_stands_in_calm_and_keeps_its_range_when_it_runs(
    season: list[Recording],
) -> None:
    wind, speed = of(season, "wind_speed"), of(season, "generator_speed")
    assert np.median(speed[wind < 1.5]) < 200
    assert speed.max() < 1775
    assert 0.02 < (speed < 400).mean() < 0.3


def test_the_nacelle_is_kept_near_the_wind(season: list[Recording]) -> None:
    relative = of(season, "wind_direction")
    assert abs(relative.mean()) < 1.0
    assert 5 < relative.std() < 14


def test_inside_is_warmer_than_outside_and_lags(season: list[Recording]) -> None:
    outside, inside = of(season, "environment_tmp"), of(season, "int_tmp")
    assert 5 < (inside - outside).mean() < 25
    assert np.diff(inside).std() < np.diff(outside).std()


@pytest.mark.parametrize(
    "name", ["pitch1_angle", "pitch1_speed", "pitch1_moto_tmp", "acc_y", "pitch1_ng5_tmp"]
)
def test_channels_that_stand_still_for_half_an_hour_in_the_excerpts_can_do_so(
    season: list[Recording], name: str
) -> None:
    x = of(season[:10], name)
    view = np.lib.stride_tricks.sliding_window_view(x, 36)
    assert (np.ptp(view, axis=1) < 1e-9).any(), "else a real window would be refused as stuck"


def test_ice_costs_power_and_speed_and_shakes_only_while_it_is_there() -> None:
    seed = next(s for s in range(50) if draw_icing(2, s, 1))
    episode = draw_icing(2, seed, 1)[0]
    iced, clear = (simulate(2, seed, i, units="physical") for i in ([episode], None))
    assert iced.labels is not None
    assert clear.labels is not None
    assert clear.labels.sum() == 0
    ice = iced.labels == 1
    assert ice.any()
    assert episode.start <= np.flatnonzero(ice).min() < np.flatnonzero(ice).max() < episode.end
    power = NAMES.index("power")
    making = ice & (clear.rows[:, power] > 150) & (clear.rows[:, power] < 1300)
    loss = 1 - iced.rows[making, power].mean() / clear.rows[making, power].mean()
    assert 0.05 < loss < 0.6
    speed = NAMES.index("generator_speed")
    assert iced.rows[making, speed].mean() < clear.rows[making, speed].mean()
    shake = NAMES.index("acc_x")
    assert np.abs(iced.rows[making, shake]).mean() > np.abs(clear.rows[making, shake]).mean()
    before = slice(0, episode.start)
    assert (iced.rows[before, power] == clear.rows[before, power]).all()


def test_ice_needs_cold() -> None:
    outside = NAMES.index("environment_tmp")
    for seed in range(60):
        recording = simulate(0.5, seed, [Icing(0, DAY, 0.5)], units="physical")
        assert recording.labels is not None
        if recording.labels.any():
            first = int(np.argmax(recording.labels))
            assert recording.rows[:first, outside].min() < 1.0
        elif recording.rows[:, outside].min() > 1.5:
            break
    else:
        pytest.fail("no warm period among sixty")


def test_the_two_units_are_one_recording() -> None:
    physical, scaled = (simulate(1, 5, units=u) for u in ("physical", "standardised"))
    np.testing.assert_allclose(standardised(physical.rows), scaled.rows)


def test_splits_are_different_periods_and_say_that_they_are_simulated() -> None:
    options = {"days": 4, "validation_days": 2, "calibration_days": 2, "test_days": 4}
    data, again = (load("turbine_sim", options, None, 7) for _ in range(2))
    assert isinstance(data, SeriesData)
    assert data.fingerprint == again.fingerprint
    assert data.source.simulated
    every = (*data.train, *data.validation, *data.calibration, *data.test)
    assert len({r.rows.tobytes() for r in every}) == len(every) == 8
    assert all(r.labels is None for r in data.train)
    assert data.units[0] == "standardised"
    assert any(r.labels is not None and r.labels.any() for r in data.test)
