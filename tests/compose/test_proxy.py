"""A real HAProxy with docker/haproxy/haproxy.cfg: what it passes, sends again, and never does."""

import shutil
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from tests.service.pictures import encode, grey
from tests.service.test_process import PNG, free_port, serving

CONFIGURATION = Path(__file__).parents[2] / "docker" / "haproxy" / "haproxy.cfg"


@contextmanager
def proxy(folder: Path, replicas: Sequence[str], ready: int = 200) -> Iterator[str]:
    """The URL of a proxy before ``replicas`` (addresses: there is no engine to look names up), once
    it says ``ready`` of itself."""
    program = shutil.which("haproxy", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("no haproxy here: apt install haproxy")
    port, inside = free_port(), free_port()
    servers = [f"    server replica{i} {at}" for i, at in enumerate(replicas)]
    there_here = {
        "    bind :8000": f"    bind 127.0.0.1:{port}",
        "    bind :8405": f"    bind 127.0.0.1:{inside}",
    }
    lines = []
    for line in CONFIGURATION.read_text().splitlines():
        of_engine = line.strip().startswith("server-template")
        lines += servers if of_engine else [there_here.pop(line, line)]
    assert not there_here
    assert servers[0] in lines
    (folder / "haproxy.cfg").write_text("\n".join(lines) + "\n")
    with (folder / "proxy.log").open("wb") as log:
        command = [program, "-f", str(folder / "haproxy.cfg")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        status, until = 0, time.monotonic() + 30
        while status != ready:
            assert process.poll() is None, (folder / "proxy.log").read_text()
            assert time.monotonic() < until, (folder / "proxy.log").read_text()
            try:
                status = httpx.get(f"http://127.0.0.1:{inside}/healthz").status_code
            except httpx.TransportError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def address(url: str) -> str:
    return url.removeprefix("http://")


def test_a_replica_that_is_killed_under_load_loses_nothing_but_what_it_had_in_hand(
    two_models: Path, tmp_path: Path
) -> None:
    callers = 8
    answers: list[tuple[int, str]] = []
    done = threading.Event()

    def ask(turn: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not done.is_set():
                turn += callers
                headers = PNG | {"X-Request-ID": f"call-{turn}"}
                body = encode(grey(turn % 250))
                try:
                    found = client.post("/score?map=none", content=body, headers=headers)
                    answers.append((found.status_code, found.headers["x-request-id"]))
                except httpx.RemoteProtocolError:  # an answer that broke off
                    answers.append((0, headers["X-Request-ID"]))

    with (
        serving(two_models, tmp_path / "one") as (first, one),
        serving(two_models, tmp_path / "two") as (_, two),
        proxy(tmp_path, [address(one), address(two)]) as url,
    ):
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(callers)]
        for thread in threads:
            thread.start()
        while len(answers) < 100:
            time.sleep(0.01)
        first.kill()
        first.wait()
        killed_at = len(answers)
        while len(answers) < killed_at + 100:
            time.sleep(0.01)
        done.set()
        for thread in threads:
            thread.join()
    assert len({identity for _, identity in answers}) == len(answers)
    assert sum(status != 200 for status, _ in answers) <= callers
    assert {status for status, _ in answers[killed_at + 2 * callers :]} == {200}


@pytest.fixture(scope="module")
def url(two_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A proxy before one replica."""
    folder = tmp_path_factory.mktemp("proxy")
    with (
        serving(two_models, folder / "log", FORWARDED_ALLOW_IPS="*", ANOMALY_RATE_LIMIT="3/h") as (
            _,
            replica,
        ),
        proxy(folder, [address(replica)]) as url,
    ):
        yield url


def test_bodies_as_large_as_the_service_takes_pass_and_larger_ones_are_refused_by_it(
    url: str,
) -> None:
    large = bytes(20 * 1024 * 1024)
    response = httpx.post(f"{url}/score", content=large, headers=PNG, timeout=60)
    assert response.status_code == 415  # all zeros are no picture
    response = httpx.post(f"{url}/score", content=large + b"x", headers=PNG, timeout=60)
    assert response.status_code == 413
    assert response.json()["type"] == "urn:anomaly:problem:input-too-large"


def test_every_request_has_an_id_the_caller_s_own_where_it_sent_one(url: str) -> None:
    assert httpx.get(f"{url}/livez", headers={"X-Request-ID": "mine"}).headers[
        "x-request-id"
    ] == "mine"  # fmt: skip
    made = [httpx.get(f"{url}/livez").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]


def test_a_caller_cannot_claim_another_s_address(url: str) -> None:
    """Without keys, the rate limit counts by address."""
    statuses = []
    for i in range(8):
        claimed = {"X-Forwarded-For": f"10.0.0.{i}", "X-Request-ID": f"claim-{i}"}
        body = encode(grey(i))
        statuses.append(
            httpx.post(f"{url}/score?map=none", content=body, headers=PNG | claimed).status_code
        )
    assert statuses[-1] == 429


@pytest.mark.parametrize("path", ["/metrics", "/%6detrics", "/metrics?a=b"])
def test_metrics_are_not_for_those_outside(url: str, path: str) -> None:
    response = httpx.get(f"{url}{path}", headers={"X-Request-ID": "mine"})
    assert response.status_code == 404
    assert response.json()["request_id"] == "mine"
    assert "anomaly_" not in response.text


def test_without_a_replica_the_answer_is_a_problem_that_says_when_to_come_again(
    tmp_path: Path,
) -> None:
    with proxy(tmp_path, [f"127.0.0.1:{free_port()}"], ready=503) as url:
        response = httpx.post(
            f"{url}/score", content=b"x", headers={"X-Request-ID": 'a"b', **PNG}, timeout=30
        )
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["retry-after"] == "1"
    body = response.json()
    assert body["type"] == "urn:anomaly:problem:no-replica"
    assert (body["instance"], body["request_id"]) == ("/score", 'a"b')


class Fainting(socketserver.StreamRequestHandler):
    """A replica that is ready, and dies of every request when it has read it."""

    reached: ClassVar[list[tuple[int, str]]] = []

    def handle(self) -> None:
        request = self.rfile.readline().decode().rpartition(" ")[0]
        length = 0
        while line := self.rfile.readline().strip():
            name, _, value = line.decode().partition(":")
            length = int(value) if name.lower() == "content-length" else length
        self.rfile.read(length)
        if request == "GET /readyz":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            port = self.server.server_address[1]  # type: ignore[index]
            self.reached.append((int(port), request))


@pytest.fixture(scope="module")
def fainting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A proxy before two of them."""
    servers = [socketserver.ThreadingTCPServer(("127.0.0.1", 0), Fainting) for _ in range(2)]
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    at = [f"127.0.0.1:{server.server_address[1]}" for server in servers]
    with proxy(tmp_path_factory.mktemp("fainting"), at) as url:
        yield url
    for server in servers:
        server.shutdown()
        server.server_close()


def reached(url: str, method: str, path: str, headers: dict[str, str]) -> list[int]:
    """The replicas that got this request, one after the other."""
    Fainting.reached.clear()
    body = None if method == "GET" else b"x"
    with suppress(httpx.RemoteProtocolError):  # hung up on, where a connection was used before
        assert httpx.request(method, url + path, content=body, headers=headers).status_code == 502
    return [port for port, request in Fainting.reached if request == f"{method} {path}"]


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/score?map=none", {}),
        ("POST", "/score/timeseries", {}),
        ("POST", "/score/vectors", {}),
        ("POST", "/v2/models/bright/infer", {}),
        ("POST", "/v2/models/bright/versions/1/infer", {}),
        ("POST", "/streams/turbine-1/rows", {"Idempotency-Key": "a"}),
        ("GET", "/models", {}),
    ],
)
def test_what_may_be_done_twice_is_sent_to_the_other_replica(
    fainting: str, method: str, path: str, headers: dict[str, str]
) -> None:
    assert len(set(reached(fainting, method, path, headers))) == 2


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/streams/turbine-1/rows"),
        ("POST", "/feedback"),
        ("POST", "/models/bright/versions/1/load"),
        ("PUT", "/models/bright/aliases/stable"),
        ("DELETE", "/streams/turbine-1"),
    ],
)
def test_what_changes_something_reaches_one_replica_once(
    fainting: str, method: str, path: str
) -> None:
    assert len(reached(fainting, method, path, {})) == 1
