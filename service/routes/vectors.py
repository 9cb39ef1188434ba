"""POST /score/vectors: feature vectors, each scored by itself."""

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from jaxtyping import Float32

from service.cache import Option
from service.contract.errors import InputTooLarge
from service.contract.manifest import VectorInput
from service.contract.preprocess import prepare_vectors
from service.decision import DecisionRule
from service.decoding.vectors import Vectors, feature_name, read_csv, read_json
from service.feedback.records import content_of, item_facts
from service.interruption import deadline
from service.resources import Resources, resources_of
from service.routes import problem_docs, query_docs, read_query, timeout_s, within_rate
from service.routes.answers import Answer, KeptAnswer, give
from service.routes.table_bodies import JSON, described, read_table_body
from service.schemas import VectorsBody, VectorsQuery
from service.scoring import Scorer, Scores, contributions
from service.settings import Settings

router = APIRouter(tags=["scoring"])

_SMALL_BYTES, _SMALL_ITEMS = 16 * 1024, 64
"""Of a request that is read where it arrives, and described where it was scored."""
_BODY = described(
    "vectors",
    {
        "columns": {"type": "array", "items": {"type": "string"}},
        "vectors": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
    },
)


@router.post(
    "/score/vectors",
    openapi_extra={"requestBody": _BODY, "parameters": query_docs(VectorsQuery)},
    responses={
        200: {"description": "Scores of all vectors, in order.", "model": VectorsBody},
        **problem_docs(400, 404, 413, 415, 422, 429, 503, 504),
    },
)
async def score_vectors(request: Request) -> Response:
    """Score feature vectors: JSON, csv with a header, or a csv file as multipart part `file`.

    Columns are matched by name in any order where the model has names, else by position. A column
    named group or label, or time, timestamp or date, is ignored. Every vector must have a finite
    number for every feature.
    """
    resources = resources_of(request)
    with deadline(timeout_s(request, resources.settings.request_timeout_s)):
        return await _score(request, read_query(VectorsQuery, request), resources)


async def _score(request: Request, query: VectorsQuery, resources: Resources) -> Response:
    settings, admission = resources.settings, resources.admission
    await within_rate(request)
    scorer = resources.catalog.get(query.model, query.version, "vectors")
    name = request.scope["state"]["model"] = scorer.manifest.name
    admission.check_room(name)
    rule = DecisionRule.of(scorer, query.fpr, settings.review_fpr, query.fdr)
    named = min(query.contributions, scorer.vector_input.features)
    media_type, body = await read_table_body(request, settings.max_body_bytes)

    def options() -> dict[str, Option]:
        return {
            "route": "/score/vectors",
            "media_type": media_type,
            "contributions": named,
            "fpr": rule.fpr,
            "fdr": rule.fdr,
            "review_fpr": rule.review_fpr,
            "limits": f"{settings.max_cells} {settings.max_windows} {settings.max_contributions}",
        }

    kept = KeptAnswer(resources, scorer, options, [body])
    answer = await kept.get()
    if answer is None:
        job = _Job(resources, scorer, rule, named)
        with admission.admit(name, 1, request.receive):
            vectors, answer = await job.run(media_type, body)
        await kept.put(answer)
        if query.fdr is None and resources.shadow.wants(scorer):
            resources.shadow.offer(scorer, vectors, answer.decisions, rule.fpr)
    return await give(request, resources, scorer, answer, source=query.source)


@dataclass(frozen=True)
class _Job:
    """One request: from a body to vectors, and from their scores to the answer."""

    resources: Resources
    scorer: Scorer
    rule: DecisionRule
    named: int
    """Features that are named for each vector."""

    async def run(self, media_type: str, body: bytes) -> tuple[Vectors, Answer]:
        """What was sent, and the answer."""
        admission, name = self.resources.admission, self.scorer.manifest.name
        maps = self.named > 0
        if len(body) <= _SMALL_BYTES:
            vectors = self._read(media_type, body)
        else:
            vectors = await admission.run(name, lambda: self._read(media_type, body))
        count = len(vectors)
        if len(body) <= _SMALL_BYTES and count <= _SMALL_ITEMS:

            def fill(rows: Float32[np.ndarray, "N D"], phases_s: dict[str, float]) -> int:
                began = perf_counter()
                rows[:] = prepare_vectors(self.scorer.vector_input, vectors.values)
                spent = perf_counter() - began
                phases_s["preprocess"] = phases_s.get("preprocess", 0.0) + spent
                return count

            def finish(scores: Scores) -> Answer:
                return self._answer(vectors, scores)

            return vectors, await admission.batch(
                self.scorer, count, fill, finish, maps=maps, quick=True
            )
        x = await admission.run(name, lambda: self._prepared(vectors))
        scores = await admission.score(self.scorer, x, maps=maps)

        def encode() -> Answer:
            with self.resources.telemetry.phase(name, "encode"):
                return self._answer(vectors, scores)

        return vectors, await admission.run(name, encode)

    def _read(self, media_type: str, body: bytes) -> Vectors:
        settings, spec = self.resources.settings, self.scorer.vector_input
        with self.resources.telemetry.phase(self.scorer.manifest.name, "decode"):
            read = read_json if media_type == JSON else read_csv
            vectors = read(spec, body, settings.max_cells)
        check_count(len(vectors), settings)
        check_named(len(vectors), self.named, settings)
        return vectors

    def _prepared(self, vectors: Vectors) -> Float32[np.ndarray, "N D"]:
        with self.resources.telemetry.phase(self.scorer.manifest.name, "preprocess"):
            return prepare_vectors(self.scorer.vector_input, vectors.values)

    def _answer(self, vectors: Vectors, scores: Scores) -> Answer:
        manifest = self.scorer.manifest
        rule = self.rule.settle(scores.p_value)
        decisions = rule.decide(scores.p_value)
        listed = _contributions(self.scorer.vector_input, vectors, scores.maps, self.named)
        results = [
            {
                "index": i,
                **rule.members(scores, i, decision),
                "contributions": [] if listed is None else listed[i],
            }
            for i, decision in enumerate(decisions)
        ]
        members = {
            "model": manifest.name,
            "version": manifest.version,
            "family": manifest.family,
            "provider": self.resources.catalog.runtime.provider_name,
            "vectors": len(vectors),
            "warnings": [*vectors.warnings, *rule.warnings],
            "results": results,
        }
        facts = b""
        if self.resources.feedback.enabled:
            facts = vector_facts(vectors.values, scores, decisions)
        return Answer.of(members, decisions, scores.score.tolist(), facts=facts)


def vector_facts(values: np.ndarray, scores: Scores, decisions: list[Any]) -> bytes:
    """What is remembered of an answer about vectors."""
    raw, p_values = scores.raw.tolist(), scores.p_value.tolist()
    contents = [content_of(row.tobytes()) for row in values]
    return item_facts(len(values), None, raw, p_values, decisions, contents)


def check_count(count: int, settings: Settings) -> None:
    """Nothing, where so many vectors are scored at once.

    Raises:
        InputTooLarge: they are too many.
    """
    if count > settings.max_windows:
        raise InputTooLarge(
            f"{count} vectors; allowed: {settings.max_windows} (ANOMALY_MAX_WINDOWS); "
            f"send them in several requests"
        )


def check_named(count: int, named: int, settings: Settings) -> None:
    """Nothing, where so many features of so many vectors are named in one answer.

    Raises:
        InputTooLarge: they are too many.
    """
    most = settings.max_contributions
    if count * named > most:
        raise InputTooLarge(
            f"{named} features to name for each of {count} vectors; allowed in all: {most} "
            f"(ANOMALY_MAX_CONTRIBUTIONS); ask for contributions={most // count}, or send the "
            "vectors in several requests"
        )


def _contributions(
    spec: VectorInput, vectors: Vectors, maps: np.ndarray | None, most: int
) -> list[list[dict[str, Any]]] | None:
    """The members of ``FeatureShare`` for the features of each vector with the largest shares."""
    if maps is None or not most:
        return None
    shares = contributions(maps)
    order = np.argsort(-shares, axis=1, kind="stable")[:, :most]
    columns = (
        order.tolist(),
        np.take_along_axis(shares, order, axis=1).tolist(),
        np.take_along_axis(vectors.values, order, axis=1).tolist(),
    )
    names = [feature_name(spec, j) for j in range(spec.features)]
    return [
        [
            {"feature": names[j], "share": share, "value": value}
            for j, share, value in zip(*parts, strict=True)
        ]
        for parts in zip(*columns, strict=True)
    ]
