"""A service, a broken replica, Redis, Prometheus, Alertmanager and who is told: all real."""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from tests.artifacts import IMAGE_INPUT, publish_image, publish_series, set_active
from tests.monitoring.programs import DOCKER, program
from tests.redis_server import redis_server
from tests.service.pictures import encode, grey
from tests.service.test_process import PNG, free_port, serving

ADMIN, METRICS = "operators-secret-0001", "prometheus-secret-0001"
KEYS = f"ops:admin:{ADMIN};prom:metrics:{METRICS}"


@dataclass(frozen=True)
class Stack:
    """The addresses of what runs."""

    service: str
    broken: str
    """A replica whose model does not pass its self-test."""
    prometheus: str
    told: list[dict[str, Any]]
    """What Alertmanager sent to its webhook."""
    traffic: list[threading.Thread]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples that an expression gives now."""
        assert self.traffic[0].is_alive()
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return [one for one in found if one["value"][1] != "NaN"]

    def get(self, path: str) -> Any:
        """Of Prometheus' own interface."""
        return httpx.get(f"{self.prometheus}/api/v1/{path}").raise_for_status().json()["data"]

    def client(self) -> httpx.Client:
        """Of the service, with the operator's key."""
        return httpx.Client(base_url=self.service, headers={"X-API-Key": ADMIN}, timeout=30)


def until(what: str, happens: Callable[[], object], seconds: float = 30) -> None:
    """Nothing, once it has happened."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.1)


@contextmanager
def running(folder: Path) -> Iterator[Stack]:
    """All of it, with the rules that are shipped, scraped and evaluated every second."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(folder))
        settings = {
            "ANOMALY_API_KEYS": KEYS,
            "ANOMALY_REDIS_URL": redis.url,
            "ANOMALY_SHADOW_SHARE": "1",
            "ANOMALY_DRIFT_WINDOW": "200",
        }
        service = serving(_models(folder / "models"), folder / "service.log", **settings)
        _, address = stack.enter_context(service)
        broken = serving(
            _broken_models(folder / "broken"),
            folder / "broken.log",
            answers="/livez",
            ANOMALY_API_KEYS=KEYS,
        )
        _, other = stack.enter_context(broken)
        told: list[dict[str, Any]] = []
        webhook = stack.enter_context(_webhook(told))
        alertmanager = f"127.0.0.1:{free_port()}"
        stack.enter_context(_alertmanager(folder, alertmanager, webhook))
        targets = [url.removeprefix("http://") for url in (address, other)]
        prometheus = stack.enter_context(_prometheus(folder, targets, alertmanager))
        found = Stack(address, other, prometheus, told, [])
        enough = threading.Event()
        traffic = threading.Thread(target=_traffic, args=(found, enough))
        found.traffic.append(traffic)
        traffic.start()
        try:
            yield found
        finally:
            enough.set()
            traffic.join()


def _traffic(stack: Stack, enough: threading.Event) -> None:
    """Every kind of request, good and bad, again and again."""
    rng = np.random.default_rng(0)
    with stack.client() as client:
        client.put("/models/bright/aliases/candidate", json={"version": 2}).raise_for_status()
        while not enough.wait(0.2):
            parts = [
                ("image", ("a.png", encode(grey(int(level))), "image/png"))
                for level in rng.integers(0, 127, 20)
            ]
            client.post("/score?map=none&source=left", files=parts).raise_for_status()
            client.post("/score?map=none&source=left", files=parts).raise_for_status()
            rows = rng.normal(size=(60, 3)).round(4).tolist()
            client.post("/score/timeseries?source=t1&stride=6", json={"rows": rows})
            client.post("/score", content=encode(grey(0)), headers=PNG)
            late = {**PNG, "X-Request-Timeout": "0.000001", "X-API-Key": ADMIN}
            picture = encode(rng.integers(0, 256, (900, 900), np.uint8))
            with suppress(httpx.TransportError):  # answered, and hung up, before it was all sent
                httpx.post(f"{stack.service}/score", content=picture, headers=late)
            client.post("/score", content=b"no picture", headers=PNG)


def _models(root: Path) -> Path:
    publish_image(root, "bright", 1)
    publish_image(root, "bright", 2, IMAGE_INPUT.model_copy(update={"std": (0.5,)}))
    publish_series(root)
    set_active(root, image="bright/1", timeseries="sensors/1")
    return root


def _broken_models(root: Path) -> Path:
    folder = publish_image(root, "bright", 1)
    graph = folder / "score.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    return root


@contextmanager
def _webhook(told: list[dict[str, Any]]) -> Iterator[str]:
    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Ear) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/alerts"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _alertmanager(folder: Path, address: str, webhook: str) -> Iterator[None]:
    text = (DOCKER / "alertmanager" / "alertmanager.yml").read_text().replace("#: ", "")
    config = yaml.safe_load(text)
    (chat,) = [one for one in config["receivers"] if one["name"] == "chat"]
    chat["webhook_configs"] = [{"url": webhook}]
    config["receivers"] = [{"name": "nobody"}, chat]
    del config["global"]
    config["route"] |= {"group_wait": "1s", "routes": [{"receiver": "chat"}]}
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    options = ["--config.file=alertmanager.yml", "--storage.path=alerts"]
    options += [f"--web.listen-address={address}", "--cluster.listen-address="]
    command = [program("prometheus-alertmanager"), *options]
    with _process(command, folder, f"http://{address}/-/ready"):
        yield


@contextmanager
def _prometheus(folder: Path, targets: list[str], alertmanager: str) -> Iterator[str]:
    config = yaml.safe_load((DOCKER / "prometheus" / "local.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(_at_once(folder)), str(DOCKER / "prometheus/rules/recording.yml")]
    config["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [alertmanager]}]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": targets}]
    job["authorization"] = {"credentials": METRICS}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    options = ["--config.file=prometheus.yml", "--storage.tsdb.path=series"]
    options += [f"--web.listen-address={address}", "--log.level=warn"]
    command = [program("prometheus"), *options]
    with _process(command, folder, f"http://{address}/-/ready"):
        yield f"http://{address}"


def _at_once(folder: Path) -> Path:
    """The alerts, told as soon as they are true."""
    rules = yaml.safe_load((DOCKER / "prometheus" / "rules" / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["for"] = "0s"
    path = folder / "alerts.yml"
    path.write_text(yaml.safe_dump(rules))
    return path


@contextmanager
def _process(command: list[str], folder: Path, ready: str) -> Iterator[None]:
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)
        try:

            def answers() -> bool:
                assert process.poll() is None, log.read_text()
                try:
                    return httpx.get(ready).status_code == 200
                except httpx.TransportError:
                    return False

            until(f"{ready} answers", answers)
            yield
        finally:
            process.kill()
            process.wait()
