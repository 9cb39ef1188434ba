"""The service over miniature models, spoken to through HTTP."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings

Start = Callable[..., TestClient]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ANOMALY_"):
            monkeypatch.delenv(name)


def wait_until_loaded(client: TestClient) -> TestClient:
    """The client, once no model is being loaded any more."""
    until = time.monotonic() + 30
    while '"status":"loading"' in client.get("/models").text:
        assert time.monotonic() < until, "models never finished loading"
        time.sleep(0.005)
    return client


@pytest.fixture(scope="session")
def session_client(two_models: Path) -> Iterator[TestClient]:
    app = create_app(Settings(models_dir=two_models, threads=1))
    with TestClient(app) as client:
        yield wait_until_loaded(client)


@pytest.fixture
def client(session_client: TestClient) -> TestClient:
    """A client of the service over ``two_models`` with default settings."""
    return session_client


@pytest.fixture
def start(two_models: Path) -> Iterator[Start]:
    """start(models_dir=..., setting=...) gives a client of a service with other settings."""
    with ExitStack() as stack:

        def begin(models_dir: Path = two_models, **settings: Any) -> TestClient:
            app = create_app(Settings(models_dir=models_dir, threads=1, **settings))
            return wait_until_loaded(stack.enter_context(TestClient(app)))

        yield begin
