"""/streams/{id}: rows of one turbine come in pieces, windows are scored as they complete."""

import asyncio
import random
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import Response

from service.contract.errors import Conflict, Overloaded, StreamNotFound
from service.decision import DecisionRule
from service.decoding.tables import Recording
from service.feedback.records import window_facts
from service.interruption import deadline
from service.problems import request_id_of
from service.resources import Resources, resources_of
from service.routes import (
    json_response,
    problem_docs,
    query_docs,
    read_query,
    timeout_s,
    within_rate,
)
from service.routes.answers import with_request_id
from service.routes.table_bodies import read_table_body
from service.routes.timeseries import BODY, read_recording, score_recording, windows_apart
from service.schemas import StreamAppended, StreamBody, StreamQuery
from service.scoring import Scorer
from service.stream_store import Append, StreamStore
from service.streams import Stream, shifted

router = APIRouter(prefix="/streams", tags=["streams"])

_ATTEMPTS = 50
_PAUSE_S = 0.02
StreamId = Annotated[
    str,
    Path(
        alias="id",
        pattern=r"^[A-Za-z0-9._-]{1,128}$",
        description="A name of the caller's choice, for one turbine.",
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="Names this append, so that it can be repeated safely: it is applied once and "
        "the repeated request gets the same answer, among the last 100 of a stream.",
    ),
]


@router.post(
    "/{id}/rows",
    dependencies=[Depends(within_rate)],
    openapi_extra={"requestBody": BODY, "parameters": query_docs(StreamQuery)},
    responses={
        200: {"description": "Scores of the windows that are complete.", "model": StreamAppended},
        **problem_docs(400, 404, 409, 413, 415, 422, 429, 503, 504),
    },
)
async def append_rows(
    request: Request,
    stream_id: StreamId,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Append rows, in any of the forms that `/score/timeseries` takes; get the windows they
    complete, with the scores they would have, had all rows been posted at once.

    The first append binds the stream to a model version and a stride. `start` and `end` count from
    the first row of the stream.
    """
    resources, query = resources_of(request), read_query(StreamQuery, request)
    with deadline(timeout_s(request, resources.settings.request_timeout_s)):
        media_type, body = await read_table_body(request, resources.settings.max_body_bytes)
        append = Append(idempotency_key, _digest(request, media_type, body))
        sent = _Sent(request, stream_id, query, media_type, body, append)
        return await _append(sent, resources)


@router.get("/{id}", responses={200: {"model": StreamBody}, **problem_docs(404, 409, 422, 503)})
async def get_stream(request: Request, stream_id: StreamId) -> Response:
    """How far the stream is, its last results (without maps), and its events: runs of windows
    that were anomalous or up for review.
    """
    stream = (await _store(resources_of(request)).read(stream_id)).stream
    if stream is None:
        raise StreamNotFound(f"there is no stream {stream_id!r}; the first append begins it")
    return json_response({"stream": stream_id, **stream.described()})


@router.delete("/{id}", status_code=204, responses=problem_docs(404, 409, 422, 503))
async def delete_stream(request: Request, stream_id: StreamId) -> Response:
    """Forget the stream and its answers; the next append begins it anew."""
    if not await _store(resources_of(request)).delete(stream_id):
        raise StreamNotFound(f"there is no stream {stream_id!r}")
    return Response(status_code=204)


@dataclass(frozen=True)
class _Sent:
    """An append as it came in."""

    request: Request
    stream_id: str
    query: StreamQuery
    media_type: str
    body: bytes
    append: Append


async def _append(sent: _Sent, resources: Resources) -> Response:
    """Read, score, commit; from the start where another append came in between."""
    store, stream_id = _store(resources), sent.stream_id
    async with store.turn(stream_id):
        for _ in range(_ATTEMPTS):
            found = await store.read(stream_id, sent.append)
            if found.answer is not None and found.stream is not None:
                facts = await asyncio.to_thread(_facts_in, found.answer, stream_id)
                _remember(sent, resources, found.stream, facts)
                return _response(sent.request, found.answer, replayed=True)
            scorer = _scorer(resources, sent.query, found.stream)
            after, results, answer, facts = await _scored(sent, resources, scorer, found.stream)
            if await store.commit(stream_id, found, after, sent.append, answer):
                manifest = scorer.manifest
                scores = [r["score"] for r in results if r["score"] is not None]
                decisions = [r["decision"] for r in results]
                resources.telemetry.decided(
                    manifest.name,
                    manifest.version,
                    decisions,
                    scores,
                    source=sent.query.source,
                    first=after.windows - len(results),
                    apart=windows_apart(scorer.series_input, after.stride),
                )
                _remember(sent, resources, after, facts)
                return _response(sent.request, answer, replayed=False)
            await asyncio.sleep(random.uniform(0, _PAUSE_S))  # noqa: S311  # no secret
    raise Overloaded(f"too many append to stream {stream_id!r} at once")


def _remember(sent: _Sent, resources: Resources, stream: Stream, facts: bytes) -> None:
    resources.feedback.remember(
        request_id_of(sent.request), stream.model, stream.version, stream.digest, facts
    )


def _facts_in(answer: bytes, stream_id: str) -> bytes:
    """What is remembered of an answer that is given again."""
    return window_facts(orjson.loads(answer)["results"], "", stream_id)


async def _scored(
    sent: _Sent, resources: Resources, scorer: Scorer, stream: Stream | None
) -> tuple[Stream, list[dict[str, Any]], bytes, bytes]:
    """The stream with the rows that were sent, the results of the windows these complete, the
    answer, which has no request id yet, and what is remembered of it.
    """
    settings, admission, manifest = resources.settings, resources.admission, scorer.manifest
    rule = DecisionRule.of(scorer, sent.query.fpr, settings.review_fpr)

    def decode() -> Recording:
        with resources.telemetry.phase(manifest.name, "decode"):
            return read_recording(
                scorer.series_input, sent.media_type, sent.body, settings.max_cells
            )

    with admission.admit(manifest.name, 1, sent.request.receive):
        new = await admission.run(manifest.name, decode)
        before = stream or Stream.begin(scorer, sent.query.stride, new.timestamps_s is not None)
        after, part, first_row = before.append(new)
        results: list[dict[str, Any]] = []
        if part is not None:
            results = await score_recording(
                resources, scorer, rule, part, before.stride, sent.query.map
            )
            results = shifted(results, before.windows, first_row)
        after = after.scored(results)
        members = {
            "stream": sent.stream_id,
            "model": manifest.name,
            "version": manifest.version,
            "family": manifest.family,
            "provider": resources.catalog.runtime.provider_name,
            "rows": len(new.rows),
            "rows_seen": after.rows_seen,
            "rows_buffered": len(after.rows),
            "windows": len(results),
            "warnings": new.warnings,
            "results": results,
        }
        answer, facts = await admission.run(
            manifest.name,
            lambda: (orjson.dumps(members), window_facts(results, "", sent.stream_id)),
        )
    return after, results, answer, facts


def _scorer(resources: Resources, query: StreamQuery, stream: Stream | None) -> Scorer:
    """The scorer that the query names, which a stream that has begun must have begun with."""
    get = resources.catalog.get
    if stream is None:
        return get(query.model, query.version, "timeseries")
    name, version = query.model or stream.model, query.version
    if version is None and name == stream.model:
        version = stream.version
    scorer = get(name, version, "timeseries")
    stream.check(scorer, query.stride)
    return scorer


def _store(resources: Resources) -> StreamStore:
    if resources.streams is None:
        raise Conflict(
            f"streams need ANOMALY_REDIS_URL where ANOMALY_WORKERS is more than 1 "
            f"({resources.settings.workers} here): each process would know its own rows only"
        )
    return resources.streams


def _digest(request: Request, media_type: str, body: bytes) -> bytes:
    """Of all that the answer to an append depends on; not of a form's boundary, which is drawn
    anew for each attempt.
    """
    query = sorted(request.query_params.multi_items())
    digest = sha256(orjson.dumps([query, media_type]))
    digest.update(body)
    return digest.digest()


def _response(request: Request, answer: bytes, *, replayed: bool) -> Response:
    """The answer, which is stored without the id of a request, with that of this one."""
    headers = {"Idempotent-Replayed": "true"} if replayed else None
    return Response(with_request_id(request, answer), 200, headers, "application/json")
