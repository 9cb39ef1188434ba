"""The one place where the parts are wired: ``create_app``."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service import problems
from service.batching import Admission
from service.catalog import Catalog, Entry
from service.request_context import RequestContext
from service.resources import Resources
from service.routes import health, models, page, score, timeseries
from service.runtime import Runtime
from service.schemas import Problem
from service.settings import Settings
from service.telemetry import Telemetry

TITLE = "Anomaly scoring"
API_VERSION = "1.0"


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service; models begin to load when it starts up.

    Args:
        settings: default: from the environment.
    """
    settings = settings or Settings()
    logging.getLogger("service").setLevel(settings.log_level.upper())
    runtime = Runtime(settings.providers, settings.threads)
    telemetry = Telemetry()

    def on_change(entry: Entry) -> None:
        telemetry.model_ready(entry.name, entry.version, entry.status == "ready")
        if entry.scorer is not None:
            family, digest = entry.scorer.manifest.family, entry.scorer.digest
            telemetry.model_info(entry.name, entry.version, family, runtime.provider_name, digest)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        resources: Resources = app.state.resources
        resources.catalog.start()
        yield
        resources.catalog.stop()
        resources.admission.close()
        telemetry.close()

    app = FastAPI(
        title=TITLE, version=API_VERSION, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.state.resources = Resources(
        settings=settings,
        catalog=Catalog(
            settings.models_dir,
            runtime,
            every_version=settings.load_versions == "all",
            on_change=on_change,
        ),
        admission=Admission(settings.concurrency, settings.queue_max_items, telemetry),
        telemetry=telemetry,
    )
    app.add_middleware(RequestContext, telemetry=telemetry)
    problems.install(app)
    for module in (score, timeseries, models, health, page):
        app.include_router(module.router)
    page.mount_files(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, and the schema of problems that routes refer to."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description="Scores of images and sensor windows. Errors are RFC 9457 problems.",
            routes=app.routes,
        )
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"] |= problem.pop("$defs") | {Problem.__name__: problem}
        app.openapi_schema = schema
    return app.openapi_schema
