"""The test split as arrays of items with labels, whatever a data set lacks.

Without anomalous items, anomalies are made from normal ones (``synthetic``). Without normal items,
those of the validation split stand in, and a note says so.

A window of a recording is anomalous (1) when more than half of its rows are, normal (0) when no row
it was made from is, and is left out otherwise: a detector can be neither right nor wrong about a
window with a few icy rows. Windows that the input rule refuses are counted and told: a figure is
over what is left, and the most obvious faults may be what is missing. ``as_read`` scores them too.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from service.contract.errors import InvalidInput
from service.contract.manifest import SeriesInput, VectorInput
from service.contract.preprocess import Reason, prepare_series, prepare_vectors
from training.data.base import ImageData, Recording, SeriesData, VectorData
from training.data.synthetic import (
    synthetic_anomalies,
    synthetic_series_anomalies,
    synthetic_vector_anomalies,
)

MAX_SYNTHETIC = 2000
BLOCK_WINDOWS = 4
"""Windows that are resampled together, in window lengths."""
_NORMAL, _MADE = 0, 1
_ANY_READING = 1e300


@dataclass(frozen=True)
class Labelled:
    """Items to score, and their truth."""

    items: np.ndarray
    """uint8 images [N, H, W, C], prepared windows [N, L, D] or prepared vectors [N, D]."""
    labels: Int64[np.ndarray, " N"]
    classes: Int64[np.ndarray, " N"]
    class_names: dict[int, str]
    masks: Bool[np.ndarray, "N ..."] | None = None
    blocks: Int64[np.ndarray, " N"] | None = None
    """Items with the same number are not independent of each other."""
    synthetic: bool = False
    normals: str = "test"
    """The split that the normal items come from."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Track:
    """The scorable windows of one test recording, in order, and which ones are refused."""

    name: str
    windows: Float32[np.ndarray, "W L D"]
    end: Int64[np.ndarray, " W"]
    """The row after the last one of each window."""
    anomalous: Bool[np.ndarray, " T"]
    refused_end: Int64[np.ndarray, " R"]
    """As ``end``, of the windows that cannot be scored."""
    reasons: tuple[Reason, ...]
    """Why each of those cannot."""


def as_read(spec: SeriesInput) -> SeriesInput:
    """The rule without a range to believe or sensors that must vary: what was read is scored.

    A model that is served refuses windows out of range or with a stuck sensor. On a benchmark those
    are faults that a detector is to find; windows with missing values or gaps stay refused.
    """
    free = {"low": -_ANY_READING, "high": _ANY_READING, "must_vary": False}
    columns = tuple(column.model_copy(update=free) for column in spec.columns)
    return spec.model_copy(update={"columns": columns})


def image_test_set(data: ImageData, seed: int) -> Labelled:
    """The test images, with normal and anomalous ones among them.

    Raises:
        InvalidInput: neither the test nor the validation split holds a normal image.
    """
    images, masks = data.test, data.test_masks
    labels = data.test_labels if len(data.test_labels) else np.zeros(len(images), dtype=np.int64)
    classes = data.test_classes if len(data.test_classes) else labels
    names, normals, notes = dict(data.source.class_names), "test", []
    if not (labels == 0).any():
        normals = "validation"
        notes.append(_stand_in("image", len(data.validation)))
        images = np.concatenate([data.validation, images])
        extra = np.zeros(len(data.validation), dtype=np.int64)
        if masks is not None:
            masks = np.concatenate([np.zeros((len(extra), *masks.shape[1:]), bool), masks])
        free = _free_class(classes)
        names[free] = "normal (validation)"
        classes = np.concatenate([np.full(len(extra), free), classes])
        labels = np.concatenate([extra, labels])
    if (labels == 1).any():
        return Labelled(images, labels, classes, names, masks, normals=normals, notes=tuple(notes))

    chosen = _evenly(len(images), MAX_SYNTHETIC)
    made, made_masks = synthetic_anomalies(images[chosen], seed)
    return Labelled(
        items=np.concatenate([images, made]),
        labels=_two_kinds(len(images), len(made)),
        classes=_two_kinds(len(images), len(made)),
        class_names={_NORMAL: "normal", _MADE: "synthetic"},
        masks=np.concatenate([np.zeros(images.shape[:3], dtype=bool), made_masks]),
        synthetic=True,
        normals=normals,
        notes=tuple(notes),
    )


def series_test_set(spec: SeriesInput, data: SeriesData, seed: int) -> tuple[Labelled, list[Track]]:
    """The windows of the test recordings that have a label, and every recording's own windows.

    Classes are the names of the recordings that anomalous windows come from, where there is more
    than one.

    Args:
        spec: the manifest's rule, or ``as_read`` of it.
        data: as the loader gave it.
        seed: of synthetic anomalies.

    Raises:
        InvalidInput: neither the test nor the validation recordings hold a normal window.
    """
    tracks, normals, notes = [_track(spec, r, i) for i, r in enumerate(data.test)], "test", []
    found = [_labelled(spec, track.anomalous, track.end) for track in tracks]
    if not any((labels == 0).any() for labels in found):
        normals = "validation"
        stand_ins = [_track(spec, r, i) for i, r in enumerate(data.validation)]
        tracks = tracks + stand_ins
        found = [_labelled(spec, track.anomalous, track.end) for track in tracks]
        notes.append(_stand_in("window", sum(len(t.windows) for t in stand_ins)))
    labels = np.concatenate(found)
    recording = np.repeat(np.arange(len(tracks)), [len(x) for x in found])
    items = np.concatenate([t.windows for t in tracks])
    blocks = _blocks(spec, tracks)
    mixed = int((labels == -1).sum())
    if mixed:
        notes.append(
            f"{mixed} windows in which some rows, but at most half, are anomalous are left out"
        )
    notes += _left_out(spec, tracks, labels)
    kept = labels >= 0
    items, labels, recording, blocks = items[kept], labels[kept], recording[kept], blocks[kept]
    if (labels == 1).any():
        kinds, kind = np.unique([track.name for track in tracks], return_inverse=True)
        names = {0: "normal", 1: "anomalous"}
        classes = labels
        if len(sources := np.unique(kind[recording[labels == 1]])) > 1:
            names = {0: "normal"} | {int(k) + 1: str(kinds[k]) for k in sources}
            classes = np.where(labels == 1, kind[recording] + 1, 0)
        return Labelled(
            items, labels, classes, names, blocks=blocks, normals=normals, notes=tuple(notes)
        ), tracks

    chosen = _evenly(len(items), MAX_SYNTHETIC)
    made, changed = synthetic_series_anomalies(items[chosen], seed)
    return Labelled(
        items=np.concatenate([items, made]),
        labels=_two_kinds(len(items), len(made)),
        classes=_two_kinds(len(items), len(made)),
        class_names={_NORMAL: "normal", _MADE: "synthetic"},
        masks=np.concatenate([np.zeros(items.shape, dtype=bool), changed]),
        blocks=np.concatenate([blocks, blocks[chosen]]),
        synthetic=True,
        normals=normals,
        notes=tuple(notes),
    ), tracks


def vector_test_set(spec: VectorInput, data: VectorData, seed: int) -> Labelled:
    """The test vectors, prepared, with normal and anomalous ones among them.

    Raises:
        InvalidInput: neither the test nor the validation split holds a normal vector.
    """
    items, normals, notes = prepare_vectors(spec, data.test), "test", []
    labels = data.test_labels if len(data.test_labels) else np.zeros(len(items), dtype=np.int64)
    classes = data.test_classes if len(data.test_classes) else labels
    names = {0: "normal", 1: "anomalous"} | data.source.class_names
    if not (labels == 0).any():
        normals = "validation"
        notes.append(_stand_in("vector", len(data.validation)))
        free = _free_class(classes)
        names[free] = "normal (validation)"
        items = np.concatenate([prepare_vectors(spec, data.validation), items])
        classes = np.concatenate([np.full(len(data.validation), free), classes])
        labels = np.concatenate([np.zeros(len(data.validation), dtype=np.int64), labels])
    if (labels == 1).any():
        return Labelled(items, labels, classes, names, normals=normals, notes=tuple(notes))

    made, changed = synthetic_vector_anomalies(items[_evenly(len(items), MAX_SYNTHETIC)], seed)
    return Labelled(
        items=np.concatenate([items, made]),
        labels=_two_kinds(len(items), len(made)),
        classes=_two_kinds(len(items), len(made)),
        class_names={_NORMAL: "normal", _MADE: "synthetic"},
        masks=np.concatenate([np.zeros(items.shape, dtype=bool), changed]),
        synthetic=True,
        normals=normals,
        notes=tuple(notes),
    )


def training_windows(
    spec: SeriesInput, recordings: Sequence[Recording], most: int = 20_000
) -> Float32[np.ndarray, "N L D"]:
    """Scorable windows of normal recordings, at a stride that gives at most about ``most``."""
    total = sum(len(r.rows) for r in recordings)
    stride = max(spec.stride, -(-total // most))
    parts = [prepare_series(spec, r.rows, r.timestamps_s, stride) for r in recordings]
    length, d = spec.shape
    empty = np.empty((0, length, d), dtype=np.float32)
    return np.concatenate([empty, *(p.values[p.scorable] for p in parts)])


def _track(spec: SeriesInput, recording: Recording, number: int) -> Track:
    windows = prepare_series(spec, recording.rows, recording.timestamps_s)
    keep = windows.scorable
    labels = recording.labels
    anomalous = np.zeros(len(recording.rows), bool) if labels is None else labels == 1
    name = recording.name or f"recording {number + 1}"
    reasons = tuple(reason for reason in windows.reasons if reason is not None)
    ends = windows.end[keep], windows.end[~keep]
    return Track(name, windows.values[keep], ends[0], anomalous, ends[1], reasons)


def _labelled(
    spec: SeriesInput, anomalous: Bool[np.ndarray, " T"], end: Int64[np.ndarray, " W"]
) -> Int64[np.ndarray, " W"]:
    """1, 0, or -1 for a window that is neither."""
    before = np.concatenate([[0], np.cumsum(anomalous)])
    half = (spec.smoothing - 1) // 2
    inside = before[end] - before[end - spec.window]
    touched = before[end + half] - before[end - spec.window - half]
    return np.where(touched == 0, 0, np.where(2 * inside > spec.window, 1, -1)).astype(np.int64)


def _left_out(
    spec: SeriesInput, tracks: Sequence[Track], scored: Int64[np.ndarray, " N"]
) -> list[str]:
    """What figures are not over: the labelled windows that cannot be scored, by kind and reason.

    Args:
        spec: the rule that refused them.
        tracks: every recording.
        scored: labels of the windows that can be scored.
    """
    refused = Counter(
        (int(label), reason)
        for track in tracks
        for label, reason in zip(
            _labelled(spec, track.anomalous, track.refused_end), track.reasons, strict=True
        )
        if label >= 0
    )
    parts = []
    for label, kind in ((1, "anomalous"), (0, "normal")):
        reasons = {reason: n for (of, reason), n in refused.items() if of == label}
        lost = sum(reasons.values())
        told = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
        if lost:
            parts.append(f"{lost} of {lost + int((scored == label).sum())} {kind} ones ({told})")
    empty = sum(len(track.end) == 0 for track in tracks)
    if empty:
        parts.append(f"{empty} of {len(tracks)} recordings as a whole")
    if not parts:
        return []
    n = int((scored >= 0).sum())
    return [
        f"figures are over {n} of {n + refused.total()} labelled windows; not scorable and left "
        f"out are {_and(parts)}"
    ]


def _and(parts: Sequence[str]) -> str:
    return " and ".join([*([", ".join(parts[:-1])] if len(parts) > 1 else []), parts[-1]])


def _blocks(spec: SeriesInput, tracks: Sequence[Track]) -> Int64[np.ndarray, " N"]:
    numbers, first = [], 0
    for track in tracks:
        own = (track.end - 1) // (BLOCK_WINDOWS * spec.min_rows)
        numbers.append(first + own)
        first += int(own.max(initial=0)) + 1
    return np.concatenate(numbers).astype(np.int64)


def _stand_in(kind: str, n: int) -> str:
    if n == 0:
        raise InvalidInput(f"no normal {kind} to test on: the test and validation splits hold none")
    return (
        f"the test split holds no normal {kind}; {n} of the validation split stand in, on which "
        "scales were set"
    )


def _free_class(classes: np.ndarray) -> int:
    """A class that no test item has: that of items whose class is unknown."""
    return int(min(classes, default=0)) - 1


def _evenly(n: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def _two_kinds(normal: int, made: int) -> Int64[np.ndarray, " N"]:
    return np.repeat([_NORMAL, _MADE], [normal, made]).astype(np.int64)
