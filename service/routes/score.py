"""POST /score: one image or several, raw or multipart."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from jaxtyping import Float32, UInt8

from service.cache import Option
from service.contract.errors import InputError, InputTooLarge, InvalidInput
from service.contract.preprocess import map_to_frame, prepare_image
from service.decision import DecisionRule
from service.decoding.body import (
    MULTIPART,
    check_media_type,
    header_of,
    parse_multipart,
    parts_named,
    read_body,
)
from service.decoding.images import (
    MEDIA_TYPES,
    SMALL_BYTES,
    NotSmallError,
    Picture,
    read_header,
    read_pixels,
)
from service.evidence import evidence_detector, find_evidence, place_in_frame
from service.feedback.records import content_of, item_facts
from service.interruption import deadline
from service.problems import problem_of, request_id_of
from service.regions import find_regions
from service.rendering import float32_map, heatmap, heatmap_map, png_map, thumbnail
from service.resources import Resources, resources_of
from service.routes import problem_docs, query_docs, read_query, timeout_s, within_rate
from service.routes.answers import Answer, KeptAnswer, give
from service.schemas import ScoreBody, ScoreQuery
from service.scoring import Scorer, Scores

T = TypeVar("T")
router = APIRouter(tags=["scoring"])

_ACCEPTED = (MULTIPART, *MEDIA_TYPES)

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
class _Own:
    """What is kept of an uploaded image: its size, and its pixels where a heatmap needs them."""

    width: int
    height: int
    pixels: UInt8[np.ndarray, "H0 W0 C"] | None


@router.post(
    "/score",
    openapi_extra={"requestBody": _BODY, "parameters": query_docs(ScoreQuery)},
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
        **problem_docs(400, 404, 413, 415, 422, 429, 503, 504),
    },
)
async def score_images(request: Request) -> Response:
    """Score images: one as a raw body, or 1..64 as multipart parts named `image`.

    PNG, JPEG, BMP, TIFF and WebP with one frame; the content decides, not the stated type.
    A broken image among several gets an `error`, the others their scores.
    """
    resources = resources_of(request)
    with deadline(timeout_s(request, resources.settings.request_timeout_s)):
        return await _score(request, read_query(ScoreQuery, request), resources)


async def _score(request: Request, query: ScoreQuery, resources: Resources) -> Response:
    settings, admission = resources.settings, resources.admission
    await within_rate(request)
    scorer = resources.catalog.get(query.model, query.version, "image")
    name = request.scope["state"]["model"] = scorer.manifest.name
    admission.check_room(name)  # before the body is read: a refusal costs next to nothing
    rule = DecisionRule.of(scorer, query.fpr, settings.review_fpr, query.fdr)
    if query.evidence is not None:
        evidence_detector(scorer)
    media_type = check_media_type(request, _ACCEPTED)
    body = await read_body(request, settings.max_body_bytes)
    files = [body]
    if media_type == MULTIPART:
        files = await _image_parts(request.headers["content-type"], body, settings.max_images)
    as_picture = prefers_png(header_of(request, b"accept"))
    if as_picture and len(files) > 1:
        raise InvalidInput(f"Accept: image/png answers for one image; {len(files)} were sent")
    if as_picture and query.evidence is not None:
        raise InvalidInput("Accept: image/png has no place for evidence; ask for JSON")
    job = _Job(request, files, scorer, rule, query, resources)
    if as_picture:
        job.mode = "heatmap"
        return await _scores(job, job.answer_picture, len(body))
    kept = KeptAnswer(resources, scorer, job.options, files)
    answer = await kept.get()
    if answer is None:
        answer = await _scores(job, job.answer, len(body))
        await kept.put(answer)
        if query.fdr is None and resources.shadow.wants(scorer):
            resources.shadow.offer(scorer, job.scored_files(), answer.decisions, job.rule.fpr)
    return await give(request, resources, scorer, answer, source=query.source)


async def _scores(job: "_Job", finish: Callable[[Scores], T], body_bytes: int) -> T:
    """What ``finish`` makes of the scores of the job's images."""
    scorer, admission = job.scorer, job.resources.admission
    name, maps = scorer.manifest.name, job.mode != "none"
    with admission.admit(name, len(job.files), job.request.receive):
        return await admission.pictures(
            scorer,
            len(job.files),
            job.fill,
            finish,
            maps=maps,
            body_bytes=body_bytes,
            apart=job.evidence is not None,
        )


async def _image_parts(content_type: str, body: bytes, most: int) -> list[bytes]:
    if len(body) <= SMALL_BYTES:
        parts = parse_multipart(content_type, body, most)
    else:
        parts = await asyncio.to_thread(parse_multipart, content_type, body, most)
    return [part.data for part in parts_named(parts, "image")]


class _Job:
    """One request: from files to rows of a batch, and from their scores to the answer."""

    def __init__(
        self,
        request: Request,
        files: list[bytes],
        scorer: Scorer,
        rule: DecisionRule,
        query: ScoreQuery,
        resources: Resources,
    ) -> None:
        self.request, self.files, self.scorer, self.rule = request, files, scorer, rule
        self.mode, self.evidence, self.resources = query.map, query.evidence, resources
        self.source = query.source
        self.items: list[_Own | InputError] = []
        self.x: np.ndarray = np.empty(0)

    def options(self) -> dict[str, Option]:
        """Everything but the images and the artifact that the answer depends on."""
        rule, settings = self.rule, self.resources.settings
        return {
            "route": "/score",
            "map": self.mode,
            "fpr": rule.fpr,
            "fdr": rule.fdr,
            "review_fpr": rule.review_fpr,
            "evidence": self.evidence,
            "max_pixels": settings.max_pixels,
            "max_map_pixels": settings.max_map_pixels,
        }

    def scored_files(self) -> list[bytes]:
        """The files that were decided on."""
        return [f for f, i in zip(self.files, self.items, strict=True) if isinstance(i, _Own)]

    def fill(
        self,
        rows: Float32[np.ndarray, "N C H W"],
        phases_s: dict[str, float],
        most_pixels: int | None,
    ) -> int:
        """How many files were decoded; their model inputs are in the first rows.

        Raises:
            InputTooLarge: together they have more pixels than a request, or maps an answer, may
                have.
            InputError: what is wrong with the only file.
            NotSmallError: together they have more than ``most_pixels``; nothing was decoded.
        """
        started = perf_counter()
        seen = self._headers(most_pixels)
        preprocess_s = 0.0
        spec, keep = self.scorer.image_input, self.mode == "heatmap"
        self.items, self.x = [], rows
        used = 0
        for picture in seen:
            if isinstance(picture, InputError):
                self.items.append(picture)
                continue
            try:
                pixels = read_pixels(picture, spec.channels)
            except InputError as error:
                self.items.append(error)
                continue
            decoded = perf_counter()
            prepare_image(spec, pixels, rows[used])
            preprocess_s += perf_counter() - decoded
            self.items.append(_Own(picture.width, picture.height, pixels if keep else None))
            used += 1
        decode_s = perf_counter() - started - preprocess_s
        phases_s["decode"] = phases_s.get("decode", 0.0) + decode_s
        phases_s["preprocess"] = phases_s.get("preprocess", 0.0) + preprocess_s
        if len(self.items) == 1 and isinstance(self.items[0], InputError):
            raise self.items[0]
        return used

    def _headers(self, most_pixels: int | None) -> list[Picture | InputError]:
        settings = self.resources.settings
        seen: list[Picture | InputError] = []
        pixels = 0
        for data in self.files:
            try:
                picture = read_header(data, settings.max_pixels)
            except InputError as error:
                seen.append(error)
            else:
                pixels += picture.width * picture.height
                seen.append(picture)
        if pixels > settings.max_pixels:
            raise InputTooLarge(
                f"the images have {pixels} pixels together; allowed: {settings.max_pixels} "
                f"(ANOMALY_MAX_PIXELS)"
            )
        if self.mode != "none" and pixels > settings.max_map_pixels:
            raise InputTooLarge(
                f"residual maps of {pixels} pixels are more than an answer may hold "
                f"({settings.max_map_pixels}, ANOMALY_MAX_MAP_PIXELS); map=none scores without maps"
            )
        if most_pixels is not None and pixels > most_pixels:
            raise NotSmallError
        return seen

    def answer(self, scores: Scores) -> Answer:
        """The answer, from the scores of the decoded files."""
        manifest = self.scorer.manifest
        self.rule = self.rule.settle(scores.p_value)
        decisions = self.rule.decide(scores.p_value)
        shown: list[list[dict[str, Any]]] | None = None
        if self.evidence is not None:
            shown = self._evidence(self.evidence, len(scores.raw))
        results: list[dict[str, Any]] = []
        k = 0
        for index, item in enumerate(self.items):
            if isinstance(item, InputError):
                results.append({"index": index, "error": problem_of(self.request, item)})
                continue
            result = {"index": index} | self.rule.members(scores, k, decisions[k])
            result |= self._map_members(item, scores, k)
            if shown is not None:
                result["evidence"] = shown[k]
            results.append(result)
            k += 1
        members: dict[str, Any] = {
            "model": manifest.name,
            "version": manifest.version,
            "family": manifest.family,
            "provider": self.resources.catalog.runtime.provider_name,
        }
        if self.rule.warnings:
            members["warnings"] = self.rule.warnings
        members["results"] = results
        keep, facts = k == len(self.items), self._facts(scores, decisions)
        return Answer.of(members, decisions, scores.score.tolist(), keep=keep, facts=facts)

    def _facts(self, scores: Scores, decisions: Sequence[str]) -> bytes:
        """What is remembered for feedback."""
        if not self.resources.feedback.enabled:
            return b""
        index = [i for i, item in enumerate(self.items) if isinstance(item, _Own)]
        return item_facts(
            len(self.items),
            None if len(index) == len(self.items) else index,
            scores.raw.tolist(),
            scores.p_value.tolist(),
            decisions,
            [content_of(self.files[i]) for i in index],
        )

    def _evidence(self, most: int, used: int) -> list[list[dict[str, Any]]]:
        """The members of ``NeighbourBody`` for the nearest items of each image."""
        owns = [item for item in self.items if isinstance(item, _Own)]
        found = find_evidence(self.scorer, self.x[:used], most)
        return [
            [
                {
                    "distance": near.distance,
                    "row": near.row,
                    "place": place_in_frame(self.scorer.image_input, near, own.height, own.width),
                    "decoded": thumbnail(near.pixels),
                }
                for near in neighbours
            ]
            for own, neighbours in zip(owns, found, strict=True)
        ]

    def _map_members(self, item: _Own, scores: Scores, k: int) -> dict[str, Any]:
        if self.mode == "none" or scores.maps is None:
            return {"residual_map": None, "regions": []}
        calibration = self.scorer.manifest.calibration
        residual = map_to_frame(self.scorer.image_input, scores.maps[k], item.height, item.width)
        if self.mode == "png":
            encoded = png_map(residual)
        elif self.mode == "float32":
            encoded = float32_map(residual)
        else:
            assert item.pixels is not None
            encoded = heatmap_map(residual, item.pixels, calibration.map_scale)
        regions = [vars(r) for r in find_regions(residual, calibration.pixel_threshold)]
        return {"residual_map": encoded, "regions": regions}

    def answer_picture(self, scores: Scores) -> Response:
        """The heatmap itself, its score in the headers."""
        item = self.items[0]
        assert isinstance(item, _Own)
        assert item.pixels is not None
        assert scores.maps is not None
        manifest, telemetry = self.scorer.manifest, self.resources.telemetry
        decision = self.rule.settle(scores.p_value).decide(scores.p_value)[0]
        self.resources.feedback.remember(
            request_id_of(self.request),
            manifest.name,
            manifest.version,
            self.scorer.digest,
            self._facts(scores, [decision]),
        )
        score = float(scores.score[0])
        spec, calibration = self.scorer.image_input, manifest.calibration
        residual = map_to_frame(spec, scores.maps[0], item.height, item.width)
        png = heatmap(residual, item.pixels, calibration.map_scale)
        telemetry.decided(manifest.name, manifest.version, [decision], [score], source=self.source)
        headers = {"X-Anomaly-Score": repr(score), "X-Anomaly-Decision": decision}
        return Response(png, headers=headers, media_type="image/png")


def prefers_png(accept: str) -> bool:
    """Whether an Accept header names image/png and nothing, JSON least of all, before it."""
    if "image/png" not in accept.lower():
        return False
    quality: dict[str, float] = {}
    for item in accept.lower().split(","):
        media_type, _, parameters = item.partition(";")
        _, found, q = parameters.replace(" ", "").partition("q=")
        try:
            quality[media_type.strip()] = float(q) if found else 1.0
        except ValueError:
            quality[media_type.strip()] = 0.0
    return quality.get("image/png", 0.0) > quality.get("application/json", 0.0)
