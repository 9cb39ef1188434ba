"""How many items a second ``score-files`` scores on this machine: with one and two processes, and
on a Ray cluster of one, two and three nodes. ``python benchmarks/bulk.py``, as root for Ray.

The nodes share the machine's cores: more of them than cores show what a cluster costs, not what it
gains. Seconds count from the first process started to the last part written.
"""

import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import report
from PIL import Image

sys.path.insert(0, str(report.ROOT))
from tests.training.ray_cluster import RayCluster, why_not

IMAGES, ROWS, ROUNDS = 20_000, 20_000, 3
HEADER = ["engine", "images/s", "windows/s"]


def write_images(folder: Path) -> Path:
    """Digits with a little noise, so that no two files are the same."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    digits = [Image.open(report.ROOT / "examples" / f"digit-{d}.png") for d in (2, 7)]
    pixels = [np.asarray(digit.convert("L")).astype(np.int16) for digit in digits]
    for i in range(IMAGES):
        noisy = (pixels[i % 2] + rng.integers(-9, 10, pixels[i % 2].shape)).clip(0, 255)
        file = io.BytesIO()
        Image.fromarray(noisy.astype(np.uint8)).save(file, "PNG")
        (folder / f"{i:06}.png").write_bytes(file.getvalue())
    return folder


def write_rows(path: Path) -> Path:
    """The example's five hours, again and again; timestamps are left out."""
    table: Any = pa_csv.read_csv(report.ROOT / "examples" / "turbine.csv")
    names = [name for name in table.column_names if name.lower() not in ("time", "timestamp")]
    again = np.arange(ROWS) % len(table)
    pq.write_table(table.select(names).take(again), path)
    return path


def command(source: Path, out: Path, model: str, *more: str) -> list[str]:
    """``score-files`` as people call it."""
    shutil.rmtree(out, ignore_errors=True)
    start = [sys.executable, "-m", "training.bulk", str(source), str(out), f"--model={model}"]
    return [*start, f"--models={report.ROOT / 'models'}", "--quiet", *more]


def rate(out: Path) -> float:
    """Items a second of a finished run."""
    found: float = json.loads((out / "_SUCCESS.json").read_text())["last_run"]["items_per_second"]
    return found


def locally(workers: int) -> Any:
    """A call that runs a command with so many processes."""

    def run(source: Path, out: Path, model: str) -> float:
        arguments = command(source, out, model, f"--workers={workers}")
        subprocess.run(arguments, check=True, cwd=report.ROOT, capture_output=True)
        return rate(out)

    return run


@contextmanager
def on_cluster(nodes: int, folder: Path) -> Iterator[Any]:
    """A call that runs a command on a cluster of so many nodes of one core."""
    with RayCluster(folder, nodes) as cluster:

        def run(source: Path, out: Path, model: str) -> float:
            more = ("--engine=ray", f"--ray-address={cluster.address}")
            arguments = command(source, out, model, *more)
            process = cluster.run(
                1, arguments, cwd=report.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            said, _ = process.communicate()
            assert process.returncode == 0, said
            return rate(out)

        yield run


def measure(folder: Path) -> dict[str, dict[str, list[float]]]:
    """{engine: {what: rates}}."""
    inputs = {
        "images": (write_images(folder / "images"), "digits-nln"),
        "windows": (write_rows(folder / "rows.parquet"), "turbine-iae-lstm-kl"),
    }
    found: dict[str, dict[str, list[float]]] = {}

    def take(engine: str, run: Any) -> None:
        for what, (source, model) in inputs.items():
            rates = found.setdefault(engine, {}).setdefault(what, [])
            rates.append(run(source, folder / "out", model))
            print(f"{engine}: {rates[-1]:,.0f} {what} a second", flush=True)

    for _ in range(ROUNDS):
        for workers in (1, 2):
            take(f"local, {workers} process{'es' * (workers > 1)}", locally(workers))
    if missing := why_not():
        print(f"Ray is left out: {missing}")
        return found
    for nodes in (1, 2, 3):
        with on_cluster(nodes, folder) as run:
            for _ in range(ROUNDS):
                take(f"Ray, {nodes} node{'s' * (nodes > 1)} of one core", run)
    return found


def main() -> None:
    """The table."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    rows = [
        [engine, *(f"{median(rates[what]):,.0f}" for what in ("images", "windows"))]
        for engine, rates in found.items()
    ]
    about = (
        f"{IMAGES:,} PNG files of 28x28 pixels by digits-nln; the windows of {ROWS:,} rows in "
        f"parquet, one a row, by turbine-iae-lstm-kl. Medians of {ROUNDS} runs (all "
        "are in the JSON), from the first process started to the "
        "last part written: starting Python, opening and self-testing the model, and connecting to "
        "the cluster, are in it. Nodes are network namespaces of this one machine: with more of "
        "them than cores nothing can be gained.\n\n"
    )
    body = about + report.table(HEADER, rows)
    report.write("bulk", "Scoring in bulk", body, {"items_per_second": found})


if __name__ == "__main__":
    main()
