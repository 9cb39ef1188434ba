"""Small data for the miniature artifacts, whose raw score is the mean brightness (or reading, or
number).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from service.contract import store
from service.runtime import Runtime
from service.scoring import Scorer
from tests import artifacts
from training.data.base import ImageData, Recording, SeriesData, Source, VectorData

SOURCE = Source(
    name="parts",
    licence="CC0",
    source="made up for tests",
    protocol="made up, seed 0",
    class_names={0: "good", 1: "scratch", 2: "stain"},
)


def image_scorer(root: Path) -> Scorer:
    artifacts.publish_image(root)
    return Scorer.open(store.open_artifact(root, "bright", 1), Runtime(threads=1))


def series_scorer(root: Path) -> Scorer:
    artifacts.publish_series(root)
    return Scorer.open(store.open_artifact(root, "sensors", 1), Runtime(threads=1))


def vector_scorer(root: Path) -> Scorer:
    artifacts.publish_vectors(root)
    return Scorer.open(store.open_artifact(root, "part", 1), Runtime(threads=1))


def normal_images(n: int, seed: int) -> np.ndarray:
    """Each of one brightness, spread as the miniature's calibration scores are: 0 to a half."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(2, 126, (n, 1, 1, 1))
    return np.clip(level + rng.uniform(-2, 2, (n, 12, 10, 1)), 0, 255).astype(np.uint8)


def image_data(n_normal: int = 60, n_anomalous: int = 40) -> ImageData:
    """Scratches are bright, stains hardly so; masks are known."""
    test = normal_images(n_normal + n_anomalous, 3)
    masks = np.zeros((len(test), 12, 10), dtype=bool)
    masks[n_normal:, 2:10, 3:9] = True
    classes = np.zeros(len(test), dtype=np.int64)
    classes[n_normal:] = 1 + np.arange(n_anomalous) % 2
    test[masks & (classes == 1)[:, None, None]] = 255
    test[masks & (classes == 2)[:, None, None]] //= 2
    return ImageData(
        source=SOURCE,
        train=normal_images(80, 0),
        validation=normal_images(20, 1),
        calibration=normal_images(40, 2),
        test=test,
        test_labels=(classes > 0).astype(np.int64),
        test_classes=classes,
        test_masks=masks,
    )


def without_anomalies(data: ImageData) -> ImageData:
    """What a user's folder of normal images gives."""
    normal = data.test_labels == 0
    return replace(
        data,
        test=data.test[normal],
        test_labels=data.test_labels[normal],
        test_classes=data.test_classes[normal],
        test_masks=None,
    )


def recording(seed: int, faulty: slice | None = None, rows: int = 200) -> Recording:
    """Three sensors near their means; in the faulty rows twelve times as far from them."""
    rng = np.random.default_rng(seed)
    values = np.array([0.0, 2.0, 0.0]) + 0.3 * rng.normal(size=(rows, 3))
    labels = np.zeros(rows, dtype=np.int64)
    if faulty is not None:
        labels[faulty] = 1
        values[faulty] = 2 + 12 * (values[faulty] - 2)
    return Recording(values, np.arange(rows) * 60.0, labels, name=f"run {seed}")


def series_data(*test: Recording) -> SeriesData:
    names = tuple(c.name for c in artifacts.SERIES_INPUT.columns)
    return SeriesData(
        source=SOURCE,
        columns=names,
        units=("kW", "m/s", "deg"),
        period_s=60.0,
        train=(recording(1), recording(2)),
        validation=(recording(3),),
        calibration=(recording(4),),
        test=test or (recording(5, slice(80, 120)), recording(6, slice(150, 190)), recording(7)),
    )


def vector_data(n_normal: int = 60, n_anomalous: int = 40) -> VectorData:
    """Torque, current and heat near their means; scratches are hot, stains a little."""
    spec = artifacts.VECTOR_INPUT

    def vectors(n: int, seed: int) -> np.ndarray:
        scaled = 0.3 * np.random.default_rng(seed).normal(size=(n, 3))
        return scaled * np.array(spec.std) + np.array(spec.mean)

    test = vectors(n_normal + n_anomalous, 3)
    classes = np.zeros(len(test), dtype=np.int64)
    classes[n_normal:] = 1 + np.arange(n_anomalous) % 2
    test[:, 2] += np.array([0, 150, 20])[classes]
    return VectorData(
        source=SOURCE,
        names=spec.names,
        train=vectors(80, 0),
        validation=vectors(20, 1),
        calibration=vectors(40, 2),
        test=test,
        test_labels=(classes > 0).astype(np.int64),
        test_classes=classes,
    )
