"""A service whose operator has a key, for tests of what operators do."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.service.conftest import wait_until_loaded
from tests.service.pictures import encode, grey

SECRET = "operators-secret-0001"
KEYS = f"ops:admin:{SECRET}"
PNG = {"Content-Type": "image/png"}


def operated(models: Path, **settings: Any) -> TestClient:
    """A client that sends the operator's key; for ``with``."""
    app = create_app(Settings(models_dir=models, threads=1, api_keys=KEYS, **settings))
    return TestClient(app, headers={"X-API-Key": SECRET})


def loaded(client: TestClient) -> TestClient:
    """The client, once no model is being loaded any more."""
    return wait_until_loaded(client)


def score(client: TestClient, query: str = "", level: int = 51) -> Any:
    """The response for an image of one grey level."""
    return client.post(f"/score{query}", content=encode(grey(level)), headers=PNG)


def served(client: TestClient, query: str = "") -> int:
    """The version that answers."""
    response = score(client, f"{query}{'&' if query else '?'}map=none")
    assert response.status_code == 200, response.text
    return int(response.json()["version"])


def eventually(happens: Callable[[], bool]) -> None:
    """Nothing, once ``happens`` is true; it must be before long."""
    until = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)
