"""Whatever can go wrong, provoked for real: what the service, or its start, then says."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.__main__ import main
from service.app import create_app
from service.contract.errors import DetectorFailure
from service.contract.store import digests
from service.scoring import Scorer
from service.settings import Settings
from tests.artifacts import (
    VECTOR_INPUT,
    publish_image,
    publish_series,
    publish_vectors,
    set_active,
)
from tests.service.conftest import wait_until_loaded
from tests.service.operators import operated
from tests.service.pictures import encode, grey, noise

PNG, CSV = {"Content-Type": "image/png"}, {"Content-Type": "text/csv"}
JSON = {"Content-Type": "application/json"}
PICTURE = encode(grey(51))
HEAD = "power,wind,pitch\n"
GERMAN = "power;wind;pitch\n" + "1,5;-1,0779;3\n" * 9
ROWS = HEAD + "".join(f"{i},{i + 1},{i % 3}\n" for i in range(12))
Said = tuple[str, str]
"""Slug of a problem's type and its detail."""


def problems_of_requests(models: Path) -> Iterator[Said]:
    """What a service with default settings, no keys and no Redis refuses."""
    truncated = encode(noise(64, 64))[:200]
    bomb = encode(grey(0, 9000, 9000))
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/score", {"content": b"", "headers": PNG}),
        ("POST", "/score", {"content": truncated, "headers": PNG}),
        ("POST", "/score", {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}),
        ("POST", "/score/timeseries", {"content": b'{"rows": [', "headers": JSON}),
        ("POST", "/models/bright/versions/1/load", {}),
        ("POST", "/score?model=absent", {"content": PICTURE, "headers": PNG}),
        ("POST", "/score?version=7", {"content": PICTURE, "headers": PNG}),
        ("POST", "/score?version=candidate", {"content": PICTURE, "headers": PNG}),
        ("GET", "/streams/absent", {}),
        ("POST", "/feedback", {"json": {"request_id": "absent", "label": "normal"}}),
        ("POST", "/feedback", {"content": bytes(20_000), "headers": JSON}),
        ("POST", "/score", {"content": bytes(21 * 2**20), "headers": PNG}),
        ("POST", "/score", {"content": bomb, "headers": PNG}),
        ("POST", "/score", {"files": [("image", (f"{i}", PICTURE)) for i in range(65)]}),
        ("POST", "/score/timeseries", {"content": HEAD + "1,1,1\n" * 340_000, "headers": CSV}),
        ("POST", "/score", {"content": encode(grey(1), "GIF"), "headers": PNG}),
        ("POST", "/score", {"content": b"text", "headers": {"Content-Type": "text/plain"}}),
        ("POST", "/score", {"content": PICTURE, "headers": PNG | {"Content-Encoding": "gzip"}}),
        ("POST", "/score?mpa=none", {"content": PICTURE, "headers": PNG}),
        ("POST", "/score?fpr=0.001", {"content": PICTURE, "headers": PNG}),
        ("POST", "/score?evidence=2", {"content": PICTURE, "headers": PNG}),
        ("POST", "/score?model=sensors", {"content": PICTURE, "headers": PNG}),
        ("POST", "/score/timeseries", {"content": "power,wind\n1,2\n", "headers": CSV}),
        ("POST", "/score/timeseries", {"content": HEAD + "1,2,3\n", "headers": CSV}),
        ("POST", "/score/timeseries", {"content": HEAD + "1,two,3\n" * 9, "headers": CSV}),
        ("POST", "/score/timeseries", {"content": GERMAN, "headers": CSV}),
        ("POST", "/score", {"content": PICTURE, "headers": PNG | {"X-Request-Timeout": "soon"}}),
        ("POST", "/score", {"content": PICTURE, "headers": PNG | {"X-Request-Timeout": "1e-9"}}),
    ]
    with TestClient(create_app(Settings(models_dir=models, threads=1))) as client:
        wait_until_loaded(client)
        for method, path, options in requests:
            yield _said(client.request(method, path, **options))
        rows = {"content": ROWS, "headers": CSV}
        assert client.post("/streams/t1/rows?stride=2", **rows).status_code == 200
        yield _said(client.post("/streams/t1/rows?stride=3", **rows))
        key = CSV | {"Idempotency-Key": "a"}
        assert client.post("/streams/t1/rows", content=ROWS, headers=key).status_code == 200
        yield _said(client.post("/streams/t1/rows", content=HEAD + "1,2,3\n", headers=key))


def problems_of_vectors(root: Path) -> Iterator[Said]:
    """What a service with default settings refuses to score with a model of vectors."""
    publish_vectors(root)
    publish_vectors(root, "numbered", spec=VECTOR_INPUT.model_copy(update={"names": ()}))
    set_active(root, vectors="part/1")
    bodies = [b'{"vectors": %s}' % rows for rows in (
        b"[[1, null, 3]]", b"[[1, Infinity, 3]]", b'[[1, "x", 3]]', b"[[1, 2]]", b"[]",
    )]  # fmt: skip
    with TestClient(create_app(Settings(models_dir=root, threads=1, max_windows=2))) as client:
        wait_until_loaded(client)
        for body in bodies:
            yield _said(client.post("/score/vectors", content=body, headers=JSON))
        text = "torque,current,heat\n1,2,3\n1,,3\n"
        yield _said(client.post("/score/vectors", content=text, headers=CSV))
        path = "/score/vectors?model=numbered"
        yield _said(client.post(path, content="a,b\n1,2\n", headers=CSV))
        yield _said(client.post("/score/vectors", json={"vectors": [[1, 2, 3]] * 3}))


def problems_of_settings(models: Path, tmp_path: Path, closed_port: int) -> Iterator[Said]:
    """What a service refuses because of how it was set up, or what state it is in."""

    def of(path: str, content: str | bytes = PICTURE, **settings: Any) -> Said:
        with TestClient(create_app(Settings(models_dir=models, threads=1, **settings))) as client:
            wait_until_loaded(client)
            media = PNG if isinstance(content, bytes) else CSV
            for _ in range(2):
                answer = client.post(path, content=content, headers=media)
            return _said(answer)

    keys = "reader:infer:0123456789abcdef"
    yield of("/score", api_keys=keys)
    yield of("/streams/a/rows", ROWS, workers=2)
    yield of("/streams/a/rows", ROWS, redis_url=f"redis://127.0.0.1:{closed_port}/0")
    yield of("/score", rate_limit="1/h")
    with TestClient(create_app(Settings(models_dir=models, threads=1, api_keys=keys))) as client:
        yield _said(client.get("/models", headers={"X-API-Key": "fedcba9876543210"}))
        mine = {"X-API-Key": "0123456789abcdef"}
        yield _said(client.post("/models/bright/versions/1/load", headers=mine))
    with TestClient(create_app(Settings(models_dir=models, threads=1, streams_max=1))) as client:
        wait_until_loaded(client)
        client.post("/streams/a/rows", content=ROWS, headers=CSV)
        yield _said(client.post("/streams/b/rows", content=ROWS, headers=CSV))
    root = tmp_path / "models"
    publish_image(root)
    publish_image(root, version=2)
    (publish_image(root, version=3) / "score.onnx").write_bytes(b"broken")
    set_active(root, image="bright/1")
    with operated(root, state_file=tmp_path / "state.json") as client:
        wait_until_loaded(client)
        yield _said(client.post("/models/bright/versions/1/unload"))
        yield _said(client.post("/models/bright/versions/3/load"))
        yield _said(client.put("/models/bright/aliases/candidate", json={"version": 1}))
        yield _said(client.post("/score?version=2", content=PICTURE, headers=PNG))
        yield _said(client.post("/score/timeseries", content=ROWS, headers=CSV))
        publish_image(root, name="trained")
        until = time.monotonic() + 30
        while client.get("/models/trained").status_code == 404 and time.monotonic() < until:
            time.sleep(0.05)  # the folder is looked through every second
        yield _said(client.post("/score?model=trained", content=PICTURE, headers=PNG))
    with operated(root, state_file=tmp_path / "absent" / "state.json") as client:
        wait_until_loaded(client)
        yield _said(client.put("/models/bright/aliases/stable", json={"version": 2}))
    set_active(root, image="bright/3")
    with operated(root, state_file=tmp_path / "other.json") as client:
        wait_until_loaded(client)
        yield _said(client.post("/score", content=PICTURE, headers=PNG))


def problem_of_a_bug(models: Path, monkeypatch: Any) -> Said:
    """What a caller sees of something that failed inside."""

    def fails(*_: Any, **__: Any) -> Any:
        raise DetectorFailure("a graph failed")

    app = create_app(Settings(models_dir=models, threads=1))
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_loaded(client)
        monkeypatch.setattr(Scorer, "score", fails)
        return _said(client.post("/score", content=PICTURE, headers=PNG))


def problem_of_a_crowd(models: Path) -> Said:
    """What one of two large requests at a time is told, where there is room for one."""
    settings = Settings(models_dir=models, threads=1, queue_max_items=1, cache_ttl_s=0)
    files = [("image", (f"{i}", encode(noise(64, 64, i)))) for i in range(64)]
    with TestClient(create_app(settings)) as client:
        wait_until_loaded(client)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with ThreadPoolExecutor(8) as pool:
                every = list(pool.map(lambda _: client.post("/score", files=files), range(8)))
            for answer in every:
                if answer.status_code == 503:
                    return _said(answer)
    raise AssertionError("eight requests at a time were never too many")


def reasons_not_to_be_ready(tmp_path: Path) -> Iterator[str]:
    """What /readyz says of folders that cannot be served."""
    for number, spoil in enumerate(SPOILED):
        root = tmp_path / f"models-{number}"
        folder = publish_image(root)
        set_active(root, image="bright/1")
        settings = spoil(root, folder) or {}
        with TestClient(create_app(Settings(models_dir=root, threads=1, **settings))) as client:
            wait_until_loaded(client)
            answer = client.get("/readyz")
            assert answer.status_code == 503, (spoil, answer.text)
            yield from answer.json()["reasons"]


def failed_starts(tmp_path: Path) -> Iterator[str]:
    """What the command says of settings that it cannot use, before it ends with status 2."""
    keys = tmp_path / "keys"
    keys.write_text("me:infer:short\n")
    for name, value in (
        ("PORT", "eighty"),
        ("RATE_LIMIT", "5"),
        ("RATE_LIMIT", "fast"),
        ("PROVIDERS", "gpu"),
        ("API_KEYS_FILE", str(keys)),
        ("API_KEYS_FILE", str(tmp_path / "absent")),
        ("REDIS_URL", "localhost:6379"),
        ("REDIS_URL_FILE", str(tmp_path / "absent")),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(f"ANOMALY_{name}", value)
            written = StringIO()
            patch.setattr(sys, "stderr", written)
            assert main([]) == 2
        (line,) = written.getvalue().splitlines()
        assert "Value error" not in line
        assert line.count(repr(value)) <= 1
        yield line


def start_on(taken_port: int, tmp_path: Path) -> str:
    """What the command says where another process has its port, before it ends with status 3."""
    run = subprocess.run(
        [sys.executable, "-m", "service", "--port", str(taken_port), "--models-dir", str(tmp_path)],
        env=os.environ | {"ANOMALY_LOG_FORMAT": "text"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert run.returncode == 3, run.stderr
    (line,) = run.stderr.splitlines()
    return line


def _said(answer: Any) -> Said:
    assert answer.status_code >= 400, answer.text
    body = answer.json()
    return body["type"].rpartition(":")[2], body["detail"]


def _changed(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = root / "bright" / "1" / "manifest.json"
    members = json.loads(path.read_text())
    change(members)
    path.write_text(json.dumps(members))


def _golden(root: Path, folder: Path) -> None:
    arrays = dict(np.load(folder / "golden.npz"))
    np.savez(folder / "golden.npz", **(arrays | {"scores": arrays["scores"] + 0.5}))
    _changed(root, lambda m: m["files"].update(digests(folder)))


def _named(root: Path, _: Path) -> dict[str, Any]:
    state = {"format": 1, "revision": 1, "models": {"bright": {"stable": 5}}}
    (root / "serving.json").write_text(json.dumps(state))
    return {}


def _empty(root: Path, folder: Path) -> None:
    shutil.rmtree(folder.parent)
    set_active(root)


def _series_default(root: Path, _: Path) -> None:
    publish_series(root)
    set_active(root, image="sensors/1")


SPOILED: tuple[Callable[[Path, Path], dict[str, Any] | None], ...] = (
    lambda root, folder: (folder / "score.onnx").write_bytes(b"x") and None,
    lambda root, folder: (folder / "score.onnx").unlink(),
    lambda root, folder: (folder / "manifest.json").write_text("{") and None,
    lambda root, folder: _changed(root, lambda m: m.update(format=2)),
    lambda root, folder: _changed(root, lambda m: m.update(name="other")),
    lambda root, folder: _changed(root, lambda m: m.update(family="other")),
    lambda root, folder: _changed(root, lambda m: m.pop("golden")),
    _golden,
    lambda root, folder: {"providers": "cuda!"},
    lambda root, folder: set_active(root, image="bright/9"),
    _series_default,
    lambda root, folder: (root / "active.json").write_text('{"image": 3}') and None,
    _named,
    lambda root, folder: (root / "serving.json").write_text("{") and None,
    _empty,
)
