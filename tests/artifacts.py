"""Miniature artifacts of a real family whose scores follow from arithmetic; milliseconds, no torch.

Image model ``bright``: the raw score is the mean of the pixels / 255, the residual of a pixel is
the pixel / 255. Series model ``sensors``: the raw score is the mean of the scaled readings'
magnitudes, the residual of a cell is its magnitude. Vector model
``part``: the raw score is the mean of the scaled features' magnitudes, the residual of a feature is
its magnitude.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from service.contract import store
from service.contract.calibration import Calibration
from service.contract.manifest import (
    CalibrationInfo,
    Column,
    GoldenInfo,
    ImageInput,
    Input,
    Manifest,
    Metric,
    Provenance,
    SeriesInput,
    VectorInput,
)
from service.contract.preprocess import prepare_images, prepare_series, prepare_vectors
from service.contract.store import Artifact, digests

FAMILY = "iae_lstm_kl"
IMAGE_INPUT = ImageInput(height=8, width=8, channels=1, mean=(0.0,), std=(1.0,))
SERIES_INPUT = SeriesInput(
    columns=(
        Column(name="power", unit="kW", mean=0, std=1, low=-50, high=50),
        Column(name="wind", unit="m/s", mean=2, std=2, low=-50, high=50),
        Column(name="pitch", unit="deg", mean=0, std=1, low=-50, high=50, must_vary=True),
    ),
    period_s=60,
    smoothing=3,
    window=4,
    stride=2,
)
VECTOR_INPUT = VectorInput(
    features=3,
    names=("torque", "current", "heat"),
    mean=(0.0, 2.0, 100.0),
    std=(1.0, 2.0, 50.0),
    clip=5.0,
)
# 199 scores: the finest false-positive rate is 1/200
CALIBRATION = Calibration.fit(np.arange(1, 200) / 400)
PIXEL_THRESHOLD, MAP_SCALE = 0.5, 1.0


PROVENANCE = Provenance(
    created_utc="2026-01-01T00:00:00Z",
    commit="0" * 40,
    config_digest="0" * 64,
    seed=0,
    data="made up",
    data_fingerprint="0" * 64,
    data_licence="none",
    data_source="none",
    protocol="none",
    tools={},
)


def publish_image(
    root: Path, name: str = "bright", version: int = 1, spec: ImageInput = IMAGE_INPUT
) -> Path:
    """The folder of a published image model."""
    images = np.random.default_rng(0).integers(0, 256, (16, 12, 10, spec.channels), np.uint8)
    x = prepare_images(spec, images)
    golden = {
        "images": images,
        "scores": np.abs(x).mean(axis=(1, 2, 3), dtype=np.float64),
        "maps": np.abs(x).mean(axis=1),
    }
    return _publish(root, name, version, spec, golden)


def publish_series(
    root: Path, name: str = "sensors", version: int = 1, spec: SeriesInput = SERIES_INPUT
) -> Path:
    """The folder of a published time-series model."""
    rows = np.random.default_rng(0).normal(size=(spec.min_rows + 10, len(spec.columns)))
    x = prepare_series(spec, rows, stride=1).values
    golden = {
        "rows": rows,
        "stride": np.array(1),
        "scores": np.abs(x).mean(axis=(1, 2), dtype=np.float64),
        "maps": np.abs(x),
    }
    return _publish(root, name, version, spec, golden)


def publish_vectors(
    root: Path, name: str = "part", version: int = 1, spec: VectorInput = VECTOR_INPUT
) -> Path:
    """The folder of a published vector model."""
    values = np.random.default_rng(0).normal(size=(16, spec.features))
    vectors = values * np.array(spec.std) + np.array(spec.mean)
    x = prepare_vectors(spec, vectors)
    golden = {
        "vectors": vectors,
        "scores": np.abs(x).mean(axis=1, dtype=np.float64),
        "maps": np.abs(x),
    }
    return _publish(root, name, version, spec, golden)


def set_active(
    root: Path,
    image: str | None = None,
    timeseries: str | None = None,
    vectors: str | None = None,
) -> None:
    """``active.json`` names these defaults."""
    store.write_active(root, store.Active(image=image, timeseries=timeseries, vectors=vectors))


def unpublished(folder: Path, family: str, spec: Input, params: dict[str, Any]) -> Artifact:
    """The files in ``folder`` as an artifact for a detector to open; nothing calibrates it."""
    calibration = CalibrationInfo(
        n=99, fpr=0.01, threshold=1, median=0, mad=1, pixel_threshold=1, map_scale=1
    )
    manifest = Manifest(
        name="small",
        version=1,
        family=family,
        input=spec,
        params=params,
        calibration=calibration,
        files=digests(folder),
        metrics={},
        provenance=PROVENANCE,
        golden=GoldenInfo(n=1, score_tolerance=1e-4, map_tolerance=1e-4),
    )
    return Artifact(folder, manifest, "0" * 64)


def manifest_of(name: str, version: int, spec: Input, files: dict[str, str], n: int) -> Manifest:
    """A manifest that validates."""
    scores = CALIBRATION.scores
    return Manifest(
        name=name,
        version=version,
        family=FAMILY,
        title=f"miniature {name}",
        input=spec,
        params={"score": "svdd", "boundary": "hard", "latent": 1, "radius": 0.0},
        calibration=CalibrationInfo(
            n=CALIBRATION.n,
            fpr=0.01,
            threshold=CALIBRATION.threshold(0.01),
            median=float(np.median(scores)),
            mad=float(np.median(np.abs(scores - np.median(scores)))),
            pixel_threshold=PIXEL_THRESHOLD,
            map_scale=MAP_SCALE,
        ),
        files=files,
        metrics={"auroc": Metric(value=0.9, low=0.8, high=0.95, level=0.95, n=100, split="test")},
        provenance=PROVENANCE,
        golden=GoldenInfo(n=n, score_tolerance=1e-4, map_tolerance=1e-4),
    )


def save_graph(path: Path, shape: tuple[int, ...]) -> None:
    """x [N, *shape] -> score [N] = mean |x|, reconstruction = 0."""
    axes = list(range(1, len(shape) + 1))
    nodes = [
        helper.make_node("Abs", ["x"], ["magnitude"]),
        helper.make_node("ReduceMean", ["magnitude", "axes"], ["score"], keepdims=0),
        helper.make_node("Mul", ["x", "zero"], ["reconstruction"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("reconstruction", TensorProto.FLOAT, ["N", *shape]),
        ],
        [
            helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _publish(
    root: Path,
    name: str,
    version: int,
    spec: Input,
    golden: dict[str, Any],
) -> Path:
    with store.staging(root, name) as folder:
        save_graph(folder / "score.onnx", spec.shape)
        np.savez(folder / store.CALIBRATION, scores=CALIBRATION.scores)
        np.savez(folder / store.GOLDEN, **golden)
        manifest = manifest_of(name, version, spec, store.digests(folder), len(golden["scores"]))
        return store.commit(folder, manifest)
