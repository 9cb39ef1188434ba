"""What a request costs beyond decoding and scoring: the whole application in one process, without
a server, against the bare scorer. ``python benchmarks/request_cost.py``.

64 requests are in flight at a time, as in ``serving.py`` at 64 connections; what a server and the
kernel add is the difference between the two.
"""

import asyncio
import logging
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import report
import uvloop

from service.app import create_app
from service.contract.preprocess import prepare_image
from service.decoding.images import read_header, read_pixels
from service.settings import Settings

IN_FLIGHT, ROUNDS = 64, 60
PICTURE = (report.ROOT / "examples" / "digit-2.png").read_bytes()


async def request(app: Any) -> None:
    """One POST /score without maps, by ASGI."""
    body = [{"type": "http.request", "body": PICTURE, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        return body.pop() if body else await asyncio.sleep(1000)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/score",
        "query_string": b"map=none&model=digits-nln", "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"localhost"), (b"content-type", b"image/png")],
    }  # fmt: skip
    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent


async def measure() -> dict[str, float]:
    """Microseconds an image, medians of the rounds."""
    settings = Settings(cache_ttl_s=0, log_level="warning", threads=1, concurrency=1)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        catalog = app.state.resources.catalog
        while catalog.loading:
            await asyncio.sleep(0.1)
        scorer = catalog.get("digits-nln", None, "image")
        found: dict[str, list[float]] = {"application": [], "decode": [], "score": []}
        for _ in range(ROUNDS):  # in turns, so that noise hits all alike
            began = perf_counter()
            await asyncio.gather(*(request(app) for _ in range(IN_FLIGHT)))
            answered = perf_counter()
            x = np.empty((IN_FLIGHT, *scorer.shape), dtype=np.float32)
            for row in x:
                prepare_image(scorer.image_input, read_pixels(read_header(PICTURE, 10**7), 1), row)
            decoded = perf_counter()
            scorer.score(x)
            scored = perf_counter()
            for name, seconds in (
                ("application", answered - began),
                ("decode", decoded - answered),
                ("score", scored - decoded),
            ):
                found[name].append(seconds / IN_FLIGHT * 1e6)
    return {name: median(values) for name, values in found.items()}


def main() -> None:
    """The table."""
    logging.disable(logging.INFO)
    cost = uvloop.run(measure())
    bare = cost["decode"] + cost["score"]
    rows = [
        ["decode and prepare", f"{cost['decode']:.0f}"],
        ["score", f"{cost['score']:.0f}"],
        ["what the application adds", f"{cost['application'] - bare:.0f}"],
        ["together, without a server", f"{cost['application']:.0f}"],
    ]
    text = "digits-nln, 28x28 PNG, `map=none`, 64 requests in flight, one thread of each kind.\n\n"
    body = text + report.table(["microseconds a request", "median"], rows)
    report.write("request_cost", "What a request costs", body, cost)


if __name__ == "__main__":
    main()
