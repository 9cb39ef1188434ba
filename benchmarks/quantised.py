"""Quantised graphs on the CPU: milliseconds and AUROC beside float32, for each shipped model.

    python benchmarks/quantised.py [--data-dir DIR] [MODEL ...]

The graph that costs most is replaced by: float16 arithmetic; dynamic int8 (weights int8, the range
of activations found at each run) of its matrix products, and of its convolutions as well; static
int8 (ranges from validation normals; weights of 7 bits, so that processors without VNNI compute the
same) of its convolutions, and of its matrix products as well. Time is that of scoring prepared
inputs end to end, processor time of one thread. *Batch*: the largest change of a score between an
item alone and in a batch, in MADs of the calibration scores. Results:
benchmarks/results/quantised.{json,md}.
"""

import dataclasses
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import report
import typer
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from sklearn.metrics import roc_auc_score

from service.contract import store
from service.contract.preprocess import prepare_images
from service.contract.store import Artifact
from service.runtime import Runtime, Session
from service.scoring import Scorer
from training.config import load_data, make_config, prepare, windows_of
from training.data.base import ImageData
from training.publish import CONFIG
from training.quantise import Feeds, Reader, widen

GRAPHS = {
    "digits-nln": "encoder.onnx",
    "digits-diffusion": "unet.onnx",
    "fashion-iae-lstm-kl": "score.onnx",
    "turbine-iae-lstm-kl": "score.onnx",
}
FEWER = {"digits-diffusion": 200}
"""Test images of each side, where one costs tens of milliseconds."""
WITHIN = 0.002
BATCH = 64
RANGES_FROM = 64


class Recording(Runtime):
    """A runtime whose sessions remember what one graph was fed."""

    def watch(self, graph: str) -> list[Feeds]:
        """Where the inputs of that graph are collected from now on."""
        seen: list[Feeds] = []
        object.__setattr__(self, "_watched", (graph, seen))  # the dataclass is frozen
        return seen

    def session(self, path: Path) -> Session:
        session = super().session(path)
        graph, seen = self._watched  # type: ignore[attr-defined]
        if path.name == graph:
            run = session.run

            def remember(outputs: Any, feeds: Any) -> list[np.ndarray]:
                seen.append(dict(feeds))
                return run(outputs, feeds)

            session.run = remember  # type: ignore[method-assign]
        return session


def forms(source: Path, folder: Path, feeds: list[Feeds]) -> dict[str, Callable[[Path], None]]:
    """Each form of a graph, written to the path it is called with."""
    wide = folder / "wide.onnx"
    widen(source, wide)

    def half(to: Path) -> None:
        model = convert_float_to_float16(onnx.load(str(wide)), keep_io_types=True)
        onnx.save(model, str(to))

    def dynamic(*ops: str) -> Callable[[Path], None]:
        return lambda to: quantize_dynamic(
            wide, to, op_types_to_quantize=list(ops), weight_type=QuantType.QInt8
        )

    def static(*ops: str) -> Callable[[Path], None]:
        return lambda to: quantize_static(
            wide,
            to,
            Reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(ops),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )

    return {
        "float32, as shipped": lambda to: shutil.copy(source, to),
        "float16": half,
        "dynamic int8: MatMul, Gemm": dynamic("MatMul", "Gemm"),
        "dynamic int8: Conv too": dynamic("MatMul", "Gemm", "Conv"),
        "static int8: Conv": static("Conv"),
        "static int8: Conv, MatMul, Gemm": static("Conv", "MatMul", "Gemm"),
    }


def inputs_of(
    artifact: Artifact, data_dir: Path | None, items: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(validation normals, test inputs, test labels), prepared; of images a seeded subset."""
    config = make_config(json.loads(artifact.file(CONFIG).read_text()), artifact.manifest.name)
    data = load_data(config, data_dir)
    spec, prepared = prepare(config, data)
    rng = np.random.default_rng(0)
    if isinstance(data, ImageData):
        sides = [rng.permutation(np.flatnonzero(data.test_labels == k))[:items] for k in (0, 1)]
        rows = np.concatenate(sides)
        return prepared.validation, prepare_images(spec, data.test[rows]), data.test_labels[rows]
    parts, labels = [], []
    for recording in data.test:
        anomalous = np.asarray(recording.labels, dtype=bool)
        for label, rows in ((0, ~anomalous), (1, anomalous)):
            edges = np.flatnonzero(np.diff(np.r_[False, rows, False]))
            for start, end in edges.reshape(-1, 2):
                run = dataclasses.replace(
                    recording,
                    rows=recording.rows[start:end],
                    labels=None,
                    timestamps_s=None
                    if recording.timestamps_s is None
                    else recording.timestamps_s[start:end],
                )
                found = windows_of(spec, (run,), spec.min_rows)
                parts.append(found)
                labels.append(np.full(len(found), label))
    return prepared.validation, np.concatenate(parts), np.concatenate(labels)


def measure(name: str, models: Path, data_dir: Path | None, items: int) -> list[dict[str, Any]]:
    """One row for each form of the model's graph."""
    artifact = store.open_artifact(models, name, store.versions(models, name)[-1])
    validation, x, labels = inputs_of(artifact, data_dir, min(items, FEWER.get(name, items)))
    graph = GRAPHS[name]
    recording = Recording(threads=1)
    feeds = recording.watch(graph)
    scorer = Scorer.open(artifact, recording)
    for i in range(0, RANGES_FROM, 8):
        scorer.score(validation[i : i + 8])
    reference = Scorer.open(artifact, Runtime(threads=1)).score(x).raw
    spread = 1.4826 * artifact.manifest.calibration.mad
    rows: list[dict[str, Any]] = []
    scorers = []
    with tempfile.TemporaryDirectory() as work:
        for form, make in forms(artifact.file(graph), Path(work), feeds).items():
            folder = Path(work) / "artifact"
            shutil.copytree(artifact.path, folder, dirs_exist_ok=True)
            row: dict[str, Any] = {"model": name, "form": form}
            rows.append(row)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    make(folder / graph)
                changed = Scorer.open(Artifact(folder, artifact.manifest, ""), Runtime(threads=1))
                raw = changed.score(x).raw
            except Exception as error:  # a form that a graph cannot take is a finding
                row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
                continue
            scorers.append((row, changed))
            alone = np.array([changed.score(one[None]).raw[0] for one in x[:BATCH]])
            row |= {
                "file_mb": (folder / graph).stat().st_size / 1e6,
                "auroc": float(roc_auc_score(labels, raw)),
                "change": float(roc_auc_score(labels, raw) - roc_auc_score(labels, reference)),
                "moved": float(np.median(np.abs(raw - reference)) / spread),
                "batch": float(np.abs(alone - raw[:BATCH]).max() / spread),
                "n": len(x),
            }
        spent: dict[tuple[int, int], list[float]] = {}
        for _ in range(7):  # in turn: a busy moment of the machine meets every form
            for i, (_, changed) in enumerate(scorers):
                for size, calls in ((1, 10), (BATCH, 1)):
                    begin = time.thread_time()
                    for _ in range(calls):
                        changed.score(x[:size])
                    spent.setdefault((i, size), []).append(
                        (time.thread_time() - begin) / calls / size
                    )
        for i, (row, _) in enumerate(scorers):
            row["ms_1"], row["ms_64"] = (1e3 * float(np.median(spent[i, s])) for s in (1, BATCH))
    for row in rows:
        if "error" not in row:
            row["faster_1"], row["faster_64"] = (rows[0][k] / row[k] for k in ("ms_1", "ms_64"))
        print(row, flush=True)
    return rows


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Names; default all.")] = None,
    models_dir: Annotated[Path, typer.Option(envvar="ANOMALY_MODELS_DIR")] = Path("models"),
    data_dir: Annotated[Path | None, typer.Option(envvar="ANOMALY_DATA_DIR")] = None,
    items: Annotated[int, typer.Option(help="Of each side of the test images.")] = 1000,
) -> None:
    """Measure, print and write the table."""
    rows = [row for name in models or GRAPHS for row in measure(name, models_dir, data_dir, items)]
    head = ["model", "form", "n", "MB", "AUROC", "change", f"within {WITHIN}", "score moved, MADs"]
    head += ["batch, MADs", "ms, batch 1", "ms an item, batch 64", "faster at 1", "at 64"]
    table = []
    for row in rows:
        if "error" in row:
            table.append([row["model"], row["form"], row["error"], *[""] * 10])
            continue
        table.append(
            [
                row["model"],
                row["form"],
                row["n"],
                f"{row['file_mb']:.2f}",
                f"{row['auroc']:.4f}",
                f"{row['change']:+.4f}",
                "yes" if abs(row["change"]) <= WITHIN else "no",
                f"{row['moved']:.1e}",
                f"{row['batch']:.1e}",
                f"{row['ms_1']:.3f}",
                f"{row['ms_64']:.3f}",
                f"{row['faster_1']:.2f} x",
                f"{row['faster_64']:.2f} x",
            ]
        )
    body = (
        f"Ranges of static int8 from {RANGES_FROM} validation normals. Test images: a seeded "
        f"subset of at most {items} a side; series: every window that shares no row with another. "
        "The nearest-neighbour bank keeps the latents of the float32 encoder.\n\n"
    )
    report.write(
        "quantised",
        "Quantised graphs on the CPU",
        body + report.table(head, table),
        {"rows": rows},
    )


if __name__ == "__main__":
    typer.run(main)
