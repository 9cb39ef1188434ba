"""Faults of files: corrupted artifacts, full disks, and a hundred loads."""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import servers
from callers import calling, words
from outcomes import LeftOut, Outcome, Pace

NAME = "digits-nln"
ADMIN, INFER = "benchmark-admin-0123456789abcdef", "benchmark-infer-0123456789abcdef"
_KEYS = f"bench:admin:{ADMIN};callers:infer:{INFER}"
_AS_ADMIN = {"X-API-Key": ADMIN}


def corrupted_at_start(pace: Pace) -> Outcome:
    with _models("tiles-nln", NAME) as models:
        flip(models / "tiles-nln" / "1" / "encoder.onnx")
        with _serving_unready(models) as server, calling(server) as callers:
            time.sleep(pace.seconds / 2)
            ready = httpx.get(f"{server.url}/readyz")
            asked = httpx.post(
                f"{server.url}/score?model=tiles-nln",
                content=(servers.ROOT / "examples" / "tile-free.png").read_bytes(),
                headers={"Content-Type": "image/png"},
            )
            seen = callers.outcomes()
    named = "encoder.onnx" in ready.text
    return Outcome(
        "a bit flipped in one model's encoder.onnx before the start",
        f"/readyz {ready.status_code}, {'naming' if named else 'NOT naming'} the file; that model: "
        f"{asked.status_code}; the other: {words(seen)}",
        "nothing",
        ok=ready.status_code == 503 and named and asked.status_code == 503 and set(seen) == {"200"},
    )


def corrupted_during_load(pace: Pace) -> Outcome:
    """Version 2 is loaded again and again while its files are being damaged."""
    rng, outcomes, wrong = random.Random(0), dict[int, int](), 0
    with _models(NAME) as models:
        second = _second_version(models)
        with servers.service(models, api_keys=_KEYS) as server:
            _need_loading(server)
            with calling(server, key=INFER) as callers:
                for turn in range(12 if pace.cycles > 50 else 4):
                    victim = second / rng.choice(["bank.npy", "encoder.onnx", "latents.npy"])
                    good = victim.read_bytes()
                    load = subprocess.Popen(
                        [
                            sys.executable,
                            "-c",
                            _LOAD,
                            f"{server.url}/models/{NAME}/versions/2/load",
                        ],
                        stdout=subprocess.PIPE,
                        text=True,
                        env=os.environ | {"ADMIN": ADMIN},
                    )
                    time.sleep(0.25 + 0.02 * turn)
                    flip(victim)
                    status = int(load.communicate()[0])
                    outcomes[status] = outcomes.get(status, 0) + 1
                    if status == 200 and not _scores_alike(server):
                        wrong += 1
                    httpx.post(
                        f"{server.url}/models/{NAME}/versions/2/unload",
                        headers=_AS_ADMIN,
                        timeout=30,
                    )
                    _replace(victim, good)
            seen = callers.outcomes()
            alive = server.alive()
    return Outcome(
        "a bit flipped in a file of version 2 while it was being loaded",
        f"loads: {outcomes}; version 1 meanwhile: {words(seen)}",
        f"{wrong} loads that went through and then scored differently",
        ok=alive and wrong == 0 and set(seen) == {"200"},
    )


def disk_full_on_publish(pace: Pace) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder)
        mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            raise LeftOut("a small tmpfs cannot be mounted here (root is needed)")
        try:
            shutil.copytree(servers.MODELS / NAME, disk / NAME)
            (disk / "active.json").write_text(json.dumps({"image": f"{NAME}/1"}))
            with servers.service(disk) as server, calling(server) as callers:
                done = subprocess.run(
                    [sys.executable, "-c", _PUBLISH, str(disk), NAME, str(servers.MODELS)],
                    capture_output=True,
                    text=True,
                    check=False,
                    env=os.environ | {"PYTHONPATH": str(servers.ROOT)},
                )
                time.sleep(pace.seconds / 3)
                seen = callers.outcomes()
            left = sorted(p.name for p in (disk / NAME).iterdir())
        finally:
            subprocess.run(["umount", "--lazy", folder], check=False)
    said = "No space left on device" if "[Errno 28]" in done.stderr else done.stderr[-200:]
    return Outcome(
        "publishing a second version of 11 MB onto a disk with 5 MB left",
        f"the publisher: {said}; the folder then holds {left}; callers: {words(seen)}",
        "nothing: version 1 is whole, no half version is there",
        ok=done.returncode != 0 and "No space" in said and left == ["1"] and set(seen) == {"200"},
    )


def load_cycles(pace: Pace) -> Outcome:
    with _models(NAME) as models:
        _second_version(models)
        with servers.service(models, api_keys=_KEYS) as server:
            _need_loading(server)
            with httpx.Client(
                base_url=f"{server.url}/models/{NAME}/versions/2", timeout=60
            ) as client:
                statuses, sizes = set(), []
                for _ in range(pace.cycles):
                    for step in ("load", "unload"):
                        statuses.add(client.post(f"/{step}", headers=_AS_ADMIN).status_code)
                    sizes.append(server.rss_mb())
    tenth = max(1, len(sizes) // 10)
    growth = sizes[-1] / sizes[tenth] - 1
    return Outcome(
        f"{pace.cycles} x load and unload of a second version",
        f"statuses {sorted(statuses)}; {sizes[0]:.0f} MB after the first, {sizes[tenth]:.0f} after "
        f"{tenth + 1}, {sizes[-1]:.0f} MB after the last: {growth:+.1%}",
        "nothing",
        ok=statuses == {200} and growth < 0.05,
    )


def flip(path: Path) -> None:
    """One bit in the middle of the file, in place."""
    with path.open("r+b") as file:
        at = path.stat().st_size // 2
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ 0x40]))


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(data)
    fresh.replace(path)


@contextmanager
def _models(*names: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            shutil.copytree(servers.MODELS / name, Path(folder) / name)
        (Path(folder) / "active.json").write_text(json.dumps({"image": f"{NAME}/1"}))
        yield Path(folder)


def _second_version(models: Path) -> Path:
    second = models / NAME / "2"
    shutil.copytree(models / NAME / "1", second)
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))
    return second


@contextmanager
def _serving_unready(models: Path) -> Iterator[servers.Server]:
    """A service that will never be ready, once all that can be loaded is."""
    environment = {"ANOMALY_MODELS_DIR": str(models), "ANOMALY_PORT": str(servers.free_port())}
    command = [str(servers.product_python()), "-m", "service"]
    port = int(environment["ANOMALY_PORT"])
    with servers.running("service", command, environment, port, ready="/livez") as server:
        until = time.monotonic() + 60
        while '"loading"' in httpx.get(f"{server.url}/models").text and time.monotonic() < until:
            time.sleep(0.1)
        yield server


def _need_loading(server: servers.Server) -> None:
    answer = httpx.post(
        f"{server.url}/models/{NAME}/versions/2/load", headers=_AS_ADMIN, timeout=60
    )
    if answer.status_code in (404, 405):
        raise LeftOut("this service has no route that loads versions")
    httpx.post(f"{server.url}/models/{NAME}/versions/2/unload", headers=_AS_ADMIN, timeout=60)


def _scores_alike(server: servers.Server) -> bool:
    image = (servers.ROOT / "examples" / "digit-7.png").read_bytes()
    raw = []
    for version in (1, 2):
        with suppress(httpx.TransportError):
            answer = httpx.post(
                f"{server.url}/score?map=float32&model={NAME}&version={version}",
                content=image,
                headers={"Content-Type": "image/png", **_AS_ADMIN},
            )
            raw.append(answer.json()["results"][0]["raw_score"])
    return len(raw) == 2 and abs(raw[0] - raw[1]) < 1e-6


_LOAD = """
import os, sys, httpx
print(httpx.post(sys.argv[1], headers={"X-API-Key": os.environ["ADMIN"]}, timeout=60).status_code)
"""
_PUBLISH = """
import shutil, sys
from pathlib import Path
from service.contract import store
root, name, source = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
artifact = store.open_artifact(source, name, 1)
with store.staging(root, name) as folder:
    for file in artifact.manifest.files:
        shutil.copy(artifact.path / file, folder / file)
    store.commit(folder, artifact.manifest.model_copy(update={"version": 2}))
"""

SCENARIOS = {
    "artifact corrupted before start": corrupted_at_start,
    "artifact corrupted during load": corrupted_during_load,
    "disk full on publish": disk_full_on_publish,
    "100 load/unload cycles": load_cycles,
}
