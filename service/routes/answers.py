"""What a scoring route says, but for the id of the request; such an answer can be kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import orjson
from fastapi import Request
from fastapi.responses import Response

from service.cache import Option, cache_key
from service.problems import request_id_of
from service.resources import Resources
from service.scoring import Scorer


@dataclass(frozen=True)
class Answer:
    """Members of a JSON object, and what is counted each time it is given."""

    members: bytes
    decisions: list[str]
    scores: list[float]
    """Calibrated, of the scorable items."""
    keep: bool = True
    """False where a part of it belongs to one request: errors of items have its id."""

    @classmethod
    def of(
        cls,
        members: Mapping[str, Any],
        decisions: Sequence[str],
        scores: Sequence[float],
        *,
        keep: bool = True,
    ) -> Self:
        return cls(orjson.dumps(members), [*decisions], [*scores], keep)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        head, _, members = packed.partition(b"\n")
        decisions, scores = orjson.loads(head)
        return cls(members, decisions, scores)

    def pack(self) -> bytes:
        return orjson.dumps([self.decisions, self.scores]) + b"\n" + self.members

    def response(self, request: Request) -> Response:
        """The answer to one request, which gets its id."""
        head = orjson.dumps({"request_id": request_id_of(request)})[:-1]
        return Response(head + b"," + self.members[1:], media_type="application/json")


class KeptAnswer:
    """The place of one request's answer in the cache; nothing where caching is off."""

    def __init__(
        self,
        resources: Resources,
        scorer: Scorer,
        options: Callable[[], Mapping[str, Option]],
        files: Sequence[bytes],
    ) -> None:
        self._cache = resources.cache
        self._key = ""
        if self._cache.enabled:
            provider = resources.catalog.runtime.provider_name
            self._key = cache_key(scorer.digest, {**options(), "provider": provider}, files)

    async def get(self) -> Answer | None:
        packed = await self._cache.get(self._key) if self._key else None
        return None if packed is None else Answer.unpack(packed)

    async def put(self, answer: Answer) -> None:
        if self._key and answer.keep:
            await self._cache.put(self._key, answer.pack())
