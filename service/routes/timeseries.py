"""POST /score/timeseries: rows of sensor readings, scored window by window."""

from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.cache import Option
from service.contract.errors import FieldError, InputTooLarge, InvalidInput
from service.contract.manifest import SeriesInput
from service.contract.preprocess import Windows, prepare_series
from service.decision import DecisionRule, decide_afterwards, overlap_warnings
from service.decoding.tables import Recording, read_csv, read_json
from service.feedback.records import content_of, window_facts
from service.interruption import deadline
from service.rendering import float32_map
from service.resources import Resources, resources_of
from service.routes import problem_docs, query_docs, read_query, timeout_s, within_rate
from service.routes.answers import Answer, KeptAnswer, give
from service.routes.table_bodies import JSON, described, read_table_body
from service.schemas import SeriesBody, SeriesQuery
from service.scoring import Scorer, Scores, contributions
from service.shadow import Series

router = APIRouter(tags=["scoring"])

_CELLS_AT_ONCE = 4_000_000  # of windows cut from a recording: bounds memory, not the result
BODY = described(
    "rows",
    {
        "columns": {"type": "array", "items": {"type": "string"}},
        "timestamps": {
            "type": "array",
            "items": {"type": ["string", "null"], "format": "date-time"},
        },
        "rows": {
            "type": "array",
            "items": {"type": "array", "items": {"type": ["number", "null"]}},
        },
    },
)


@router.post(
    "/score/timeseries",
    openapi_extra={"requestBody": BODY, "parameters": query_docs(SeriesQuery)},
    responses={
        200: {"description": "Scores of all windows, in order.", "model": SeriesBody},
        **problem_docs(400, 404, 413, 415, 422, 429, 503, 504),
    },
)
async def score_timeseries(request: Request) -> Response:
    """Score a recording: JSON, csv with a header, or a csv file as multipart part `file`.

    Columns are matched by name in any order (JSON without `columns`: by position). A column named
    time, timestamp or date holds the timestamps; one named group or label is ignored. Windows with
    missing readings, gaps in time, stuck sensors or readings out of range are `not_scorable`.
    """
    resources = resources_of(request)
    with deadline(timeout_s(request, resources.settings.request_timeout_s)):
        return await _score(request, read_query(SeriesQuery, request), resources)


async def _score(request: Request, query: SeriesQuery, resources: Resources) -> Response:
    settings, admission = resources.settings, resources.admission
    await within_rate(request)
    scorer = resources.catalog.get(query.model, query.version, "timeseries")
    spec, name = scorer.series_input, scorer.manifest.name
    request.scope["state"]["model"] = name
    admission.check_room(name)
    rule = DecisionRule.of(scorer, query.fpr, settings.review_fpr, query.fdr)
    media_type, body = await read_table_body(request, settings.max_body_bytes)
    stride = query.stride or spec.stride

    def options() -> dict[str, Option]:
        return {
            "route": "/score/timeseries",
            "media_type": media_type,
            "map": query.map,
            "stride": stride,
            "fpr": rule.fpr,
            "fdr": rule.fdr,
            "review_fpr": rule.review_fpr,
            "limits": f"{settings.max_cells} {settings.max_windows} {settings.max_map_pixels}",
        }

    kept = KeptAnswer(resources, scorer, options, [body])
    answer = await kept.get()
    if answer is None:
        with admission.admit(name, 1, request.receive):
            recording, answer, settled = await _answer(
                resources, scorer, rule, query.map, stride, (media_type, body)
            )
        await kept.put(answer)
        if query.fdr is None and resources.shadow.wants(scorer):
            series = Series(recording.rows, recording.timestamps_s, stride)
            resources.shadow.offer(scorer, series, answer.decisions, settled.fpr)
    apart = windows_apart(spec, stride)
    return await give(request, resources, scorer, answer, source=query.source, apart=apart)


async def _answer(
    resources: Resources,
    scorer: Scorer,
    rule: DecisionRule,
    mode: str,
    stride: int,
    sent: tuple[str, bytes],
) -> tuple[Recording, Answer, DecisionRule]:
    """The recording that was sent, the answer, and the rule its windows were decided by."""
    admission, telemetry, manifest = resources.admission, resources.telemetry, scorer.manifest
    spec, name = scorer.series_input, scorer.manifest.name

    def decode() -> Recording:
        with telemetry.phase(name, "decode"):
            return read_recording(spec, *sent, resources.settings.max_cells)

    recording = await admission.run(name, decode)
    # with an fdr, windows are decided on when the p-values of all of them are known
    at_once = rule if rule.fdr is None else DecisionRule.of(scorer, None, None)
    results = await score_recording(resources, scorer, at_once, recording, stride, mode)

    def encode() -> tuple[Answer, DecisionRule]:
        with telemetry.phase(name, "encode"):
            settled = rule if rule.fdr is None else decide_afterwards(rule, results)
            overlap = overlap_warnings(rule, stride, spec.min_rows)
            members = {
                "model": name,
                "version": manifest.version,
                "family": manifest.family,
                "provider": resources.catalog.runtime.provider_name,
                "rows": len(recording.rows),
                "windows": len(results),
                "warnings": [*recording.warnings, *settled.warnings, *overlap],
                "results": results,
            }
            scored = [r["score"] for r in results if r["score"] is not None]
            facts = b""
            if resources.feedback.enabled:
                facts = window_facts(results, content_of(sent[1]))
            decisions = [r["decision"] for r in results]
            return Answer.of(members, decisions, scored, facts=facts), settled

    answer, settled = await admission.run(name, encode)
    return recording, answer, settled


async def score_recording(
    resources: Resources,
    scorer: Scorer,
    rule: DecisionRule,
    recording: Recording,
    stride: int,
    mode: str,
) -> list[dict[str, Any]]:
    """The members of ``WindowResult`` for every window of a recording, in order.

    Raises:
        InvalidInput, InputTooLarge: see ``check_windows``.
    """
    admission, spec, name = resources.admission, scorer.series_input, scorer.manifest.name
    windows = check_windows(spec, len(recording.rows), stride, mode, resources)
    results: list[dict[str, Any]] = []
    at_once = max(1, _CELLS_AT_ONCE // (spec.min_rows * len(spec.columns)))
    for first in range(0, windows, at_once):
        count = min(at_once, windows - first)
        cut = await admission.run(name, _cutter(spec, recording, first, count, stride))
        x = cut.values[cut.scorable]
        scores = await admission.score(scorer, x, maps=True)
        results += await admission.run(
            name, _describer(scorer, rule, cut, scores, first, first * stride, mode)
        )
    return results


def check_windows(
    spec: SeriesInput, rows: int, stride: int, mode: str, resources: Resources
) -> int:
    """How many windows so many rows give.

    Raises:
        InvalidInput: not even one.
        InputTooLarge: more than are scored, or whose residuals are returned, at once.
    """
    settings = resources.settings
    if rows < spec.min_rows:
        smoothing = f" ({spec.window} + {spec.smoothing - 1} for smoothing)" * (spec.smoothing > 1)
        raise InvalidInput(
            f"{rows} rows were sent; one window needs {spec.min_rows}{smoothing}",
            (FieldError("/rows", f"at least {spec.min_rows} are needed"),),
        )
    windows = len(range(0, rows - spec.min_rows + 1, stride))
    if windows > settings.max_windows:
        raise InputTooLarge(
            f"{windows} windows; allowed: {settings.max_windows} (ANOMALY_MAX_WINDOWS); "
            f"send fewer rows or a larger stride"
        )
    cells = windows * spec.window * len(spec.columns)
    if mode != "none" and cells > settings.max_map_pixels:
        raise InputTooLarge(
            f"residuals of {cells} cells are more than an answer may hold "
            f"({settings.max_map_pixels}, ANOMALY_MAX_MAP_PIXELS); map=none scores without them"
        )
    return windows


def windows_apart(spec: SeriesInput, stride: int) -> int:
    """Of so many windows in a row, the first and the next after the last share no row."""
    return -(-spec.min_rows // stride)


def read_recording(spec: SeriesInput, media_type: str, body: bytes, max_cells: int) -> Recording:
    """The recording in a body; what does not say it is JSON is read as csv."""
    if media_type == JSON:
        return read_json(spec, body, max_cells)
    return read_csv(spec, body, max_cells)


def _cutter(
    spec: SeriesInput, recording: Recording, first: int, count: int, stride: int
) -> Callable[[], Windows]:
    """Windows ``first`` to ``first + count`` of a recording; they see their own rows only, so
    that cutting piecewise gives what cutting at once would.
    """
    begin = first * stride
    end = begin + (count - 1) * stride + spec.min_rows
    stamps = recording.timestamps_s
    part = None if stamps is None else stamps[begin:end]
    return lambda: prepare_series(spec, recording.rows[begin:end], part, stride)


def _describer(
    scorer: Scorer,
    rule: DecisionRule,
    cut: Windows,
    scores: Scores,
    first: int,
    offset: int,
    mode: str,
) -> Callable[[], list[dict[str, Any]]]:
    def describe() -> list[dict[str, Any]]:
        names = [c.name for c in scorer.series_input.columns]
        decisions = rule.decide(scores.p_value)
        maps = scores.maps
        shares = None if maps is None else contributions(maps)
        results = []
        k = 0
        for i, reason in enumerate(cut.reasons):
            result: dict[str, Any] = {
                "index": first + i,
                "start": offset + int(cut.start[i]),
                "end": offset + int(cut.end[i]),
            }
            if reason is not None:
                result |= _not_scorable(rule, reason)
            else:
                result |= rule.members(scores, k, decisions[k])
                listed = [] if shares is None else _sorted_shares(names, shares[k])
                result["contributions"] = listed
                shown = maps[k] if maps is not None and mode == "float32" else None
                result["residual_map"] = None if shown is None else float32_map(shown)
                k += 1
            results.append(result)
        return results

    return describe


def _not_scorable(rule: DecisionRule, reason: str) -> dict[str, Any]:
    return {
        "score": None,
        "p_value": None,
        "raw_score": None,
        "threshold": rule.threshold,
        "fpr": rule.fpr,
        "decision": "not_scorable",
        "reason": reason,
        "contributions": [],
        "residual_map": None,
    }


def _sorted_shares(names: list[str], shares: np.ndarray) -> list[dict[str, Any]]:
    order = np.argsort(-shares, kind="stable").tolist()
    values = shares.tolist()
    return [{"column": names[j], "share": values[j]} for j in order]
