"""The one place where the parts are wired: ``create_app``."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp, Receive, Scope, Send
from threadpoolctl import threadpool_limits

from service import problems
from service.batching import Admission
from service.cache import ResultCache
from service.catalog import Catalog, Entry
from service.direct import DirectRoutes
from service.feedback.memory import Memory
from service.feedback.redis_store import RedisStore
from service.feedback.sqlite_file import SqliteFile
from service.feedback.store import FileStore
from service.keys import ApiKeys, KeyCheck
from service.protocol_schemas import InferRequestBody
from service.rate_limits import Rate, RateLimits
from service.redis_link import RedisLink
from service.request_context import RequestContext
from service.resources import Resources
from service.routes import (
    feedback,
    health,
    inference_protocol,
    models,
    page,
    score,
    streams,
    timeseries,
    vectors,
)
from service.runtime import Runtime
from service.schemas import Problem
from service.serving_state import FILE
from service.settings import Settings
from service.shadow import Shadow
from service.stream_store import LocalStreams, RedisStreams, StreamStore
from service.telemetry import Telemetry

TITLE = "Anomaly scoring"
API_VERSION = "1.0"


class Service(FastAPI):
    """FastAPI behind what every request passes first."""

    front: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await self.front(scope, receive, send)

    async def behind(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's own middleware and router."""
        await super().__call__(scope, receive, send)


class BugsPassed:
    """ASGI: hands exceptions to ``RequestContext``, past Starlette's own answer to them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            scope["state"]["error"] = error


def create_app(
    settings: Settings | None = None,
    on_end: Callable[[], None] | None = None,
    at_start: Mapping[str, int] | None = None,
) -> FastAPI:
    """The service; models begin to load when it starts up.

    Args:
        settings: default: from the environment.
        on_end: called when it has shut down.
        at_start: see ``Catalog``.

    Raises:
        KeysMalformed: the configured API keys cannot be used.
    """
    settings = settings or Settings()
    # cores are shared by batches; a product that takes them all makes the others wait
    threadpool_limits(1, "blas")
    logging.getLogger("service").setLevel(settings.log_level.upper())
    runtime = Runtime(settings.providers, settings.threads)
    telemetry = Telemetry(settings.drift_window, settings.sources_max)
    telemetry.queue_limit(settings.queue_max_items)

    def on_change(entry: Entry) -> None:
        telemetry.ready(not catalog.reasons())
        if entry.status == "not_loaded":
            telemetry.model_unloaded(entry.name, entry.version)
            return
        telemetry.model_ready(entry.name, entry.version, entry.status == "ready")
        if entry.scorer is not None:
            family, digest = entry.scorer.manifest.family, entry.scorer.digest
            telemetry.model_info(entry.name, entry.version, family, runtime.provider_name, digest)
            scorer = entry.scorer
            fpr = scorer.manifest.calibration.fpr
            telemetry.model_calibrated(entry.name, entry.version, scorer.calibration, fpr)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        resources: Resources = app.state.resources
        # modules stay for good: looking through them again and again would stall requests
        gc.collect()
        gc.freeze()
        for part in (resources.catalog, resources.shadow, resources.feedback):
            part.start()
        if resources.redis is not None:
            await resources.redis.start()
        yield
        resources.shadow.stop()
        resources.catalog.stop()
        resources.admission.close()
        await asyncio.gather(resources.cache.close(), resources.feedback.close())
        if resources.redis is not None:
            await resources.redis.close()
        telemetry.close()
        if on_end is not None:
            on_end()

    app = Service(
        title=TITLE, version=API_VERSION, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    url = settings.redis()
    redis = None if url is None else RedisLink(url, telemetry.redis_up)
    catalog = Catalog(
        settings.models_dir,
        runtime,
        every_version=settings.load_versions == "all",
        on_change=on_change,
        state_file=settings.state_file,
        at_start=at_start,
    )
    admission = Admission(
        settings.concurrency or runtime.cores,
        settings.queue_max_items,
        telemetry,
        batch_max_size=settings.batch_max_size,
        batch_max_delay_s=settings.batch_max_delay_ms / 1e3,
    )
    app.state.resources = Resources(
        settings=settings,
        catalog=catalog,
        admission=admission,
        telemetry=telemetry,
        shadow=Shadow(
            catalog,
            telemetry,
            settings.shadow_share,
            review_fpr=settings.review_fpr,
            max_pixels=settings.max_pixels,
            busy=lambda: admission.busy,
        ),
        redis=redis,
        cache=ResultCache(settings.cache_ttl_s, settings.cache_max_bytes, telemetry, redis),
        rate_limits=RateLimits(
            None if settings.rate_limit is None else Rate.parse(settings.rate_limit), redis
        ),
        streams=_stream_store(settings, redis),
        feedback=_feedback(settings, redis),
    )
    posts = {
        "/score": score.score_images,
        "/score/timeseries": timeseries.score_timeseries,
        "/score/vectors": vectors.score_vectors,
    }
    allowed = KeyCheck(DirectRoutes(app.behind, posts), ApiKeys.of(settings), telemetry)
    app.add_middleware(BugsPassed)
    app.front = RequestContext(allowed, telemetry)
    problems.install(app)
    for module in (
        score, timeseries, vectors, streams, feedback, inference_protocol, models, health, page,
    ):  # fmt: skip
        app.include_router(module.router)
    page.mount_files(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _stream_store(settings: Settings, redis: RedisLink | None) -> StreamStore | None:
    if redis is not None:
        return RedisStreams(redis, settings.stream_ttl_s)
    if settings.workers > 1:
        return None
    return LocalStreams(settings.stream_ttl_s, settings.streams_max)


def _feedback(settings: Settings, redis: RedisLink | None) -> Memory:
    ttl_s, most = settings.feedback_ttl_s, settings.feedback_max_items
    if redis is not None:
        return Memory(RedisStore(redis, ttl_s, most), enabled=ttl_s > 0)
    state_file = settings.state_file or settings.models_dir / FILE
    path = settings.feedback_file or state_file.with_name("feedback.sqlite")
    return Memory(FileStore(SqliteFile(path, ttl_s, most)), enabled=ttl_s > 0)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, and the schema of problems that routes refer to."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description="Scores of images, sensor windows and feature vectors. Errors are RFC 9457 "
            "problems.",
            routes=app.routes,
        )
        for body in (Problem, InferRequestBody):
            one = body.model_json_schema(ref_template="#/components/schemas/{model}")
            schema["components"]["schemas"] |= one.pop("$defs") | {body.__name__: one}
        app.openapi_schema = schema
    return app.openapi_schema
