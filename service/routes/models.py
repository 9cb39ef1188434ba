"""GET /models: what can be scored with, what it is, and where it stands."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.catalog import Catalog, Entry
from service.resources import resources_of
from service.routes import json_response, problem_docs
from service.schemas import ModelBody, ModelsBody, VersionBody

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", responses={200: {"model": ModelsBody}})
async def list_models(request: Request) -> Response:
    """Every model below the models directory, its versions and their status."""
    catalog = resources_of(request).catalog
    names = sorted({e.name for e in catalog.entries()})
    return json_response({"models": [_model(catalog, name) for name in names]})


@router.get("/{name}", responses={200: {"model": ModelBody}, **problem_docs(404)})
async def get_model(request: Request, name: str) -> Response:
    """One model and its versions."""
    catalog = resources_of(request).catalog
    if not any(e.name == name for e in catalog.entries()):
        catalog.entry(name)  # raises, naming those there are
    return json_response(_model(catalog, name))


@router.get(
    "/{name}/versions/{version}", responses={200: {"model": VersionBody}, **problem_docs(404, 422)}
)
async def get_version(request: Request, name: str, version: int) -> Response:
    """One version: input rule, calibration, metrics with their protocol, provenance, files."""
    catalog = resources_of(request).catalog
    return json_response(_version(catalog, catalog.entry(name, version)))


def _summary(e: Entry) -> dict[str, Any]:
    return {
        "version": e.version,
        "active": e.active,
        "status": e.status,
        "reason": e.reason or None,
    }


def _model(catalog: Catalog, name: str) -> dict[str, Any]:
    mine = [e for e in catalog.entries() if e.name == name]
    shown = next(e for e in mine if e.active)
    manifest = shown.manifest
    return {
        "name": name,
        "title": manifest.title if manifest else None,
        "family": manifest.family if manifest else None,
        "task": manifest.task if manifest else None,
        "active_version": shown.version,
        "default_for": catalog.default_for(name),
        "status": shown.status,
        "versions": [_summary(e) for e in mine],
    }


def _version(catalog: Catalog, e: Entry) -> dict[str, Any]:
    manifest, scorer = e.manifest, e.scorer
    dumped = manifest.model_dump(mode="json") if manifest else {}
    calibration = None
    if manifest:
        finest = {"finest_fpr": 1 / (manifest.calibration.n + 1)}
        calibration = manifest.calibration.model_dump(mode="json") | finest
    return {
        **_summary(e),
        "name": e.name,
        "title": dumped.get("title"),
        "family": dumped.get("family"),
        "task": manifest.task if manifest else None,
        "provider": catalog.runtime.provider_name if scorer else None,
        "sha256": scorer.digest if scorer else None,
        "input": dumped.get("input"),
        "calibration": calibration,
        "metrics": dumped.get("metrics"),
        "provenance": dumped.get("provenance"),
        "files": dumped.get("files"),
    }
