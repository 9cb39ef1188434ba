"""Runs of ``score-files`` within this process, or as people start it."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.dataset as ds
from PIL import Image

from training.bulk.plan import Job
from training.bulk.run import Wishes, score_all
from training.bulk.scoring import PartScorer
from training.command_options import open_model

Rows = list[dict[str, Any]]


class Told:
    """What the user would have been told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.finished_before = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def looking(self, text: str) -> None:
        pass

    def begin(self, items: int, finished: int) -> None:
        self.finished_before = finished

    def advance(self, items: int) -> None:
        pass


def in_this_process(job: Job, todo: list[int], finished: Callable[[int, int], None]) -> None:
    scorer = PartScorer.open(job)
    for part in todo:
        finished(part, scorer.write(part))


def score(
    source: Path, out: Path, models: Path, model: str, *, restart: bool = False, **wishes: Any
) -> Rows:
    """The results, in order; scored in this process."""
    job, artifact = Job(source, out, models), open_model(models, model)
    score_all(job, artifact, Wishes(**wishes), in_this_process, Told(), restart=restart)
    return results(out)


def results(out: Path) -> Rows:
    """What is in a folder of results, in order, as any reader sees it."""
    files = sorted(out.glob("part-*.csv"))
    if not files:
        dataset: Any = ds.dataset(out)
        return list(dataset.to_table().to_pylist())
    texts = dict.fromkeys(("recording", "reason", "error"), pa.string())
    options = pa_csv.ConvertOptions(column_types=texts, strings_can_be_null=True)
    return [row for f in files for row in pa_csv.read_csv(f, convert_options=options).to_pylist()]


def start(source: Path, out: Path, models: Path, *more: str) -> subprocess.Popen[str]:
    """``score-files`` as a process in a group of its own."""
    command = [str(source), str(out), f"--models={models}", "--quiet", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "training.bulk", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("ANOMALY_")},
        start_new_session=True,
        # a shell that runs the tests in its background has SIGINT ignored, and so would the child
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def write_pictures(folder: Path, count: int) -> Path:
    """A folder of small images, a few of them broken."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (12, 9), np.uint8)).save(file, "PNG")
        (folder / f"{i:05}.png").write_bytes(file.getvalue() if i % 500 else b"broken")
    return folder


def parts(out: Path) -> dict[str, bytes]:
    """{name: bytes} of the finished parts."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*"))}
