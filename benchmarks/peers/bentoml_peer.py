"""BentoML with adaptive batching: one worker, ``max_batch_size=64``, ``max_latency_ms=1000`` (its
dispatcher answers 503 to what it expects to be later), metrics and access log off. Images arrive
as Pillow objects, its own form for them; a ``Path`` would write each to a file first.

A batchable method takes a list, in a form with the field ``images``. A raw body cannot be a list:
that route scores the image alone, in the event loop.
"""

from typing import Any

import bentoml
from endpoint import MAX_BATCH, Endpoint
from PIL import Image


@bentoml.service(
    workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}}, threads=1
)
class Score:
    """One service, two routes."""

    def __init__(self) -> None:
        self.endpoint = Endpoint()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=1000, route="/form")
    async def form(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        return self.endpoint.score([self.endpoint.prepare_opened(image) for image in images])

    @bentoml.api(route="/score")
    async def score(self, image: Image.Image, /) -> dict[str, Any]:
        return self.endpoint.score([self.endpoint.prepare_opened(image)])[0]
