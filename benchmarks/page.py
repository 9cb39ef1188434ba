"""The page in Chromium: what it weighs, and how long until it is there, until a first result, and
until 200 results. ``python benchmarks/page.py``; with ``picture``, docs/page.png anew.

*Cold* is a browser that has never seen the page, *warm* one that opens it again. Times are taken by
the page's own clock: from the start of the navigation until the models can be chosen, and from the
click on an example (or the choice of files) until its result is drawn.
"""

import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import report
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, FilePayload, Page
from servers import service

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.page.browsers import HINT, find_browser, running_browser

ROUNDS = 7
MANY = 200
PICTURE = Path(__file__).parent.parent / "docs" / "page.png"
# runs before the page's own scripts, and looks once a frame
_CLOCK = """
window.clock = (selector, from) => new Promise((done) => {
  const look = () => document.querySelector(selector)
    ? done(performance.now() - from) : requestAnimationFrame(look);
  look();
});
addEventListener("DOMContentLoaded", async () => {
  window.there = await window.clock("#example-list button", 0);
});
"""
_CLICK = """async ([label, selector]) => {
  const from = performance.now();
  [...document.querySelectorAll("#example-list button")].find((b) => b.textContent.includes(label)).click();
  return await window.clock(selector, from);
}"""  # noqa: E501
_RESULTS = {
    "an image (28 x 28)": ("Digit 2", "#viewer[data-shown]"),
    "an image (128 x 128)": ("Tile, blowhole", "#viewer[data-shown]"),
    "a recording (300 rows x 26 sensors), 265 windows": ("Wind turbine", "#chart .scores"),
}


class Weights:
    """Of one load: requests, bytes on the wire and of content; and those of the page's own files,
    which are neither examples nor answers about models.
    """

    def __init__(self, page: Page) -> None:
        self.found = dict.fromkeys(("requests", "wire", "content", "own_wire", "own_content"), 0.0)
        self._own: set[str] = set()
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.requestWillBeSent", self._asked)
        session.on("Network.loadingFinished", self._finished)
        session.on("Network.dataReceived", self._received)

    def _asked(self, event: dict[str, Any]) -> None:
        path = urlsplit(event["request"]["url"]).path
        if path == "/" or (path.startswith("/static/") and "/examples/" not in path):
            self._own.add(event["requestId"])

    def _finished(self, event: dict[str, Any]) -> None:
        self.found["requests"] += 1
        self._add("wire", event, event["encodedDataLength"])

    def _received(self, event: dict[str, Any]) -> None:
        self._add("content", event, event["dataLength"])

    def _add(self, name: str, event: dict[str, Any], size: float) -> None:
        self.found[name] += size
        if event["requestId"] in self._own:
            self.found[f"own_{name}"] += size


def loaded(context: BrowserContext, base: str) -> tuple[Page, dict[str, float]]:
    """A page that can be used, and what getting there took."""
    page = context.new_page()
    weights = Weights(page)
    page.goto(base)
    page.wait_for_selector("#example-list button")
    page.wait_for_timeout(300)  # what comes later counts as well
    there = page.evaluate("window.there")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
    return page, {"paint_ms": paint or 0.0, "usable_ms": there, **weights.found}


def rounds(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The medians of several."""
    found = [measure() for _ in range(ROUNDS)]
    return {name: median(one[name] for one in found) for name in found[0]}


def measure_loads(browser: Browser, base: str) -> tuple[dict[str, float], dict[str, float]]:
    """A load by a browser that has never seen the page, and one by the same again."""
    warm: list[dict[str, float]] = []

    def cold() -> dict[str, float]:
        context = browser.new_context()
        context.add_init_script(_CLOCK)
        page, found = loaded(context, base)
        page.close()
        warm.append(loaded(context, base)[1])
        context.close()
        return found

    first = rounds(cold)
    return first, {name: median(one[name] for one in warm) for name in first}


def measure_result(browser: Browser, base: str, label: str, selector: str) -> dict[str, float]:
    """Milliseconds from a click on an example to its result, on a page opened for it."""

    def once() -> dict[str, float]:
        context = browser.new_context()
        context.add_init_script(_CLOCK)
        page, _ = loaded(context, base)
        found = {"ms": float(page.evaluate(_CLICK, [label, selector]))}
        context.close()
        return found

    return rounds(once)


def measure_many(browser: Browser, base: str) -> float:
    """Milliseconds until 200 small images, no two alike, have their results."""
    context = browser.new_context()
    context.add_init_script(_CLOCK)
    page, _ = loaded(context, base)
    rng = np.random.default_rng(0)
    files: list[FilePayload] = []
    for i in range(MANY):
        out = BytesIO()
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(out, "PNG")
        name = f"{i:03d}.png"
        files.append({"name": name, "mimeType": "image/png", "buffer": out.getvalue()})
    page.evaluate("window.began = performance.now()")
    page.set_input_files("#files", files)
    last = f"#grid li:nth-child({MANY})"
    done = f"#grid:not(:has([data-decision=waiting], [data-decision=sending])) > {last.split()[1]}"
    found: float = page.evaluate("(s) => window.clock(s, window.began)", done)
    context.close()
    return found


def take_picture(browser: Browser, base: str) -> None:
    """docs/page.png: the turbine, as a newcomer sees it."""
    page = browser.new_page(viewport={"width": 1280, "height": 976})
    page.goto(base)
    page.locator("#example-list button", has_text="Wind turbine").click()
    page.wait_for_selector("#shares-table[data-window]")
    Image.open(BytesIO(page.screenshot())).convert("RGB").save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """The tables, or the picture."""
    path = find_browser()
    if path is None:
        raise SystemExit(HINT)
    if sys.argv[1:] == ["picture"]:
        with running_browser(path) as browser, service() as server:
            take_picture(browser, server.url)
        return
    with running_browser(path) as browser, service(cache_ttl_s="0") as server:
        version = browser.version
        cold, warm = measure_loads(browser, server.url)
        results = {
            what: measure_result(browser, server.url, *how) for what, how in _RESULTS.items()
        }
        many = measure_many(browser, server.url)
    loads = [
        [
            name,
            f"{one['requests']:.0f}",
            f"{one['own_wire'] / 1000:.0f} of {one['own_content'] / 1000:.0f}",
            f"{one['wire'] / 1000:.0f} of {one['content'] / 1000:.0f}",
            f"{one['paint_ms']:.0f}",
            f"{one['usable_ms']:.0f}",
        ]
        for name, one in (("cold", cold), ("warm", warm))
    ]
    times = [[what, f"{one['ms']:.0f}"] for what, one in results.items()]
    times.append([f"{MANY} images (28 x 28)", f"{many:.0f}"])
    body = "\n\n".join(
        [
            f"Chromium {version}, shipped models, no result cache, one core for the service; "
            f"medians of {ROUNDS}. kB on the wire (compressed, with headers) of kB of content; all "
            "is the page's own files, the answers about models and the pictures of the examples.",
            report.table(
                ["load", "requests", "kB, own files", "kB, all", "first paint, ms", "usable, ms"],
                loads,
            ),
            report.table(["from the click to the result", "ms"], times),
        ]
    )  # fmt: skip
    report.write(
        "page", "The page", body,
        {"chromium": version, "cold": cold, "warm": warm, "results": results, "many_ms": many},
    )  # fmt: skip


if __name__ == "__main__":
    main()
