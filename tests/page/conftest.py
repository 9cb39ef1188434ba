"""The page in a real browser, over a real process of the service.

Every test fails where the page wrote an error to the console, broke its Content-Security-Policy,
or asked any other host for anything.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect

from tests.page.browsers import HINT, find_browser, running_browser
from tests.service.test_process import serving

Open = Callable[..., Page]
MODELS = Path(__file__).parents[2] / "models"
# what browsers write of answers that are no 200, and of a service that is away; not the page's
_EXPECTED = "Failed to load resource"

expect.set_options(timeout=20_000)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ANOMALY_") and name != "ANOMALY_TEST_BROWSER":
            monkeypatch.delenv(name)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip(HINT)
    with running_browser(path) as browser:
        yield browser


@pytest.fixture(scope="package")
def shipped(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with the models of the repository."""
    folder = tmp_path_factory.mktemp("shipped")
    with serving(MODELS, folder / "log", **apart(folder)) as (_, base):
        yield base


@pytest.fixture(scope="package")
def small(
    browser: Browser, two_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a service with ``two_models``."""
    folder = tmp_path_factory.mktemp("small")
    with serving(two_models, folder / "log", **apart(folder)) as (_, base):
        yield base


def apart(folder: Path) -> dict[str, str]:
    """Settings of a service that leaves nothing beside its models."""
    return {"ANOMALY_STATE_FILE": str(folder / "serving.json")}


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """open_page(address, **options of the browser's context) gives the page, being watched."""
    found: list[str] = []
    with ExitStack() as stack:

        def begin(address: str, **options: Any) -> Page:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
            stack.callback(context.close)
            page = context.new_page()
            host = urlsplit(address).netloc

            def heard(message: ConsoleMessage) -> None:
                if message.type in ("error", "warning") and _EXPECTED not in message.text:
                    found.append(f"{message.type}: {message.text}")

            def asked(request: Request) -> None:
                url = urlsplit(request.url)
                if url.scheme not in ("blob", "data") and url.netloc != host:
                    found.append(f"asked {request.url}")

            page.on("console", heard)
            page.on("pageerror", lambda error: found.append(f"uncaught: {error}"))
            page.on("request", asked)
            page.goto(address)
            return page

        yield begin
    assert not found, found
