"""Quality of the shipped models through HTTP, as a client sees it: AUROC, pixel AUROC and the
false-alarm rate beside the promise, on the test splits.

    python benchmarks/quality.py [--url http://127.0.0.1:8000] [--data-dir DIR] [MODEL ...]

Without --url the service is started on a free port and stopped again. Images travel as PNG files in
multipart requests of 64, recordings as JSON. Results: benchmarks/results/quality.{json,md}.
"""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from PIL import Image
from rich.progress import track
from sklearn.metrics import roc_auc_score

from service.contract import store
from service.contract.manifest import SeriesInput
from training.commit import commit_of_the_code
from training.config import load_data, make_config
from training.data.base import ImageData, SeriesData
from training.metrics import false_alarm_rate
from training.publish import CONFIG

RESULTS = Path(__file__).parent / "results"
TARGETS = {  # of the project's own plan: (figure, at least)
    "digits-nln": {"auroc": 0.98},
    "digits-diffusion": {"auroc": 0.90},
    "fashion-iae-lstm-kl": {"auroc": 0.95},
    "tiles-nln": {"auroc": 0.65, "pixel_auroc": 0.68},
}
FPRS = (0.01, 0.05)
BATCH = 64


@contextmanager
def running_service(models: Path) -> Iterator[str]:
    """The address of a ready service over ``models``; it is stopped afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "ANOMALY_PORT": str(port),
        "ANOMALY_MODELS_DIR": str(models),
        "ANOMALY_LOG_LEVEL": "warning",
    }
    process = subprocess.Popen([sys.executable, "-m", "service"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        else:
            raise SystemExit(f"the service is not ready: {httpx.get(f'{url}/readyz').text}")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def score_images(
    client: httpx.Client, model: str, data: ImageData
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(raw scores, p-values, residual maps when the data has masks) of the test images."""
    want_map = "float32" if data.test_masks is not None else "none"
    raw, p_values, maps = [], [], []
    for i in track(range(0, len(data.test), BATCH), description=model):
        files = [
            ("image", (f"{j}.png", png(x), "image/png"))
            for j, x in enumerate(data.test[i : i + BATCH])
        ]
        answer = client.post("/score", params={"model": model, "map": want_map}, files=files)
        answer.raise_for_status()
        for result in answer.json()["results"]:
            raw.append(result["raw_score"])
            p_values.append(result["p_value"])
            if want_map == "float32":
                m = result["residual_map"]
                values = np.frombuffer(base64.b64decode(m["data"]), "<f4")
                maps.append(values.reshape(m["height"], m["width"]))
    return np.array(raw), np.array(p_values), np.array(maps) if maps else None


def image_figures(
    client: httpx.Client, model: str, data: ImageData, n_calibration: int
) -> dict[str, Any]:
    raw, p_values, maps = score_images(client, model, data)
    figures: dict[str, Any] = {"auroc": float(roc_auc_score(data.test_labels, raw)), "n": len(raw)}
    if maps is not None and data.test_masks is not None:
        known = (data.test_labels == 0) | data.test_masks.any(axis=(1, 2))
        figures["pixel_auroc"] = float(
            roc_auc_score(data.test_masks[known].ravel(), maps[known].ravel())
        )
    figures["false_alarms"] = alarms(p_values[data.test_labels == 0], n_calibration)
    return figures


def series_figures(
    client: httpx.Client, model: str, data: SeriesData, spec: SeriesInput, n_calibration: int
) -> dict[str, Any]:
    raw, p_values, labels = [], [], []
    for recording in track(data.test, description=model):
        body: dict[str, Any] = {"columns": data.columns, "rows": recording.rows.tolist()}
        answer = client.post("/score/timeseries", params={"model": model}, json=body)
        answer.raise_for_status()
        for result in answer.json()["results"]:
            share = float(np.mean(recording.labels[result["start"] : result["end"]]))
            if result["decision"] == "not_scorable" or 0 < share <= 0.5:
                continue
            raw.append(result["raw_score"])
            p_values.append(result["p_value"])
            labels.append(int(share > 0.5))
    normal = np.array(p_values)[np.array(labels) == 0]
    overlap = spec.min_rows / spec.stride
    return {
        "auroc": float(roc_auc_score(labels, raw)),
        "n": len(raw),
        "false_alarms": alarms(normal, n_calibration, overlap),
    }


def alarms(p_values: np.ndarray, n_calibration: int, overlap: float = 1.0) -> list[dict[str, Any]]:
    """Promise, rate seen on test normals, and the 99 % intervals around the promise."""
    seen = [false_alarm_rate(p_values, fpr, n_calibration, overlap=overlap) for fpr in FPRS]
    return [{**asdict(alarm), "verdict": alarm.verdict} for alarm in seen]


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Names; default all.")] = None,
    url: Annotated[str | None, typer.Option(help="A running service; else one is started.")] = None,
    models_dir: Annotated[Path, typer.Option(envvar="ANOMALY_MODELS_DIR")] = Path("models"),
    data_dir: Annotated[Path | None, typer.Option(envvar="ANOMALY_DATA_DIR")] = None,
) -> None:
    """Measure, print and write the table; exit 1 when a target is missed."""
    if url is None:
        with running_service(models_dir) as started:
            measure(started, models or store.names(models_dir), models_dir, data_dir)
    else:
        measure(url, models or store.names(models_dir), models_dir, data_dir)


def measure(url: str, names: list[str], models_dir: Path, data_dir: Path | None) -> None:
    rows: dict[str, Any] = {}
    with httpx.Client(base_url=url, timeout=120) as client:
        for name in names:
            artifact = store.open_artifact(models_dir, name, store.versions(models_dir, name)[-1])
            config = make_config(json.loads(artifact.file(CONFIG).read_text()), name)
            data = load_data(config, data_dir)
            n = artifact.manifest.calibration.n
            if isinstance(data, ImageData):
                measured = image_figures(client, name, data, n)
            else:
                spec = artifact.manifest.input
                assert isinstance(spec, SeriesInput)
                measured = series_figures(client, name, data, spec, n)
            targets = TARGETS.get(name, {})
            measured["missed"] = [k for k, least in targets.items() if not measured[k] >= least]
            rows[name] = {"version": artifact.manifest.version, "targets": targets, **measured}
    RESULTS.mkdir(exist_ok=True)
    facts = {"command": "python benchmarks/quality.py", "commit": commit_of_the_code()}
    (RESULTS / "quality.json").write_text(json.dumps({**facts, "models": rows}, indent=2) + "\n")
    text = table(facts, rows)
    (RESULTS / "quality.md").write_text(text)
    print(text)
    if any(row["missed"] for row in rows.values()):
        raise SystemExit(1)


def table(facts: dict[str, str], rows: dict[str, Any]) -> str:
    lines = [
        "# Quality through HTTP",
        "",
        f"Made by `{facts['command']}` at commit {facts['commit']}. False alarms: rate on test "
        "normals at the promised rate, with the binomial 99 % interval around the promise.",
        "",
        "| model | AUROC | pixel AUROC | target | false alarms at 0.01 | at 0.05 | n |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items()):
        pixel = f"{row['pixel_auroc']:.4f}" if "pixel_auroc" in row else ""
        target = ", ".join(f"{k} >= {v}" for k, v in row["targets"].items())
        seen = [
            f"{a['rate']:.4f} [{a['binomial'][0]:.4f}, {a['binomial'][1]:.4f}] {a['verdict']}"
            for a in row["false_alarms"]
        ]
        lines.append(
            f"| {name}/{row['version']} | {row['auroc']:.4f} | {pixel} | {target} | {seen[0]} | "
            f"{seen[1]} | {row['n']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
