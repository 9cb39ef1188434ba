"""What both clients are told, and how the files of a call are spread over requests."""

import os
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from service.client import calls
from service.client.answers import ImageResult, ImageScore
from service.client.calls import Call, ImageOptions
from service.client.retries import Attempts, Retries
from service.client.uploads import Upload, chunks_of

_NEAREST = "http://127.0.0.1:8000"


class ClientOptions(TypedDict, total=False):
    """Of a client."""

    api_key: str | None
    """Default: ``ANOMALY_API_KEY``, else none."""
    timeout_s: float
    """Until the answer to one request, its repetitions included; default 60."""
    retries: Retries
    """How often a call is sent again; see ``service.client.retries``."""
    concurrency: int
    """Requests at once, where many files make several; default 4."""
    max_images: int
    """Of one request, default 64; not more than the service's ``ANOMALY_MAX_IMAGES``."""
    max_body_bytes: int
    """Of one request, default 20 MiB; as ``ANOMALY_MAX_BODY_BYTES``."""


@dataclass(frozen=True)
class Batch:
    """The files of one request among those of a call."""

    uploads: list[Upload]
    options: ImageOptions
    of_many: bool

    def call(self) -> Call[list[ImageResult] | None]:
        """The request; its answer is None where the files are too large together."""
        return calls.image_call(self.uploads, self.options, of_many=self.of_many)

    def halves(self) -> list["Batch"]:
        """The same files in two requests."""
        middle = len(self.uploads) // 2
        parts = (self.uploads[:middle], self.uploads[middle:])
        return [Batch(part, self.options, of_many=True) for part in parts]


class Session:
    """What a client was told, its defaults filled in."""

    def __init__(self, base_url: str | None, **options: Unpack[ClientOptions]) -> None:
        calls.check_known(options, ClientOptions)
        self.retries = options.get("retries", Retries())
        self.timeout_s = options.get("timeout_s", 60.0)
        self.concurrency = options.get("concurrency", 4)
        self._max_images = options.get("max_images", 64)
        self._max_body_bytes = options.get("max_body_bytes", 20 * 2**20)
        at_least_one = {
            "concurrency": self.concurrency,
            "max_images": self._max_images,
            "max_body_bytes": self._max_body_bytes,
            "retries.attempts": self.retries.attempts,
        }
        for name, value in at_least_one.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, got {self.timeout_s}")
        key = options.get("api_key")
        key = os.environ.get("ANOMALY_API_KEY") if key is None else key
        self.http_options: dict[str, Any] = {
            "base_url": base_url or os.environ.get("ANOMALY_URL") or _NEAREST,
            "headers": {"X-API-Key": key} if key else {},
        }

    def attempts(self, call: Call[Any]) -> Attempts:
        """The way of one call, from now on."""
        return Attempts(call, self.retries, self.timeout_s)

    def batches(self, uploads: list[Upload], options: ImageOptions) -> list[Batch]:
        """The requests of a call.

        Raises:
            ValueError: several, and an ``fdr``, which one request must decide.
        """
        chunks = chunks_of(uploads, self._max_images, self._max_body_bytes)
        if len(chunks) > 1 and options.get("fdr") is not None:
            raise ValueError(
                f"fdr speaks of all items of one request, and {len(uploads)} files need "
                f"{len(chunks)} requests; score them without fdr and decide by their p-values"
            )
        return [Batch(chunk, options, of_many=len(chunks) > 1) for chunk in chunks]


def only(results: list[ImageResult]) -> ImageScore:
    """The score of a call's one file; a broken file alone has raised."""
    (result,) = results
    assert isinstance(result, ImageScore)
    return result
