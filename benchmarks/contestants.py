"""The servers that `serving.py` compares, the ceiling, and proof that they all score alike."""

import os
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import loads
import servers

PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Contestant:
    """A running server, where it takes a raw image and a form, and the bodies for each."""

    server: servers.Server
    raw: str
    form: str
    form_bodies: Path

    def target(self, kind: str, raw_bodies: Path) -> tuple[str, Path, str]:
        """URL, bodies and content type of one kind of request."""
        if kind == "raw":
            return self.server.url + self.raw, raw_bodies, loads.RAW_TYPE
        return self.server.url + self.form, self.form_bodies, loads.FORM_TYPE


def write_bodies(folder: Path) -> dict[str, Path]:
    files = loads.digits()
    return {
        "raw": loads.write_bodies(folder / "raw", files),
        "image": loads.write_bodies(folder / "form", [loads.form([f]) for f in files]),
        "images": loads.write_bodies(folder / "list", [loads.form([f], "images") for f in files]),
    }


def start_service(stack: ExitStack, models: Path, name: str, bodies: dict[str, Path]) -> Contestant:
    path = f"/score?map=none&model={name}"
    settings = {"workers": "1", "cache_ttl_s": "0"}
    server = stack.enter_context(servers.service(models, **settings))
    return Contestant(server, path, path, bodies["image"])


def start_peers(
    stack: ExitStack, python: Path, models: Path, name: str, bodies: dict[str, Path]
) -> dict[str, Contestant]:
    ports = {key: servers.free_port() for key in ("mosec", "fastapi", "litserve", "bentoml")}
    mosec = ["--address", "127.0.0.1", "--log-level", "warning", "--port", str(ports["mosec"])]
    mosec += ["--timeout", "20000"]
    bento = ["serve", "bentoml_peer:Score", "--host", "127.0.0.1", "--port", str(ports["bentoml"])]
    commands = {
        "mosec": ([PEERS / "mosec_peer.py", *mosec], "/", "/score", "image"),
        "fastapi": ([PEERS / "fastapi_peer.py"], "/ready", "/form", "image"),
        "litserve": ([PEERS / "litserve_peer.py"], "/health", "/score", "image"),
        "bentoml": (["-m", "bentoml", *bento], "/readyz", "/form", "images"),
    }
    found = {}
    for key, (command, ready, form, kind) in commands.items():
        environment = peer_environment(models, name) | {"PEER_PORT": str(ports[key])}
        words = [str(python), *map(str, command)]
        running = servers.running(key, words, environment, ports[key], ready=ready)
        found[key] = Contestant(stack.enter_context(running), "/score", form, bodies[kind])
    return found


def peer_environment(models: Path, name: str) -> dict[str, str]:
    return {
        "PEER_MODELS_DIR": str(models),
        "PEER_MODEL": name,
        "PYTHONPATH": f"{servers.ROOT}:{PEERS}",
        "BENTOML_DO_NOT_TRACK": "True",
    }


def start_ceiling(
    stack: ExitStack, python: Path, models: Path, name: str
) -> "subprocess.Popen[str]":
    command = servers.pinned(servers.SERVER_CORE, [str(python), str(PEERS / "ceiling.py")])
    environment = os.environ | peer_environment(models, name) | {"OMP_NUM_THREADS": "1"}
    process = stack.enter_context(
        subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    )
    assert process.stdin is not None
    stack.callback(process.stdin.close)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def check_answers(field: dict[str, Contestant], raw: Path) -> None:
    """Nothing, where all give the same scores to some images, raw and in forms."""
    for data in loads.digits()[:4]:
        seen = {}
        for key, contestant in field.items():
            multi = loads.form(
                [data], "images" if contestant.form_bodies.name == "list" else "image"
            )
            for kind, body in (("raw", data), ("form", multi)):
                url, _, media = contestant.target(kind, raw)
                answer = httpx.post(url, content=body, headers={"Content-Type": media}, timeout=30)
                answer.raise_for_status()
                result = answer.json()
                result = result[0] if isinstance(result, list) else result
                seen[key, kind] = result.get("results", [result])[0]
        first = seen[next(iter(seen))]
        for who, result in seen.items():
            if abs(result["raw_score"] - first["raw_score"]) > 1e-4 * abs(first["raw_score"]):
                raise SystemExit(f"{who} scores {result}, the first one {first}")
