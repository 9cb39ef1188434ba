"""/models: what can be scored with, where it stands, and what operators change of it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from service.catalog import Alias, Catalog, Entry
from service.contract.errors import DeadlinePassed
from service.decoding.body import check_media_type, read_body
from service.interruption import deadline
from service.resources import Resources, resources_of
from service.routes import COMMAND_BYTES, json_response, problem_docs, read_command, timeout_s
from service.schemas import (
    AliasBody,
    AskedVersion,
    ModelBody,
    ModelsBody,
    VersionBody,
    VersionState,
)

router = APIRouter(prefix="/models", tags=["models"])

Number = Annotated[int, Path(ge=1, description="Version of the model.")]
_CHANGE = problem_docs(401, 403, 404, 409, 422, 504)


@router.get("", responses={200: {"model": ModelsBody}})
async def list_models(request: Request) -> Response:
    """Every model below the models directory, its versions and their status."""
    resources = resources_of(request)
    names = sorted({e.name for e in resources.catalog.entries()})
    return json_response({"models": [_model(resources, name) for name in names]})


@router.get("/{name}", responses={200: {"model": ModelBody}, **problem_docs(404)})
async def get_model(request: Request, name: str) -> Response:
    """One model and its versions."""
    return json_response(_model(resources_of(request), name))


@router.get(
    "/{name}/versions/{version}", responses={200: {"model": VersionBody}, **problem_docs(404, 422)}
)
async def get_version(request: Request, name: str, version: AskedVersion) -> Response:
    """One version: input rule, calibration, metrics with their protocol, provenance, files."""
    resources = resources_of(request)
    return json_response(_version(resources, resources.catalog.entry(name, version)))


@router.post(
    "/{name}/versions/{version}/load",
    responses={200: {"model": VersionState}, **_CHANGE},
)
async def load(request: Request, name: str, version: Number) -> Response:
    """Hold a version in memory, now and after a restart; also one published after start.

    Answers once its golden examples scored as at publishing; 409 with the reason when they do not.
    Other workers and replicas follow within seconds. Needs a key with scope `admin`.
    """
    catalog = resources_of(request).catalog
    await settled(request, lambda: catalog.load(name, version))
    return json_response(_state(catalog, name, version))


@router.post(
    "/{name}/versions/{version}/unload",
    responses={200: {"model": VersionState}, **_CHANGE},
)
async def unload(request: Request, name: str, version: Number) -> Response:
    """Give the memory of a version back; requests that began with it are still answered.

    409 for the active version and for one that an alias names. Needs a key with scope `admin`.
    """
    catalog = resources_of(request).catalog
    await settled(request, lambda: catalog.unload(name, version))
    return json_response(_state(catalog, name, version))


@router.put(
    "/{name}/aliases/{alias}",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": AliasBody.model_json_schema()}},
        }
    },
    responses={200: {"model": ModelBody}, **_CHANGE, **problem_docs(400, 413, 415)},
)
async def set_alias(request: Request, name: str, alias: Alias) -> Response:
    """Let `stable` or `candidate` name a version, which is loaded first where it is not.

    The version that `stable` names is the active one, whatever active.json says. A candidate that
    becomes stable is no candidate any more. Needs a key with scope `admin`.
    """
    resources = resources_of(request)
    check_media_type(request, ("application/json",))
    with deadline(timeout_s(request, resources.settings.request_timeout_s)):
        body = await read_body(request, COMMAND_BYTES, fixed=True)
        version = read_command(AliasBody, body, '{"version": 2}').version
    await settled(request, lambda: resources.catalog.set_alias(name, alias, version))
    return json_response(_model(resources, name))


@router.delete("/{name}/aliases/{alias}", responses={200: {"model": ModelBody}, **_CHANGE})
async def remove_alias(request: Request, name: str, alias: Alias) -> Response:
    """Let an alias name nothing; the version it named stays loaded.

    Without `stable` the version of active.json, else the highest at start, is active again. Needs
    a key with scope `admin`.
    """
    resources = resources_of(request)
    await settled(request, lambda: resources.catalog.remove_alias(name, alias))
    return json_response(_model(resources, name))


async def settled(request: Request, change: Callable[[], Future[None]]) -> None:
    """Nothing, once the change was made; it never begins when its turn comes after the deadline.

    Raises:
        DeadlinePassed: it is not done in time; once begun, it goes on.
        AnomalyError: whatever the change raises.
    """
    longest = resources_of(request).settings.request_timeout_s
    try:
        with deadline(timeout_s(request, longest)):
            await asyncio.wrap_future(change())
    except DeadlinePassed as error:
        raise DeadlinePassed(
            f"{error}; a change that has begun goes on: GET /models shows it"
        ) from error


def _state(catalog: Catalog, name: str, version: int) -> dict[str, Any]:
    return {"name": name} | _summary(catalog, catalog.entry(name, version))


def _summary(catalog: Catalog, e: Entry) -> dict[str, Any]:
    return {
        "version": e.version,
        "active": e.active,
        "aliases": [a for a, v in catalog.aliases(e.name).items() if v == e.version],
        "status": e.status,
        "reason": e.reason or None,
    }


def _model(resources: Resources, name: str) -> dict[str, Any]:
    catalog = resources.catalog
    mine = [e for e in catalog.entries() if e.name == name]
    active = next((e for e in mine if e.active), None)
    shown = active or (mine[-1] if mine else catalog.entry(name))  # which raises, naming others
    manifest = shown.manifest
    return {
        "name": name,
        "title": manifest.title if manifest else None,
        "family": manifest.family if manifest else None,
        "task": manifest.task if manifest else None,
        "active_version": active.version if active else None,
        "aliases": catalog.aliases(name),
        "shadow": resources.shadow.describe(name),
        "default_for": catalog.default_for(name),
        "status": shown.status,
        "versions": [_summary(catalog, e) for e in mine],
    }


def _version(resources: Resources, e: Entry) -> dict[str, Any]:
    catalog, manifest, scorer = resources.catalog, e.manifest, e.scorer
    dumped = manifest.model_dump(mode="json") if manifest else {}
    calibration = None
    if manifest:
        finest = {"finest_fpr": 1 / (manifest.calibration.n + 1)}
        band = {"review_fpr": resources.settings.review_fpr}
        calibration = manifest.calibration.model_dump(mode="json") | finest | band
    return {
        **_summary(catalog, e),
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
