"""/v2: the Open Inference Protocol, which KServe and Triton clients speak.

The same models, limits, deadlines and scores as ``/score``, ``/score/timeseries`` and
``/score/vectors``; what a client asks of a server and its models is here, how an inference is
carried out in ``inference``.
"""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import Response

from service.catalog import Entry, Version
from service.contract.errors import InvalidInput, MalformedInput, NotReady
from service.contract.manifest import ImageInput, Input, VectorInput
from service.decoding.body import read_body
from service.decoding.tensors.inputs import IMAGE, ROWS, VECTORS
from service.interruption import deadline
from service.problems import problem, problem_of, problem_response
from service.protocol_schemas import (
    Health,
    InferBody,
    InferRequestBody,
    ModelMetadata,
    ModelReady,
    NoQuery,
    RepositoryEntry,
    ServerMetadata,
)
from service.resources import resources_of
from service.routes import (
    COMMAND_BYTES,
    json_response,
    known_query,
    problem_docs,
    timeout_s,
    within_rate,
)
from service.routes.inference import OUTPUTS, infer, scorer_of

router = APIRouter(
    prefix="/v2", tags=["open inference protocol"], dependencies=[Depends(known_query(NoQuery))]
)

ModelVersion = Annotated[Version, Path(description="A number, `stable` or `candidate`.")]
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": f"#/components/schemas/{InferRequestBody.__name__}"}
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
_STATES = {"ready": "READY", "loading": "LOADING"}


@router.get("", responses={200: {"model": ServerMetadata}})
async def server_metadata(request: Request) -> Response:
    """What this server is and which extensions of the protocol it has."""
    extensions = ["model_repository", "binary_tensor_data"]
    body = {"name": "anomaly-scoring", "version": request.app.version, "extensions": extensions}
    return json_response(body)


@router.get("/health/live", responses={200: {"model": Health}})
async def server_live(request: Request) -> Response:
    """200 as long as the process answers."""
    ready = not resources_of(request).catalog.reasons()
    return json_response({"ready": ready, "live": True})


@router.get("/health/ready", responses={200: {"model": Health}, **problem_docs(503)})
async def server_ready(request: Request) -> Response:
    """200 only when every active model is ready, as GET /readyz."""
    catalog = resources_of(request).catalog
    if reasons := catalog.reasons():
        detail = "models are being loaded" if catalog.loading else "; ".join(reasons)
        wait_s = 2 if catalog.loading else 60
        return problem_response(
            problem(request, 503, "model-not-ready", detail, (), wait_s, ready=False)
        )
    return json_response({"ready": True, "live": True})


@router.get("/models/{name}", responses={200: {"model": ModelMetadata}, **problem_docs(404, 503)})
async def model_metadata(request: Request, name: str) -> Response:
    """Inputs and outputs of the active version; -1 is any size."""
    return _metadata(request, name, None)


@router.get(
    "/models/{name}/versions/{version}",
    responses={200: {"model": ModelMetadata}, **problem_docs(404, 422, 503)},
)
async def version_metadata(request: Request, name: str, version: ModelVersion) -> Response:
    """Inputs and outputs of one version."""
    return _metadata(request, name, version)


@router.get(
    "/models/{name}/ready", responses={200: {"model": ModelReady}, **problem_docs(404, 503)}
)
async def model_ready(request: Request, name: str) -> Response:
    """200 when the active version can score; 503 while it cannot, 404 when it is not held."""
    return _ready(request, name, None)


@router.get(
    "/models/{name}/versions/{version}/ready",
    responses={200: {"model": ModelReady}, **problem_docs(404, 422, 503)},
)
async def version_ready(request: Request, name: str, version: ModelVersion) -> Response:
    """200 when this version can score; 503 while it cannot, 404 when it is not held in memory."""
    return _ready(request, name, version)


_INFER: dict[str, Any] = {
    "dependencies": [Depends(within_rate)],
    "openapi_extra": {"requestBody": _BODY},
    "responses": {
        200: {"description": "Scores, in the order of the items.", "model": InferBody},
        **problem_docs(400, 404, 413, 415, 422, 429, 503, 504),
    },
}


@router.post("/models/{name}/infer", **_INFER)
async def infer_active(request: Request, name: str) -> Response:
    """Score images (`image`), a recording (`rows`) or vectors (`vectors`) with the active version.

    Omitted `outputs` mean all but maps. Binary data may follow the JSON, as
    `Inference-Header-Content-Length` says.
    """
    with deadline(timeout_s(request, resources_of(request).settings.request_timeout_s)):
        return await infer(request, name, None)


@router.post("/models/{name}/versions/{version}/infer", **_INFER)
async def infer_version(request: Request, name: str, version: ModelVersion) -> Response:
    """Score images, a recording or vectors with one version."""
    with deadline(timeout_s(request, resources_of(request).settings.request_timeout_s)):
        return await infer(request, name, version)


@router.post(
    "/repository/index",
    openapi_extra={
        "requestBody": {
            "content": {
                "application/json": {
                    "schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}}
                }
            }
        }
    },
    responses={200: {"model": list[RepositoryEntry]}, **problem_docs(400, 413, 422)},
)
async def repository_index(request: Request) -> Response:
    """Every version of every model; with `{"ready": true}` those that can score."""
    resources = resources_of(request)
    with deadline(timeout_s(request, resources.settings.request_timeout_s)):
        only_ready = _only_ready(await read_body(request, COMMAND_BYTES, fixed=True))
    found = [_indexed(e) for e in resources.catalog.entries() if e.scorer or not only_ready]
    return Response(orjson.dumps(found), media_type="application/json")


def _only_ready(body: bytes) -> bool:
    try:
        asked = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise MalformedInput(f"the body is not JSON: {error}") from error
    ready = asked.get("ready", False) if isinstance(asked, dict) else None
    if not isinstance(ready, bool) or asked.keys() - {"ready"}:
        raise InvalidInput('the body may be empty, or {"ready": true} or {"ready": false}')
    return ready


def _indexed(e: Entry) -> dict[str, str]:
    state = _STATES.get(e.status, "UNAVAILABLE")
    reason = e.reason or ("unloaded" if e.status == "not_loaded" else "")
    return {"name": e.name, "version": str(e.version), "state": state, "reason": reason}


def _ready(request: Request, name: str, version: Version | None) -> Response:
    try:
        scorer_of(resources_of(request).catalog, name, version)
    except NotReady as error:
        return problem_response(problem_of(request, error) | {"ready": False})
    return json_response({"name": name, "ready": True})


def _metadata(request: Request, name: str, version: Version | None) -> Response:
    catalog = resources_of(request).catalog
    entry = catalog.entry(name, version)
    if entry.manifest is None:
        why = entry.reason or "its manifest is unreadable"
        raise NotReady(f"model {name!r} version {entry.version} could not be loaded: {why}")
    spec = entry.manifest.input
    same = (e for e in catalog.entries() if e.name == name and e.status != "not_loaded")
    body = {
        "name": name,
        "versions": [str(e.version) for e in same],
        "platform": "onnx_onnxv1",
        "inputs": [_input_of(spec)],
        "outputs": [_output_of(spec, output) for output in OUTPUTS[entry.manifest.task]],
    }
    return json_response(body)


def _input_of(spec: Input) -> dict[str, Any]:
    if isinstance(spec, ImageInput):
        return {"name": IMAGE, "datatype": "UINT8", "shape": [-1, -1, -1, -1]}
    if isinstance(spec, VectorInput):
        return {"name": VECTORS, "datatype": "FP32", "shape": [-1, spec.features]}
    return {"name": ROWS, "datatype": "FP32", "shape": [-1, len(spec.columns)]}


def _output_of(spec: Input, name: str) -> dict[str, Any]:
    shape = [-1]
    if name == "residual_map":
        shape += [-1, -1] if isinstance(spec, ImageInput) else list(spec.shape)
    elif name == "contributions":
        shape += spec.shape[-1:]
    return {"name": name, "datatype": "BYTES" if name == "decision" else "FP32", "shape": shape}
