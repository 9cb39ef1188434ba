"""The figures of one detector on the test split."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from jaxtyping import Float32, Float64

from service.contract.manifest import ImageInput, Input, SeriesInput, Task, VectorInput
from service.contract.preprocess import map_to_frame, prepare_images
from service.detectors.base import Detector
from service.scoring import run_detector
from training.alarms import Seen, count_alarms
from training.config import task_of, windows_of
from training.data.base import Data, ImageData, SeriesData, VectorData
from training.families.base import PreparedData
from training.metrics import image_metrics
from training.pixel_metrics import pixel_metrics
from training.testsets import (
    Labelled,
    Track,
    as_read,
    image_test_set,
    series_test_set,
    vector_test_set,
)

PIXEL_QUANTILE = 0.995
"""Of the residuals of validation normals; above it a pixel counts as found, for the IoU."""
ALARM_RATE = 0.01
"""Share of held-out normal windows above the limit of an alarm."""
_CHUNK = 256


@dataclass(frozen=True)
class Scored:
    """A detector, the labelled test items and their raw scores: what figures are made from."""

    detector: Detector
    spec: Input
    data: Data
    prepared: PreparedData
    test: Labelled
    scores: Float64[np.ndarray, " N"]
    tracks: tuple[Track, ...] = ()
    """Of series: every test recording with all its windows but those with gaps."""
    seconds: float = 0.0


Figures = Callable[[Scored], dict[str, float]]


def measure(
    detector: Detector, spec: Input, data: Data, prepared: PreparedData, seed: int
) -> Scored:
    """The test split scored through the exported files; of series, windows out of range and those
    with a stuck sensor as well, which a served model would refuse.

    Raises:
        InvalidInput: there is no normal item to test on.
        DetectorFailure: a runtime failed.
    """
    tracks: list[Track] = []
    match spec, data:
        case ImageInput(), ImageData():
            test = image_test_set(data, seed)
        case SeriesInput(), SeriesData():
            test, tracks = series_test_set(as_read(spec), data, seed)
        case VectorInput(), VectorData():
            test = vector_test_set(spec, data, seed)
        case _:
            raise TypeError(f"a rule for {spec.kind} does not read {type(data).__name__}")
    started = perf_counter()
    scores = [run_detector(detector, x, maps=False)[0] for x in _prepared(spec, test.items)]
    seconds = perf_counter() - started
    return Scored(
        detector, spec, data, prepared, test, np.concatenate(scores), tuple(tracks), seconds
    )


def figures_of(scored: Scored) -> dict[str, float]:
    """Every figure there is for this kind of data."""
    found: dict[str, float] = {}
    for figures in FIGURES[task_of(scored.data)]:
        found |= figures(scored)
    return found


def by_class(scored: Scored) -> dict[str, float]:
    """AUROC of each anomalous class against all normal items; empty where there is but one."""
    test = scored.test
    anomalous = np.unique(test.classes[test.labels == 1])
    found = {}
    for c in anomalous if len(anomalous) > 1 else ():
        keep = (test.labels == 0) | ((test.classes == c) & (test.labels == 1))
        figures = image_metrics(scored.scores[keep], test.labels[keep], n_boot=0)
        found[test.class_names.get(int(c), str(c))] = figures["auroc"].value
    return found


def ranking(scored: Scored) -> dict[str, float]:
    """AUROC, average precision and the false-positive rate at 95 % of the anomalies found."""
    found = image_metrics(scored.scores, scored.test.labels, n_boot=0)
    return {name: metric.value for name, metric in found.items()}


def pixels(scored: Scored) -> dict[str, float]:
    """Pixel AUROC, AUPRO and IoU of residual maps, where defects are marked.

    The threshold of the IoU comes from validation normals, not from the masks.
    """
    test, spec = scored.test, scored.spec
    if test.masks is None or not test.masks.any() or not isinstance(spec, ImageInput):
        return {}
    # defects without a marked pixel are somewhere, but nobody knows where
    known = (test.labels == 0) | test.masks.any(axis=(1, 2))
    normal = run_detector(scored.detector, scored.prepared.validation, maps=True)[1]
    assert normal is not None
    found = pixel_metrics(
        _maps(scored.detector, spec, test.items[known]),
        test.masks[known],
        threshold=float(np.quantile(normal, PIXEL_QUANTILE)),
        n_boot=0,
    )
    return {name: metric.value for name, metric in found.items()}


def alarms(scored: Scored) -> dict[str, float]:
    """What an operator would have seen with a limit that 1 % of held-out normal windows exceed:
    the share of events found and how many there are, how late those found were (median) and how
    many that is the median of, false alarms a day.
    """
    spec, data = scored.spec, scored.data
    assert isinstance(spec, SeriesInput)
    assert isinstance(data, SeriesData)
    row_s = _row_s(spec, data)
    if row_s is None:
        return {}
    held_out = windows_of(spec, data.validation + data.calibration, 1)
    normal = run_detector(scored.detector, held_out, maps=False)[0]
    limit = float(np.quantile(normal, 1 - ALARM_RATE))
    half = (spec.smoothing - 1) // 2
    found = count_alarms(
        [
            Seen(
                end=track.end + half,
                flagged=run_detector(scored.detector, track.windows, maps=False)[0] > limit,
                anomalous=track.anomalous,
                rows=spec.min_rows,
                row_s=row_s,
            )
            for track in scored.tracks
            if len(track.windows)
        ]
    )
    figures: dict[str, float] = {}
    if found.events:
        figures |= {"events_found": found.detected / found.events, "events": found.events}
    if found.delay_s is not None:  # a median of late finds and few of them is no quick one
        figures |= {"detection_delay_s": found.delay_s, "delays_counted": found.detected}
    if found.false_per_day is not None:
        figures["false_alarms_per_day"] = found.false_per_day
    return figures


def _row_s(spec: SeriesInput, data: SeriesData) -> float | None:
    """Seconds from one row to the next: the period, or what is usual among the test rows; None
    where nothing goes by a clock.
    """
    if spec.period_s is not None:
        return spec.period_s
    steps = [np.diff(r.timestamps_s) for r in data.test if r.timestamps_s is not None]
    return float(np.median(np.concatenate(steps))) if steps else None


FIGURES: dict[Task, tuple[Figures, ...]] = {
    "image": (ranking, pixels),
    "timeseries": (ranking, alarms),
    "vectors": (ranking,),
}
"""What is measured, by the kind of data; a figure more is a function more."""


def _prepared(spec: Input, items: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(items), _CHUNK):
        part = items[first : first + _CHUNK]
        yield prepare_images(spec, part) if isinstance(spec, ImageInput) else part


def _maps(detector: Detector, spec: ImageInput, images: np.ndarray) -> Float32[np.ndarray, "N H W"]:
    """Residuals in the frame of the images."""
    found = []
    for x in _prepared(spec, images):
        residuals = run_detector(detector, x, maps=True)[1]
        assert residuals is not None
        found += [map_to_frame(spec, residual, *images.shape[1:3]) for residual in residuals]
    return np.stack(found)
