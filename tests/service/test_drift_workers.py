"""Drift with several worker processes: their items are one window, also when one of them dies."""

import errno
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import service.recent
from service.contract.calibration import Calibration
from service.drift import Drift
from tests.service.pictures import encode, grey
from tests.service.test_process import PNG, serving, workers_of

WINDOW = 100


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)


def post(base: str, level: int, times: int, source: str) -> None:
    image = encode(grey(level))

    def scored() -> bool:
        answer = httpx.post(f"{base}/score?map=none&source={source}", content=image, headers=PNG)
        assert answer.status_code in (200, 503)  # a worker begun anew says so until it has loaded
        return answer.status_code == 200

    for _ in range(times):  # each over a connection of its own, so that both workers get some
        until(scored)


def seen(base: str) -> dict[str, float]:
    """Figures without labels, and those of the model and of its sources."""
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{base}/metrics").text):
        for sample in family.samples:
            found[sample.name + sample.labels.get("source", "")] = sample.value
    return found


def test_two_workers_have_one_window_that_outlives_one_of_them(
    two_models: Path, tmp_path: Path
) -> None:
    settings = {"ANOMALY_WORKERS": "2", "ANOMALY_DRIFT_WINDOW": str(WINDOW)}
    settings["ANOMALY_SOURCES_MAX"] = "1"
    with serving(two_models, tmp_path / "log", **settings) as (process, base):
        post(base, 255, 60, "a")
        for _ in range(6):  # whichever worker answers
            found = seen(base)
            assert found["anomaly_source_drift_itemsa"] == 60
            assert "anomaly_drift_ks" not in found
        post(base, 0, 60, "b")
        for _ in range(6):
            found = seen(base)
            assert found["anomaly_flagged_ratio"] == 0.4  # the oldest 20 of 120 are forgotten
            assert found["anomaly_source_drift_itemsother"] == 60
            assert "anomaly_source_drift_itemsb" not in found
        before = workers_of(process.pid)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(set(workers_of(process.pid)) - set(before)) == 1)
        until(lambda: seen(base)["anomaly_ready"] == 1)
        until(lambda: all(httpx.get(f"{base}/readyz").status_code == 200 for _ in range(20)))
        assert seen(base)["anomaly_flagged_ratio"] == 0.4
        post(base, 0, 60, "b")
        for _ in range(6):
            found = seen(base)
            assert found["anomaly_flagged_ratio"] == 0
            assert found["anomaly_queue_limit"] == 2 * 192
    assert "Traceback" not in (tmp_path / "log").read_text()


def items(drift: Drift) -> Counter[str]:
    found: Counter[str] = Counter()
    for family in drift.collect():
        for sample in family.samples:
            if sample.name.endswith("drift_items"):
                found[sample.labels.get("source", "")] = int(sample.value)
    return found


def started(folder: Path, sources_max: int = 2) -> Drift:
    drift = Drift(WINDOW, sources_max, folder)
    drift.begin("m", 1, Calibration.fit(np.arange(99)), 0.05)
    return drift


def test_a_process_begun_anew_goes_on_with_the_files_of_the_one_before(tmp_path: Path) -> None:
    first, second = started(tmp_path), started(tmp_path)
    first.add("m", 1, [0.5] * 30)
    second.add("m", 1, [0.5] * 30)
    assert items(first) == items(second) == {"": 60}
    files = sorted(tmp_path.iterdir())
    for _ in range(5):
        first.close()
        first = started(tmp_path)
        first.add("m", 1, [0.5] * 4)
    assert items(second) == {"": 80}
    assert sorted(tmp_path.iterdir()) == files


def test_all_processes_tell_the_same_sources_apart(tmp_path: Path) -> None:
    first, second = started(tmp_path), started(tmp_path)
    for drift, source in ((first, "a"), (second, "b"), (first, "c"), (second, "a"), (first, "b")):
        drift.add("m", 1, [0.5], source)
    for drift in (first, second):
        assert items(drift) == {"": 5, "a": 2, "b": 2, "other": 1}


def test_a_full_disk_stops_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(service.recent, "_mapped", full)
    drift = started(tmp_path)
    drift.add("m", 1, [0.5] * 7, "a")
    assert items(drift) == {"": 7, "a": 7}


def test_a_record_that_another_process_is_writing_breaks_nothing(tmp_path: Path) -> None:
    drift, reader = started(tmp_path), started(tmp_path)
    drift.add("m", 1, [0.5] * 10)
    (ring,) = [path for path in tmp_path.iterdir() if "+m+1" in path.name]
    ring.write_bytes(ring.read_bytes()[:157])
    assert items(reader) == {"": 9}
