"""What a scoring route says, but for the id of the request; such an answer can be kept."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import orjson
from fastapi import Request
from fastapi.responses import Response

from service.cache import Option, cache_key
from service.decoding.images import SMALL_BYTES
from service.problems import request_id_of
from service.resources import Resources
from service.scoring import Scorer


def with_request_id(request: Request, members: bytes) -> bytes:
    """A JSON object that was kept without the id of a request, with that of this one."""
    return orjson.dumps({"request_id": request_id_of(request)})[:-1] + b"," + members[1:]


@dataclass(frozen=True)
class Answer:
    """Members of a JSON object, and what is counted each time it is given."""

    members: bytes
    decisions: list[str]
    scores: list[float]
    """Calibrated, of the scorable items."""
    keep: bool = True
    """False where a part of it belongs to one request: errors of items have its id."""
    facts: bytes = b""
    """What is remembered of it; see ``feedback.records``. JSON without a line end."""

    @classmethod
    def of(
        cls,
        members: Mapping[str, Any],
        decisions: Sequence[str],
        scores: Sequence[float],
        *,
        keep: bool = True,
        facts: bytes = b"",
    ) -> Self:
        return cls(orjson.dumps(members), [*decisions], [*scores], keep, facts)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        head, facts, members = packed.split(b"\n", 2)
        decisions, scores = orjson.loads(head)
        return cls(members, decisions, scores, facts=facts)

    def pack(self) -> bytes:
        """As it is cached; ``cache.PREFIX`` counts the forms this has had."""
        return b"\n".join([orjson.dumps([self.decisions, self.scores]), self.facts, self.members])

    def response(self, request: Request) -> Response:
        """The answer to one request, which gets its id."""
        return Response(with_request_id(request, self.members), media_type="application/json")


class KeptAnswer:
    """The place of one request's answer in the cache; nothing where caching is off."""

    def __init__(
        self,
        resources: Resources,
        scorer: Scorer,
        options: Callable[[], Mapping[str, Option]],
        files: Sequence[bytes],
    ) -> None:
        self._resources, self._scorer = resources, scorer
        self._options, self._files = options, files
        self._key = ""

    async def get(self) -> Answer | None:
        cache = self._resources.cache
        if not cache.enabled:
            return None
        if sum(map(len, self._files)) <= SMALL_BYTES:
            self._key = self._find_key()
        else:
            self._key = await asyncio.to_thread(self._find_key)
        packed = await cache.get(self._key)
        return None if packed is None else Answer.unpack(packed)

    async def put(self, answer: Answer) -> None:
        cache = self._resources.cache
        if self._key and answer.keep and cache.keeps(len(answer.members) + len(answer.facts)):
            await cache.put(self._key, answer.pack())

    def _find_key(self) -> str:
        provider = self._resources.catalog.runtime.provider_name
        return cache_key(
            self._scorer.digest, {**self._options(), "provider": provider}, self._files
        )


async def give(
    request: Request,
    resources: Resources,
    scorer: Scorer,
    answer: Answer,
    *,
    source: str | None = None,
    apart: int = 1,
) -> Response:
    """The response, its decisions counted; large ones are put together in a thread.

    Args:
        request, resources, scorer, answer: whose answer it is, and by what.
        source, apart: see ``Telemetry.decided``.
    """
    manifest = scorer.manifest
    resources.feedback.remember(
        request_id_of(request), manifest.name, manifest.version, scorer.digest, answer.facts
    )

    def put_together() -> Response:
        resources.telemetry.decided(
            manifest.name,
            manifest.version,
            answer.decisions,
            answer.scores,
            source=source,
            apart=apart,
        )
        return answer.response(request)

    if len(answer.members) <= SMALL_BYTES:
        return put_together()
    return await asyncio.to_thread(put_together)
