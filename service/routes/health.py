"""GET /livez, /readyz, /healthz, /metrics: for orchestrators and Prometheus."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.problems import problem, problem_response
from service.resources import resources_of
from service.routes import json_response, problem_docs
from service.schemas import HealthBody, LiveBody, ReadyBody

router = APIRouter(tags=["health"])


@router.get("/livez", responses={200: {"model": LiveBody}})
async def live() -> Response:
    """200 as long as the process answers."""
    return json_response({"live": True})


@router.get("/readyz", responses={200: {"model": ReadyBody}, **problem_docs(503)})
async def ready(request: Request) -> Response:
    """200 only when every active model is loaded and its golden examples score as at publishing.

    503 with `reasons` otherwise, also when there is no model at all. Models that are ready are
    served even while this says 503.
    """
    catalog = resources_of(request).catalog
    reasons = catalog.reasons()
    if reasons:
        detail = "models are being loaded" if catalog.loading else "; ".join(reasons)
        wait_s = 2 if catalog.loading else 60
        body = problem(request, 503, "model-not-ready", detail, (), wait_s, reasons=reasons)
        return problem_response(body)
    active = [f"{e.name}/{e.version}" for e in catalog.entries() if e.active]
    return json_response({"ready": True, "models": active})


@router.get("/healthz", responses={200: {"model": HealthBody}})
async def health(request: Request) -> Response:
    """Always 200 while the process answers; the body says how it is."""
    catalog = resources_of(request).catalog
    reasons = catalog.reasons()
    status = "ok" if not reasons else "loading" if catalog.loading else "degraded"
    return json_response({"status": status, "live": True, "ready": not reasons, "reasons": reasons})


@router.get(
    "/metrics",
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus text format."}},
)
async def metrics(request: Request) -> Response:
    """All metrics of all workers, for Prometheus."""
    accept = request.headers.get("accept", "")
    resources = resources_of(request)
    resources.telemetry.ready(not resources.catalog.reasons())
    # some milliseconds, for which no score is to wait
    text, content_type = await asyncio.to_thread(resources.telemetry.exposition, accept)
    return Response(text, headers={"Content-Type": content_type})
