"""One detector measured once on its test split, through the ``Scorer`` that will serve it.

What is measured goes into the manifest (``metrics``) and onto the card (all of it). Nothing here
selects anything: thresholds come from the calibration split, controls from the train split.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from service.contract.manifest import Metric, Task
from service.contract.preprocess import map_to_frame, prepare_vectors
from service.scoring import Scorer
from training.controls import image_controls, series_controls, vector_controls
from training.data.base import ImageData, SeriesData, VectorData
from training.metrics import FalseAlarms, false_alarm_rate, image_metrics
from training.pixel_metrics import pixel_metrics
from training.testsets import (
    Labelled,
    Track,
    image_test_set,
    series_test_set,
    training_windows,
    vector_test_set,
)

FPRS = (0.01, 0.05)
"""False-positive rates whose promise is checked."""
_NORMAL_EXAMPLES = (0.25, 0.5, 0.9, 1.0)
_ANOMALOUS_EXAMPLES = (0.9, 0.5, 0.1, 0.0)
"""Quantiles of the raw score that the examples have: the worst failures are the last of each."""
_CHUNK = 256
_CLASS_BOOT = 200
"""Resamples for each of what may be dozens of classes."""
_TIMELINES = 3


@dataclass(frozen=True)
class Example:
    """One test item as the card shows it."""

    values: np.ndarray
    """uint8 [H, W, C] of an image, float32 [L, D] of a prepared window or [D] of a vector."""
    residual: Float32[np.ndarray, "..."]
    """[H, W], [L, D] or [D]."""
    mask: Bool[np.ndarray, "..."] | None
    raw: float
    p_value: float
    label: int
    class_name: str


@dataclass(frozen=True)
class Timeline:
    """The scores along one test recording."""

    name: str
    rows: Int64[np.ndarray, " W"]
    """The last row of each scorable window."""
    raw: Float64[np.ndarray, " W"]
    anomalous: Bool[np.ndarray, " T"]


@dataclass(frozen=True)
class ClassFigures:
    """How the items of one class fared."""

    name: str
    label: int
    n: int
    auroc: Metric | None
    """Against all normal items; None for a normal class, or too few items."""
    flagged: float
    """Share with p <= fpr: detected, for anomalous classes; false alarms, for normal ones."""


@dataclass(frozen=True)
class Evaluation:
    """Everything measured on the test split."""

    task: Task
    synthetic: bool
    """The anomalous items were made from normal ones."""
    calibration_raw: Float64[np.ndarray, " K"]
    raw: Float64[np.ndarray, " N"]
    p_values: Float64[np.ndarray, " N"]
    labels: Int64[np.ndarray, " N"]
    classes: Int64[np.ndarray, " N"]
    class_names: dict[int, str]
    fpr: float
    threshold: float
    """Raw score above which an item is flagged at ``fpr``."""
    metrics: dict[str, Metric]
    """For the manifest, false alarms included."""
    false_alarms: tuple[FalseAlarms, ...]
    by_class: tuple[ClassFigures, ...]
    """Empty where there is one normal and one anomalous class."""
    controls: dict[str, Float64[np.ndarray, " N"]]
    control_metrics: dict[str, dict[str, Metric]]
    examples: tuple[Example, ...]
    timelines: tuple[Timeline, ...] = ()
    columns: tuple[str, ...] = ()
    """Names of the sensors or features, where they have any."""
    notes: tuple[str, ...] = ()
    """What a reader must know to read the figures."""


def evaluate_images(
    scorer: Scorer,
    data: ImageData,
    *,
    n_boot: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """The test images scored and measured; ``testsets`` says what stands in for what is missing.

    Args:
        scorer: over the exported files; of its manifest the input rule and calibration are read.
        data: as the loader gave it.
        n_boot: bootstrap resamples of each interval.
        seed: of the resamples and of synthetic anomalies.

    Raises:
        InvalidInput: neither the test nor the validation split holds a normal image.
        DetectorFailure: a runtime failed.
    """
    test = image_test_set(data, seed)
    raw = _raw_scores(scorer, test.items)
    controls = image_controls(data.train, test.items)
    found = _measured("image", scorer, test, raw, controls, n_boot=n_boot, seed=seed)
    if test.masks is not None and test.masks.any():
        # defects without a marked pixel are somewhere, but nobody knows where
        known = (test.labels == 0) | test.masks.any(axis=(1, 2))
        pixels = pixel_metrics(
            _maps(scorer, test.items[known]),
            test.masks[known],
            threshold=scorer.manifest.calibration.pixel_threshold,
            split=_split(test),
            n_boot=n_boot,
            seed=seed,
        )
        found = replace(found, metrics=found.metrics | pixels)
    shown = _shown(raw, test.labels)
    return replace(found, examples=_examples(test, found, shown, _maps(scorer, test.items[shown])))


def evaluate_series(
    scorer: Scorer,
    data: SeriesData,
    *,
    n_boot: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """The windows of the test recordings scored and measured; ``testsets`` labels them.

    Windows that share rows are not independent: the bootstrap draws stretches of several windows,
    and the intervals of false alarms count windows that share none.

    Args:
        scorer: over the exported files; of its manifest the input rule and calibration are read.
        data: as the loader gave it.
        n_boot: bootstrap resamples of each interval.
        seed: of the resamples and of synthetic anomalies.

    Raises:
        InvalidInput: neither the test nor the validation recordings hold a normal window.
        DetectorFailure: a runtime failed.
    """
    spec = scorer.series_input
    test, tracks = series_test_set(spec, data, seed)
    raw = scorer.score(test.items).raw
    controls = series_controls(training_windows(spec, data.train), test.items)
    overlap = max(1.0, spec.min_rows / spec.stride)
    found = _measured(
        "timeseries", scorer, test, raw, controls, n_boot=n_boot, seed=seed, overlap=overlap
    )
    shown = _shown(raw, test.labels)
    residuals = scorer.score(test.items[shown], maps=True).maps
    assert residuals is not None
    return replace(
        found,
        examples=_examples(test, found, shown, residuals),
        timelines=_timelines(scorer, tracks),
        columns=data.columns,
    )


def evaluate_vectors(
    scorer: Scorer,
    data: VectorData,
    *,
    n_boot: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """The test vectors scored and measured; ``testsets`` says what stands in for what is missing.

    Args:
        scorer: over the exported files; of its manifest the input rule and calibration are read.
        data: as the loader gave it.
        n_boot: bootstrap resamples of each interval.
        seed: of the resamples and of synthetic anomalies.

    Raises:
        InvalidInput: neither the test nor the validation split holds a normal vector.
        DetectorFailure: a runtime failed.
    """
    spec = scorer.vector_input
    test = vector_test_set(spec, data, seed)
    raw = scorer.score(test.items).raw
    controls = vector_controls(prepare_vectors(spec, data.train), test.items)
    found = _measured("vectors", scorer, test, raw, controls, n_boot=n_boot, seed=seed)
    shown = _shown(raw, test.labels)
    residuals = scorer.score(test.items[shown], maps=True).maps
    assert residuals is not None
    examples = _examples(test, found, shown, residuals)
    return replace(found, examples=examples, columns=spec.names)


def _measured(
    task: Task,
    scorer: Scorer,
    test: Labelled,
    raw: Float64[np.ndarray, " N"],
    controls: dict[str, Float64[np.ndarray, " N"]],
    *,
    n_boot: int,
    seed: int,
    overlap: float = 1.0,
) -> Evaluation:
    """The evaluation but for maps and examples."""
    calibration = scorer.calibration
    fpr = max(scorer.manifest.calibration.fpr, calibration.finest_fpr)
    p_values = calibration.p_value(raw)
    normal = test.labels == 0
    alarms = tuple(
        false_alarm_rate(p_values[normal], rate, calibration.n, overlap=overlap)
        for rate in sorted({fpr, *FPRS})
        if rate >= calibration.finest_fpr
    )

    def ranked(
        scores: np.ndarray, keep: np.ndarray | None = None, most: int = n_boot
    ) -> dict[str, Metric]:
        keep = np.ones(len(scores), bool) if keep is None else keep
        blocks = test.blocks[keep] if test.blocks is not None else None
        return image_metrics(
            scores[keep],
            test.labels[keep],
            blocks=blocks,
            split=_split(test),
            n_boot=min(n_boot, most),
            seed=seed,
        )

    by_class = []
    present = np.unique(test.classes)
    for c in present if len(present) > 2 else ():
        members = test.classes == c
        label = int(test.labels[members][0])
        by_class.append(
            ClassFigures(
                name=test.class_names.get(int(c), str(c)),
                label=label,
                n=int(members.sum()),
                auroc=ranked(raw, normal | members, _CLASS_BOOT)["auroc"] if label else None,
                flagged=float((p_values[members] <= fpr).mean()),
            )
        )
    metrics = ranked(raw)
    for alarm in alarms:
        metrics[f"false_alarm_rate_at_{alarm.fpr:g}"] = alarm.metric(f"{test.normals} normals")
    return Evaluation(
        task=task,
        synthetic=test.synthetic,
        calibration_raw=calibration.scores,
        raw=raw,
        p_values=p_values,
        labels=test.labels,
        classes=test.classes,
        class_names=test.class_names,
        fpr=fpr,
        threshold=calibration.threshold(fpr),
        metrics=metrics,
        false_alarms=alarms,
        by_class=tuple(by_class),
        controls=controls,
        control_metrics={name: ranked(scores) for name, scores in controls.items()},
        examples=(),
        notes=test.notes,
    )


def _split(test: Labelled) -> str:
    kind = "synthetic anomalies" if test.synthetic else "test"
    return kind if test.normals == "test" else f"{kind}, normal items of the {test.normals} split"


def _chunks(n: int) -> Iterator[slice]:
    return (slice(i, i + _CHUNK) for i in range(0, n, _CHUNK))


def _raw_scores(scorer: Scorer, images: UInt8[np.ndarray, "N H W C"]) -> Float64[np.ndarray, " N"]:
    return np.concatenate([scorer.score_images(images[part]).raw for part in _chunks(len(images))])


def _maps(scorer: Scorer, images: UInt8[np.ndarray, "N H W C"]) -> Float32[np.ndarray, "N H W"]:
    """Residuals in the frame of the images."""
    spec = scorer.image_input
    out = np.empty(images.shape[:3], dtype=np.float32)
    for part in _chunks(len(images)):
        residuals = scorer.score_images(images[part], maps=True).maps
        assert residuals is not None
        for target, residual in zip(out[part], residuals, strict=True):
            target[:] = map_to_frame(spec, residual, *images.shape[1:3])
    return out


def _shown(raw: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Numbers of the items on the card: normal ones upwards, then anomalous ones downwards."""
    shown: list[int] = []
    for label, quantiles in ((0, _NORMAL_EXAMPLES), (1, _ANOMALOUS_EXAMPLES)):
        members = np.flatnonzero(labels == label)
        ranked = members[np.argsort(raw[members], kind="stable")]
        places = [round(q * (len(ranked) - 1)) for q in quantiles]
        shown += [int(ranked[place]) for place in dict.fromkeys(places)]
    return np.array(shown)


def _examples(
    test: Labelled, found: Evaluation, shown: np.ndarray, residuals: np.ndarray
) -> tuple[Example, ...]:
    return tuple(
        Example(
            values=test.items[i],
            residual=residual,
            mask=test.masks[i] if test.masks is not None and test.masks[i].any() else None,
            raw=float(found.raw[i]),
            p_value=float(found.p_values[i]),
            label=int(test.labels[i]),
            class_name=test.class_names.get(int(test.classes[i]), ""),
        )
        for i, residual in zip(shown, residuals, strict=True)
    )


def _timelines(scorer: Scorer, tracks: list[Track]) -> tuple[Timeline, ...]:
    """Of the recordings that hold both kinds of rows, else the longest."""

    def interest(track: Track) -> tuple[bool, int]:
        return bool(track.anomalous.any() and not track.anomalous.all()), len(track.windows)

    shown = sorted((t for t in tracks if len(t.windows)), key=interest, reverse=True)[:_TIMELINES]
    return tuple(
        Timeline(t.name, t.end - 1, scorer.score(t.windows).raw, t.anomalous) for t in shown
    )
