"""POST /score: one image or several, raw or multipart."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from jaxtyping import Float32, UInt8

from service.batching import deadline
from service.contract.errors import InputError, InputTooLarge, InvalidInput
from service.contract.preprocess import map_to_frame, prepare_image
from service.decision import DecisionRule
from service.decoding.body import (
    MULTIPART,
    check_media_type,
    parse_multipart,
    parts_named,
    read_body,
)
from service.decoding.images import MEDIA_TYPES, Picture, read_header, read_pixels
from service.problems import problem_of, request_id_of
from service.regions import find_regions
from service.rendering import float32_map, heatmap, heatmap_map, png_map
from service.resources import Resources, resources_of
from service.routes import known_query, problem_docs, timeout_s
from service.schemas import ScoreBody, ScoreQuery
from service.scoring import Scorer, Scores

router = APIRouter(tags=["scoring"])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "content": {
        MULTIPART: {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {"type": "array", "items": {"type": "string", "format": "binary"}}
                },
            }
        },
        **dict.fromkeys(MEDIA_TYPES[:5], _BINARY),
    },
}


@dataclass(frozen=True)
class _Prepared:
    """A decoded image: the model input, and its own pixels where a heatmap needs them."""

    x: Float32[np.ndarray, "C H W"]
    width: int
    height: int
    pixels: UInt8[np.ndarray, "H0 W0 C"] | None


@router.post(
    "/score",
    dependencies=[Depends(known_query(ScoreQuery))],
    openapi_extra={"requestBody": _BODY},
    responses={
        200: {
            "description": "Scores; for one image and `Accept: image/png`, the heatmap itself.",
            "model": ScoreBody,
            "content": {"image/png": _BINARY},
            "headers": {
                "X-Anomaly-Score": {
                    "description": "Calibrated score; with image/png only.",
                    "schema": {"type": "number"},
                },
                "X-Anomaly-Decision": {
                    "description": "Decision; with image/png only.",
                    "schema": {"type": "string"},
                },
            },
        },
        **problem_docs(400, 404, 413, 415, 422, 503, 504),
    },
)
async def score_images(request: Request, query: Annotated[ScoreQuery, Query()]) -> Response:
    """Score images: one as a raw body, or 1..64 as multipart parts named `image`.

    PNG, JPEG, BMP, TIFF and WebP with one frame; the content decides, not the stated type.
    A broken image among several gets an `error`, the others their scores.
    """
    resources = resources_of(request)
    async with deadline(timeout_s(request, resources.settings.request_timeout_s)):
        return await _score(request, query, resources)


async def _score(request: Request, query: ScoreQuery, resources: Resources) -> Response:
    settings, admission = resources.settings, resources.admission
    scorer = resources.catalog.get(query.model, query.version, "image")
    rule = DecisionRule.of(scorer, query.fpr, settings.review_fpr)
    media_type = check_media_type(request, (MULTIPART, *MEDIA_TYPES))
    body = await read_body(request, settings.max_body_bytes)
    files = [body]
    if media_type == MULTIPART:
        content_type = request.headers["content-type"]
        parts = await asyncio.to_thread(parse_multipart, content_type, body, settings.max_images)
        files = [part.data for part in parts_named(parts, "image")]
    as_picture = prefers_png(request.headers.get("accept", ""))
    if as_picture and len(files) > 1:
        raise InvalidInput(f"Accept: image/png answers for one image; {len(files)} were sent")
    mode = "heatmap" if as_picture else query.map

    name = scorer.manifest.name
    with admission.admit(name, len(files)):
        items = await admission.run(name, lambda: _decode(files, scorer, mode, resources))
        if len(items) == 1 and isinstance(items[0], InputError):
            raise items[0]
        prepared = [item for item in items if isinstance(item, _Prepared)]
        shape = scorer.image_input.shape
        x = np.stack([p.x for p in prepared]) if prepared else np.empty((0, *shape), np.float32)
        scores = await admission.score(scorer, x, maps=mode != "none")
        if as_picture:
            return await admission.run(
                name, lambda: _picture(prepared[0], scores, rule, scorer, resources)
            )
        return await admission.run(
            name, lambda: _answer(request, items, scores, rule, scorer, mode, resources)
        )


def prefers_png(accept: str) -> bool:
    """Whether an Accept header names image/png and nothing, JSON least of all, before it."""
    quality: dict[str, float] = {}
    for item in accept.lower().split(","):
        media_type, _, parameters = item.partition(";")
        _, found, q = parameters.replace(" ", "").partition("q=")
        try:
            quality[media_type.strip()] = float(q) if found else 1.0
        except ValueError:
            quality[media_type.strip()] = 0.0
    return quality.get("image/png", 0.0) > quality.get("application/json", 0.0)


def _decode(
    files: list[bytes], scorer: Scorer, mode: str, resources: Resources
) -> list[_Prepared | InputError]:
    """Each file as a model input, or what is wrong with it.

    Raises:
        InputTooLarge: together they have more pixels than a request, or maps an answer, may have.
    """
    settings = resources.settings
    seen: list[Picture | InputError] = []
    for data in files:
        try:
            seen.append(read_header(data, settings.max_pixels))
        except InputError as error:
            seen.append(error)
    pixels = sum(p.width * p.height for p in seen if isinstance(p, Picture))
    if pixels > settings.max_pixels:
        raise InputTooLarge(
            f"the images have {pixels} pixels together; allowed: {settings.max_pixels} "
            f"(ANOMALY_MAX_PIXELS)"
        )
    if mode != "none" and pixels > settings.max_map_pixels:
        raise InputTooLarge(
            f"residual maps of {pixels} pixels are more than an answer may hold "
            f"({settings.max_map_pixels}, ANOMALY_MAX_MAP_PIXELS); map=none scores without maps"
        )
    phases: defaultdict[str, float] = defaultdict(float)
    spec = scorer.image_input
    items: list[_Prepared | InputError] = []
    for picture in seen:
        if isinstance(picture, InputError):
            items.append(picture)
            continue
        started = perf_counter()
        try:
            own = read_pixels(picture, spec.channels)
        except InputError as error:
            items.append(error)
            continue
        decoded = perf_counter()
        x = prepare_image(spec, own)
        phases["decode"] += decoded - started
        phases["preprocess"] += perf_counter() - decoded
        keep = own if mode == "heatmap" else None
        items.append(_Prepared(x, picture.width, picture.height, keep))
    resources.telemetry.phases(scorer.manifest.name, phases)
    return items


def _answer(
    request: Request,
    items: list[_Prepared | InputError],
    scores: Scores,
    rule: DecisionRule,
    scorer: Scorer,
    mode: str,
    resources: Resources,
) -> Response:
    manifest, telemetry = scorer.manifest, resources.telemetry
    decisions = rule.decide(scores.p_value)
    results: list[dict[str, Any]] = []
    with telemetry.phase(manifest.name, "encode"):
        k = 0
        for index, item in enumerate(items):
            if isinstance(item, InputError):
                results.append({"index": index, "error": problem_of(request, item)})
                continue
            result = {"index": index} | rule.members(scores, k, decisions[k])
            results.append(result | _map_members(item, scores, k, scorer, mode))
            k += 1
        body = orjson.dumps(
            {
                "model": manifest.name,
                "version": manifest.version,
                "family": manifest.family,
                "provider": resources.catalog.runtime.provider_name,
                "request_id": request_id_of(request),
                "results": results,
            }
        )
    telemetry.decided(manifest.name, manifest.version, decisions, scores.score.tolist())
    return Response(body, media_type="application/json")


def _map_members(
    item: _Prepared, scores: Scores, k: int, scorer: Scorer, mode: str
) -> dict[str, Any]:
    if mode == "none" or scores.maps is None:
        return {"residual_map": None, "regions": []}
    calibration = scorer.manifest.calibration
    residual = map_to_frame(scorer.image_input, scores.maps[k], item.height, item.width)
    if mode == "png":
        encoded = png_map(residual)
    elif mode == "float32":
        encoded = float32_map(residual)
    else:
        assert item.pixels is not None
        encoded = heatmap_map(residual, item.pixels, calibration.map_scale)
    regions = [vars(r) for r in find_regions(residual, calibration.pixel_threshold)]
    return {"residual_map": encoded, "regions": regions}


def _picture(
    item: _Prepared, scores: Scores, rule: DecisionRule, scorer: Scorer, resources: Resources
) -> Response:
    """The heatmap itself, its score in the headers."""
    manifest = scorer.manifest
    decision = rule.decide(scores.p_value)[0]
    with resources.telemetry.phase(manifest.name, "encode"):
        residual = np.zeros((item.height, item.width), dtype=np.float32)
        if scores.maps is not None:
            residual = map_to_frame(scorer.image_input, scores.maps[0], item.height, item.width)
        assert item.pixels is not None
        png = heatmap(residual, item.pixels, manifest.calibration.map_scale)
    score = float(scores.score[0])
    resources.telemetry.decided(manifest.name, manifest.version, [decision], [score])
    headers = {"X-Anomaly-Score": repr(score), "X-Anomaly-Decision": decision}
    return Response(png, headers=headers, media_type="image/png")
