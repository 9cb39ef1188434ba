"""What is measured of a detector, on one whose scores and maps are known."""

import numpy as np
import pytest

from service.contract.manifest import Column, ImageInput, SeriesInput
from service.detectors.base import Detection, Params
from training.benchmark.measuring import Scored, alarms, by_class, figures_of, measure
from training.config import windows_of
from training.data.base import ImageData, Recording, SeriesData, Source
from training.families.base import PreparedData

SPEC = ImageInput(height=8, width=8, channels=1, pad=2, mean=(0.0,), std=(1.0,))


class Brightness:
    """The brighter, the more anomalous, pixel by pixel."""

    Params = Params
    max_batch = 3

    def detect(self, x: np.ndarray, *, maps: bool) -> Detection:
        return Detection(x.mean(axis=(1, 2, 3), dtype=np.float64), x[:, 0] if maps else None)


@pytest.fixture
def data() -> ImageData:
    rng = np.random.default_rng(0)
    dark = rng.integers(0, 40, (30, 8, 8, 1), dtype=np.uint8)
    test, masks = dark[:20].copy(), np.zeros((20, 8, 8), dtype=bool)
    test[10:15, 2:5, 2:5], masks[10:15, 2:5, 2:5] = 255, True
    classes = np.repeat([0, 1, 2], [10, 5, 5])
    source = Source("x", "none", "none", "none", class_names={0: "good", 1: "spot", 2: "hidden"})
    labels = (classes > 0).astype(np.int64)
    return ImageData(source, dark, dark, dark, test, labels, classes, masks)


def test_pixels_are_measured_in_the_frame_of_the_masks_and_classes_one_by_one(
    data: ImageData,
) -> None:
    x = np.pad(data.validation[..., 0] / 255, ((0, 0), (2, 2), (2, 2)))[:, None].astype(np.float32)
    scored = measure(Brightness(), SPEC, data, PreparedData(SPEC, x, x), seed=0)
    figures = figures_of(scored)
    assert figures["pixel_auroc"] == 1.0
    assert figures["aupro"] == pytest.approx(1.0)
    assert figures["iou"] > 0.7, "the threshold is one of normal residuals"
    assert 0.5 < figures["auroc"] < 1
    assert by_class(scored)["spot"] == 1.0
    assert by_class(scored)["hidden"] < 1
    assert len(scored.scores) == 20
    assert scored.seconds > 0


class Level:
    """The higher the mean of a window, the more anomalous."""

    Params = Params
    max_batch = 64

    def detect(self, x: np.ndarray, *, maps: bool) -> Detection:
        return Detection(x.mean(axis=(1, 2), dtype=np.float64), x if maps else None)


def series(*, clock: bool, held_out: float) -> tuple[SeriesInput, SeriesData]:
    """Five rows a window, three averaged; anomalous from row 60 on, by 50 to one side."""
    column = Column(name="a", unit="", mean=0.0, std=1.0, low=-1e3, high=1e3)
    spec = SeriesInput(columns=(column,), period_s=None, window=5, smoothing=3, stride=1)
    rng = np.random.default_rng(0)

    def rows(n: int, sigma: float) -> np.ndarray:
        return rng.normal(0.0, sigma, (n, 1))

    stamps = 10.0 * np.arange(100) if clock else None
    test, labels = rows(100, 0.01), np.repeat([0, 1], [60, 40])
    test[60:] += 50
    recording = Recording(test, stamps, labels)
    quiet, loud = (Recording(rows(200, 0.01)),), (Recording(rows(200, held_out)),)
    source = Source("x", "none", "none", "none")
    data = SeriesData(source, ("a",), ("",), None, quiet, loud, loud, (recording,))
    return spec, data


def scored_series(spec: SeriesInput, data: SeriesData) -> Scored:
    windows = windows_of(spec, data.validation, 1)
    return measure(Level(), spec, data, PreparedData(spec, windows, windows), seed=0)


def test_an_alarm_is_told_once_all_rows_that_a_window_was_smoothed_from_are_there() -> None:
    figures = alarms(scored_series(*series(clock=True, held_out=0.01)))
    assert (figures["events_found"], figures["events"], figures["delays_counted"]) == (1, 1, 1)
    # row 60 is in the smoothed row 59, of which rows up to 60 are needed: told with row 60, ten
    # seconds after its beginning
    assert figures["detection_delay_s"] == 10.0
    assert "false_alarms_per_day" in figures


def test_the_limit_of_an_alarm_is_one_of_held_out_windows() -> None:
    assert alarms(scored_series(*series(clock=True, held_out=0.01)))["events_found"] == 1
    loud = alarms(scored_series(*series(clock=True, held_out=100.0)))
    assert loud["events_found"] == 0, "held-out normals go further than the event"
    assert "detection_delay_s" not in loud
    assert "delays_counted" not in loud


def test_without_a_clock_nothing_is_said_of_seconds_and_days() -> None:
    assert alarms(scored_series(*series(clock=False, held_out=0.01))) == {}
