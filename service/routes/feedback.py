"""/feedback: what people say of results, and the calibration that follows from it.

Labels go into the store and come out of it as they are; ``recalibration`` does the arithmetic. A
proposal changes nothing: ``python -m training recalibrate`` publishes it as a version of its own.
"""

import asyncio
import csv
from collections.abc import AsyncIterator, Iterable, Iterator
from io import StringIO
from time import time_ns
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse

from service.contract.errors import AnswerNotFound, Conflict
from service.decoding.body import check_media_type, header_of, read_body
from service.feedback.memory import Memory
from service.feedback.records import Label, item_of, observed_of, rfc3339
from service.feedback.store import FeedbackStore
from service.interruption import deadline
from service.observed import Observed
from service.recalibration import LEVEL, Interval, Proposal, propose
from service.resources import Resources, resources_of
from service.routes import (
    json_response,
    problem_docs,
    query_docs,
    read_command,
    read_query,
    timeout_s,
    within_rate,
)
from service.routes.inference import scorer_of
from service.schemas import (
    FeedbackBody,
    FeedbackQuery,
    FeedbackRecord,
    ObservedQuery,
    ProposalBody,
    ProposalQuery,
)
from service.scoring import Scorer

router = APIRouter(prefix="/feedback", tags=["feedback"])

_BODY_BYTES: Final = 16_384
_PAGE: Final = 1000
_CSV: Final = "text/csv"
_EXAMPLE: Final = '{"request_id": "...", "index": 0, "label": "normal"}'
# a spreadsheet takes a cell that begins so for a formula
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


@router.post(
    "",
    dependencies=[Depends(within_rate)],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": FeedbackBody.model_json_schema()}},
        }
    },
    responses={
        200: {"model": FeedbackRecord},
        **problem_docs(400, 404, 409, 413, 415, 422, 429, 503, 504),
    },
)
async def give_feedback(request: Request) -> Response:
    """Say whether a result was normal or anomalous; the last label of an item counts.

    A result is named by the id of its request (`X-Request-ID`) and its `index` there; where an id
    was used more than once, the last answer is meant, and this answer says which that was. 404
    where it is not known, or not any more (`ANOMALY_FEEDBACK_TTL_S`). Answered once the label is
    durable.
    """
    resources = resources_of(request)
    memory = _enabled(resources)
    check_media_type(request, ("application/json",))
    with deadline(timeout_s(request, resources.settings.request_timeout_s)):
        body = await read_body(request, _BODY_BYTES, fixed=True)
        sent = read_command(FeedbackBody, body, _EXAMPLE)
        answered = await memory.find(sent.request_id)
        if answered is None:
            raise AnswerNotFound(
                f"no answer to a request {sent.request_id!r} is remembered; answers are kept "
                f"for {resources.settings.feedback_ttl_s:g} s (ANOMALY_FEEDBACK_TTL_S), and at "
                f"most the last {resources.settings.feedback_max_items} items "
                f"(ANOMALY_FEEDBACK_MAX_ITEMS)"
            )
        item = item_of(answered, sent.index)
        label = Label(
            request_id=sent.request_id,
            index=sent.index,
            label=sent.label,
            comment=sent.comment,
            model=answered.model,
            version=answered.version,
            digest=answered.digest,
            **item._asdict(),
            scored_at_ns=answered.at_ns,
            recorded_at_ns=time_ns(),
        )
        await memory.store.add_label(label)
    return json_response(label.described())


@router.get(
    "",
    openapi_extra={"parameters": query_docs(FeedbackQuery)},
    responses={
        200: {
            "model": list[FeedbackRecord],
            "description": "In the order in which it was given. JSON: a page, and where there are "
            'more, `Link: <...>; rel="next"`. csv: all of it.',
            "content": {_CSV: {"schema": {"type": "string"}}},
        },
        **problem_docs(422, 503),
    },
)
async def list_feedback(request: Request) -> Response:
    """All labels, as JSON or, for `Accept: text/csv`, as csv.

    In csv, texts that a spreadsheet would take for a formula have an apostrophe before them.
    """
    query = read_query(FeedbackQuery, request)
    store = resources_of(request).feedback.store
    if _CSV in header_of(request, b"accept").lower():
        pages = _label_pages(store, query.after, query.model, query.version)
        first = await anext(pages)  # what fails from here on can only break the answer off
        headers = {"Content-Disposition": 'attachment; filename="feedback.csv"'}
        lines = _csv_lines(first, pages)
        return StreamingResponse(lines, headers=headers, media_type=f"{_CSV}; charset=utf-8")
    page = await store.labels(query.after, query.limit, query.model, query.version)
    following = {}
    if len(page) == query.limit:
        asked = query.model_dump(exclude_none=True) | {"after": page[-1][0]}
        following = {"Link": f'<{request.url.path}?{urlencode(asked)}>; rel="next"'}
    body = orjson.dumps([label.described() for _, label in page])
    return Response(body, 200, following, "application/json")


@router.get(
    "/proposal",
    openapi_extra={"parameters": query_docs(ProposalQuery)},
    responses={200: {"model": ProposalBody}, **problem_docs(404, 409, 422, 503, 504)},
)
async def get_proposal(request: Request) -> Response:
    """What recalibrating on the remembered scores, without those labelled anomalous, would give.

    It changes nothing. 409 where there are too few items for the rate, saying how many are missing.
    """
    query, resources = read_query(ProposalQuery, request), resources_of(request)
    with deadline(timeout_s(request, resources.settings.request_timeout_s)):
        scorer = scorer_of(resources.catalog, query.model, query.version)
        observed = await _observed(resources, scorer, query.period_s)
        manifest = scorer.manifest
        fpr = query.fpr or manifest.calibration.fpr
        found = await asyncio.to_thread(
            propose, observed, scorer.calibration, fpr, manifest.rows_apart
        )
    return json_response(_described(scorer, found))


@router.get(
    "/calibration",
    openapi_extra={"parameters": query_docs(ObservedQuery)},
    responses={
        200: {
            "description": "An npz file for `python -m training recalibrate --feedback`.",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        },
        **problem_docs(404, 409, 422, 503, 504),
    },
)
async def get_observed(request: Request) -> Response:
    """The remembered scores of a model version with their labels: what a proposal is made of.

    Numbers only; nothing of what was scored, and no comment.
    """
    query, resources = read_query(ObservedQuery, request), resources_of(request)
    with deadline(timeout_s(request, resources.settings.request_timeout_s)):
        scorer = scorer_of(resources.catalog, query.model, query.version)
        observed = await _observed(resources, scorer, query.period_s)
        data = await asyncio.to_thread(observed.dump)
    name = f"{observed.model}-{observed.version}-feedback.npz"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(data, 200, headers, "application/octet-stream")


def _enabled(resources: Resources) -> Memory:
    if not resources.feedback.enabled:
        raise Conflict("no answer is remembered here (ANOMALY_FEEDBACK_TTL_S=0)")
    return resources.feedback


async def _observed(resources: Resources, scorer: Scorer, period_s: float | None) -> Observed:
    """What is remembered of a scorer's artifact, with all labels given to it."""
    memory, manifest = _enabled(resources), scorer.manifest
    await memory.flush()
    since_ns = 0 if period_s is None else time_ns() - round(1e9 * period_s)
    answers = await memory.store.answers(manifest.name, manifest.version, since_ns)
    pages = _label_pages(memory.store, 0, manifest.name, manifest.version)
    labels = [label async for page in pages for label in page]
    return await asyncio.to_thread(
        observed_of, manifest.name, manifest.version, scorer.digest, answers, labels
    )


def _described(scorer: Scorer, found: Proposal) -> dict[str, Any]:
    """The members of ``ProposalBody``."""

    def bounds(interval: Interval) -> dict[str, float | None]:
        return {"low": interval.low, "high": interval.high}

    share = found.false_alarms / found.labelled_flagged if found.labelled_flagged else None
    return {
        "model": scorer.manifest.name,
        "version": scorer.manifest.version,
        "fpr": found.fpr,
        "level": LEVEL,
        "from": rfc3339(found.began_ns),
        "to": rfc3339(found.ended_ns),
        "answers": found.answers,
        "distinct_items": found.distinct,
        "sample": found.sample,
        "labelled_normal": found.normal,
        "labelled_anomalous": found.anomalous,
        "n": found.n,
        "finest_fpr": found.calibration.finest_fpr,
        "current": {
            "n": scorer.calibration.n,
            "threshold": found.threshold_now,
            "flagged": found.flagged_now,
            "unlabelled_flagged": found.unlabelled_flagged,
            "labelled_flagged": found.labelled_flagged,
            "false_alarms": found.false_alarms,
            "false_alarm_share": {"value": share, **bounds(found.false_alarm_interval)},
        },
        "proposed": {
            "threshold": {"value": found.threshold, **bounds(found.threshold_interval)},
            "flagged": found.flagged,
            "false_alarm_rate": {"value": found.rate, **bounds(found.rate_interval)},
        },
        "warnings": list(found.warnings),
    }


async def _label_pages(
    store: FeedbackStore, after: int, model: str | None, version: int | None
) -> AsyncIterator[list[Label]]:
    """All labels after one, at least one page of them, which may be empty."""
    while True:
        page = await store.labels(after, _PAGE, model, version)
        yield [label for _, label in page]
        if len(page) < _PAGE:
            return
        after = page[-1][0]


async def _csv_lines(first: list[Label], rest: AsyncIterator[list[Label]]) -> AsyncIterator[str]:
    """The heading and a line a label, page by page."""
    names = list(FeedbackRecord.model_fields)

    def lines(rows: Iterable[Iterable[Any]]) -> str:
        out = StringIO()
        csv.writer(out).writerows(rows)
        return out.getvalue()

    def rows(page: list[Label]) -> Iterator[list[Any]]:
        for label in page:
            members = label.described()
            yield [_cell(members[name]) for name in names]

    yield lines([names, *rows(first)])
    async for page in rest:
        yield lines(rows(page))


def _cell(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula; anything else as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
