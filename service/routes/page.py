"""GET / and GET /docs: pages from files of this host alone, so that they work without internet.

Pages and their files are asked for again each time and answered with 304 while they are the same,
so that a new version of the service never meets parts of an old page.
"""

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Scope

router = APIRouter(include_in_schema=False)

_WEB = Path(__file__).parent.parent / "web"
_SWAGGER_UI = Path(str(files("fastapi_offline"))) / "static"

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger UI writes style attributes, and shows images of answers from blobs
DOCS_POLICY = PAGE_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")


class _Files(StaticFiles):
    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"  # which means: ask before using it again
        return response


_files = _Files(directory=_WEB)


@router.get("/")
async def page(request: Request) -> Response:
    """The operator's page."""
    return await _page(request, "index.html", PAGE_POLICY)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The OpenAPI description, rendered by Swagger UI."""
    return await _page(request, "docs.html", DOCS_POLICY)


@router.get("/favicon.ico")
async def favicon(request: Request) -> Response:
    """What browsers ask for unasked."""
    return await _files.get_response("icon.svg", request.scope)


def mount_files(app: FastAPI) -> None:
    """Static files below /static and /docs/files."""
    app.mount("/static", GZipMiddleware(_files, minimum_size=1024, compresslevel=6))
    app.mount("/docs/files", _Files(directory=_SWAGGER_UI))


async def _page(request: Request, name: str, policy: str) -> Response:
    state: dict[str, Any] = request.scope["state"]
    state["policy"] = policy.encode("ascii")
    return await _files.get_response(name, request.scope)
