"""``python -m service``: a real process on a real port, until SIGTERM."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.settings import unknown_variables
from tests.artifacts import publish_image
from tests.service.pictures import encode, grey

PNG = {"Content-Type": "image/png"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def serving(
    models: Path, log: Path, *, answers: str = "/readyz", **settings: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process and its address, once ``answers`` says 200."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ANOMALY_")} | {
        "ANOMALY_MODELS_DIR": str(models),
        "ANOMALY_PORT": str(port),
        "ANOMALY_THREADS": "1",
        **settings,
    }
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "service"], env=environment, stderr=out)
        try:
            base = f"http://127.0.0.1:{port}"
            until = time.monotonic() + 60
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                try:
                    if httpx.get(f"{base}{answers}").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.05)
            yield process, base
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def test_it_serves_refuses_long_bodies_early_and_ends_cleanly_on_sigterm(
    two_models: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with serving(two_models, log) as (process, base):
        response = httpx.post(f"{base}/score", content=encode(grey(51)), headers=PNG)
        assert response.status_code == 200
        assert response.json()["results"][0]["raw_score"] == pytest.approx(0.2)
        long = bytes(21 * 1024 * 1024)
        assert httpx.post(f"{base}/score", content=long, headers=PNG).status_code == 413
        pieces = (long[i : i + 2**16] for i in range(0, len(long), 2**16))
        assert httpx.post(f"{base}/score", content=pieces, headers=PNG).status_code == 413
        assert httpx.get(f"{base}/livez").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
    text = log.read_text()
    assert "Traceback" not in text
    assert "POST /score 200" in text
    assert "POST /score 413" in text


def test_a_refusal_reaches_a_client_that_still_sends_and_the_connection_stays(
    two_models: Path, tmp_path: Path
) -> None:
    with serving(two_models, tmp_path / "log", ANOMALY_MAX_BODY_BYTES="1000000") as (_, base):
        where = httpx.URL(base)
        with socket.create_connection((where.host, where.port or 80)) as client:
            head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            client.sendall(head + b"Content-Length: 3000000\r\n\r\n")
            assert client.recv(20).startswith(b"HTTP/1.1 413")
            for _ in range(30):  # answered already, and more than headers may have
                client.sendall(bytes(100_000))
                time.sleep(0.005)
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            rest = b""
            while piece := client.recv(65536):
                rest += piece
            assert b"HTTP/1.1 200" in rest


def test_workers_end_where_the_first_process_was_killed(two_models: Path, tmp_path: Path) -> None:
    with serving(two_models, tmp_path / "log", ANOMALY_WORKERS="2") as (process, base):
        process.kill()
        process.wait()
        until = time.monotonic() + 30
        where = httpx.URL(base)
        while True:  # the port is free again
            with socket.socket() as s:
                if s.connect_ex((where.host, where.port or 80)):
                    break
            assert time.monotonic() < until
            time.sleep(0.1)


def test_metrics_of_several_workers_add_up(two_models: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(two_models, log, ANOMALY_WORKERS="2") as (process, base):
        for _ in range(20):  # each over a connection of its own, so that both workers get some
            response = httpx.post(f"{base}/score?map=none", content=encode(grey(0)), headers=PNG)
            assert response.status_code == 200
        for _ in range(5):
            text = httpx.get(f"{base}/metrics").text
            sample = 'anomaly_items_total{decision="normal",model="bright",version="1"} 20.0'
            assert sample in text
        assert 'anomaly_model_ready{model="bright",version="1"} 1.0' in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
    assert "Traceback" not in log.read_text()


def test_a_client_whose_headers_never_end_is_hung_up_on(two_models: Path, tmp_path: Path) -> None:
    with serving(two_models, tmp_path / "log", ANOMALY_HEADER_TIMEOUT_S="0.5") as (_, base):
        port = int(base.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.settimeout(20)
            assert silent.recv(1) == b""  # nothing was ever sent
        with socket.create_connection(("127.0.0.1", port)) as dripping:
            dripping.settimeout(20)
            closed = False
            for i in range(200):
                try:
                    dripping.sendall(b"POST /score HTTP/1.1\r\n" if not i else b"x: y\r\n")
                except OSError:
                    closed = True
                    break
                time.sleep(0.05)
            assert closed
        with httpx.Client(base_url=base) as kept:  # one that is polite may take its time between
            assert kept.get("/livez").status_code == 200
            time.sleep(1)
            assert kept.get("/livez").status_code == 200


def test_headers_without_end_and_empty_lines_keep_no_connection(
    two_models: Path, tmp_path: Path
) -> None:
    with serving(two_models, tmp_path / "log", ANOMALY_HEADER_TIMEOUT_S="1") as (_, base):
        port = int(base.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as endless:
            endless.settimeout(20)
            endless.sendall(b"POST /score HTTP/1.1\r\nx: ")
            closed = False
            for _ in range(10_000):
                try:
                    endless.sendall(b"a" * 65536)
                except OSError:
                    closed = True
                    break
            assert closed
        with socket.create_connection(("127.0.0.1", port)) as blank:
            blank.settimeout(20)
            blank.sendall(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
            answer = b""
            while b'{"live":true}' not in answer:
                answer += blank.recv(65536)
            blank.sendall(b"\r\n")
            assert blank.recv(1) == b""
        assert httpx.get(f"{base}/livez").status_code == 200


def test_a_url_that_is_none_of_redis_is_told_in_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "ANOMALY_REDIS_URL": "localhost:6379"}
    run = subprocess.run(
        [sys.executable, "-m", "service"],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.startswith("ANOMALY_REDIS_URL must begin with")
    assert "Traceback" not in run.stderr


def test_a_misspelled_setting_is_told_once_at_start(two_models: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings = {
        "ANOMALY_MODEL_DIR": "x",
        "ANOMALY_WORKERS": "2",
        "ANOMALY_LOG_FORMAT": "text",
        "ANOMALY_URL": "http://127.0.0.1:1",
    }
    with serving(two_models, log, **settings):
        pass
    (line,) = (line for line in log.read_text().splitlines() if "MODEL_DIR" in line)
    assert " WARNING service " in line
    assert line.endswith("ignored: ANOMALY_MODEL_DIR (did you mean ANOMALY_MODELS_DIR?)")


def test_only_what_nobody_reads_counts_as_misspelled() -> None:
    others = ["ANOMALY_DATA_DIR", "ANOMALY_URL", "ANOMALY_API_KEY", "ANOMALY_TEST_BROWSER"]
    announced = {  # by Kubernetes, for a service of this name
        "ANOMALY_SCORING_SERVICE_HOST": "10.0.0.1",
        "ANOMALY_SCORING_SERVICE_PORT_HTTP": "80",
        "ANOMALY_SCORING_PORT_80_TCP": "tcp://10.0.0.1:80",
    }
    right = dict.fromkeys([*others, "ANOMALY_PORT", "anomaly_workers", "HOME"], "1") | announced
    assert unknown_variables(right) == []
    assert unknown_variables(right | {"ANOMALY_COLOUR": "1", "anomaly_ratelimit": "5/s"}) == [
        "ANOMALY_COLOUR",
        "anomaly_ratelimit (did you mean ANOMALY_RATE_LIMIT?)",
    ]


def test_a_worker_begun_anew_serves_the_version_the_others_do(tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish_image(models)
    settings = {"ANOMALY_WORKERS": "2", "ANOMALY_CACHE_TTL_S": "0"}
    with serving(models, tmp_path / "log", **settings) as (process, base):
        publish_image(models, version=2)
        workers = workers_of(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        until = time.monotonic() + 60
        while True:  # until the new one is there too
            now = workers_of(process.pid)
            if len(now) == 2 and workers[0] not in now:
                break
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(2)  # it loads
        versions = set()
        for _ in range(20):
            answer = httpx.post(f"{base}/score?model=bright", content=encode(grey(51)), headers=PNG)
            if answer.status_code == 200:
                versions.add(answer.json()["version"])
        assert versions == {1}


def workers_of(pid: int) -> list[int]:
    """The worker processes of a service."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in _command(int(c))]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
