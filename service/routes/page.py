"""GET / and GET /docs: pages from files of this host alone, so that they work without internet."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

_WEB = Path(__file__).parent.parent / "web"
_SWAGGER_UI = Path(str(files("fastapi_offline"))) / "static"


@router.get("/")
async def page() -> FileResponse:
    """The landing page."""
    return FileResponse(_WEB / "index.html")


@router.get("/docs")
async def docs() -> FileResponse:
    """The OpenAPI description, rendered by Swagger UI."""
    return FileResponse(_WEB / "docs.html")


@router.get("/favicon.ico")
async def favicon() -> FileResponse:
    """What browsers ask for unasked."""
    return FileResponse(_WEB / "icon.svg", media_type="image/svg+xml")


def mount_files(app: FastAPI) -> None:
    """Static files below /static and /docs/files."""
    app.mount("/static", StaticFiles(directory=_WEB))
    app.mount("/docs/files", StaticFiles(directory=_SWAGGER_UI))
