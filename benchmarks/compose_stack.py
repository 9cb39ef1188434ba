"""docker-compose.yml under measurement: in a project of its own, on free ports, gone afterwards."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import servers

ROOT = Path(__file__).parent.parent
PROJECT = "anomaly-benchmark"
SERVICE_IMAGE = "anomaly-scoring:0.1.0"
# no answer comes from the cache: what is measured is scoring
_OVERRIDE = """
services:
  service:
    environment: {ANOMALY_CACHE_TTL_S: "0", ANOMALY_LOG_LEVEL: warning}
"""
_UNITS = {"KiB": 2**-10, "MiB": 1.0, "GiB": 2**10, "B": 2**-20}


def run(*command: str, check: bool = True, **environment: str) -> str:
    """The output of a command; its errors end the measurement."""
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout.strip()


def compose_command() -> list[str]:
    """Compose as a plugin of docker, else as a program of its own."""
    servers.need("docker", "an engine is needed, and its client")
    version = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if not version.returncode:
        return ["docker", "compose"]
    return [servers.need("docker-compose", "apt install docker-compose")]


def build(dockerfile: str, tag: str) -> float:
    """Seconds until the image was there; what did not change since the last time takes none."""
    started = time.monotonic()
    run("docker", "build", "--network=host", "-t", tag, "-f", dockerfile, ".", DOCKER_BUILDKIT="1")
    return time.monotonic() - started


def size_mb(image: str) -> float:
    return int(run("docker", "image", "inspect", "-f", "{{.Size}}", image)) / 1e6


def foreign_images() -> dict[str, str]:
    """What stands for each image that is not built here: itself, or packages in its place."""
    text = (ROOT / "docker-compose.yml").read_text()
    found = {}
    for image in re.findall(r"^    image: ((?!anomaly)\S+)$", text, re.MULTILINE):
        if not run("docker", "image", "ls", "-q", image):
            run("docker", "pull", image, check=False)
        if not run("docker", "image", "ls", "-q", image):
            target = re.split(r"[/:]", image.removeprefix("prom/").removeprefix("grafana/"))[0]
            command = ["docker", "build", "--network=host", "--target", target, "-t", image]
            command += ["-f", "benchmarks/standins.Dockerfile", "benchmarks"]
            run(*command, DOCKER_BUILDKIT="1")
        label = '{{index .Config.Labels "stand-in"}}'
        found[image] = run("docker", "image", "inspect", "-f", label, image) or "itself"
    return found


class Stack:
    """One project; ``url`` is its proxy."""

    def __init__(self, folder: Path) -> None:
        (folder / "override.yml").write_text(_OVERRIDE)
        files = ["-f", "docker-compose.yml", "-f", str(folder / "override.yml")]
        self._compose = [*compose_command(), "-p", PROJECT, "--project-directory", ".", *files]
        names = ("PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT", "GRAFANA_PORT")
        self._ports = {f"STACK_{name}": str(servers.free_port()) for name in names}
        self.url = f"http://127.0.0.1:{self._ports['STACK_PORT']}"
        self.prometheus = f"http://127.0.0.1:{self._ports['STACK_PROMETHEUS_PORT']}"

    def compose(self, *words: str) -> str:
        return run(*self._compose, *words, **self._ports)

    def up(self, *words: str) -> None:
        self.compose("up", "--detach", "--no-build", *words)

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans")

    def rolling_update(self) -> str:
        command = ("sh", "docker/rolling_update.sh")
        return run(*command, COMPOSE=" ".join(self._compose), **self._ports)

    def containers(self, service: str = "service") -> list[str]:
        return self.compose("ps", "-q", service).split()

    def state(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            run("docker", "inspect", "-f", "{{json .State}}", container)
        )
        return found

    def healthy(self, count: int, within_s: float = 120) -> float:
        """Seconds until so many replicas are healthy."""
        started = time.monotonic()
        while True:
            states = [self.state(c).get("Health", {}).get("Status") for c in self.containers()]
            if states == ["healthy"] * count:
                return time.monotonic() - started
            if time.monotonic() - started > within_s:
                raise SystemExit(f"replicas are {states}, not {count} healthy ones")
            time.sleep(0.2)

    def memory_mb(self) -> dict[str, float]:
        """Of each container, as ``docker stats`` counts it: without file cache that can go."""
        ids = run("docker", "ps", "-q", "--filter", f"label=com.docker.compose.project={PROJECT}")
        form = "{{.Name}} {{.MemUsage}}"
        lines = run("docker", "stats", "--no-stream", "--format", form, *ids.split()).splitlines()
        found = {}
        for line in lines:
            name, used = line.split()[:2]
            number, unit = re.fullmatch(r"([\d.]+)(\w+)", used).groups()  # type: ignore[union-attr]
            found[re.sub(rf"^{PROJECT}[-_]", "", name).replace("_", "-")] = (
                float(number) * _UNITS[unit]
            )
        return found

    def first_score_s(self, image: bytes, within_s: float = 120) -> float:
        """Seconds until the proxy has answered with a score."""
        started = time.monotonic()
        while time.monotonic() - started < within_s:
            with suppress(httpx.TransportError):
                path, png = "/score?map=none", {"Content-Type": "image/png"}
                answer = httpx.post(self.url + path, content=image, headers=png, timeout=10)
                if answer.status_code == 200:
                    return time.monotonic() - started
            time.sleep(0.05)
        raise SystemExit(f"no score within {within_s} s:\n{self.compose('logs', '--tail', '20')}")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus knows."""
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": expression})
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return result


@contextmanager
def stack() -> Iterator[Stack]:
    """A project that is not up yet, and gone after the block with all it stored."""
    folder = Path(tempfile.mkdtemp(prefix="stack-"))
    made = Stack(folder)
    try:
        yield made
    finally:
        made.down()
        shutil.rmtree(folder)
