"""The one table from exception to HTTP status, and problem+json bodies (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from service.contract.errors import (
    AnomalyError,
    AnswerNotFound,
    ArtifactError,
    ArtifactNotFound,
    Conflict,
    DeadlinePassed,
    DetectorFailure,
    FieldError,
    Forbidden,
    InputTooLarge,
    InvalidInput,
    MalformedInput,
    NotReady,
    Overloaded,
    RateLimited,
    StreamNotFound,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)

MEDIA_TYPE = "application/problem+json"
MAX_FIELD_ERRORS = 20
PROTOCOL_PATH = "/v2"

# exception -> status, slug of the problem's type, seconds to wait; the first that fits counts
TABLE: tuple[tuple[type[AnomalyError], int, str, int | None], ...] = (
    (MalformedInput, 400, "malformed-input", None),
    (Unauthenticated, 401, "unauthenticated", None),
    (Forbidden, 403, "forbidden", None),
    (ArtifactNotFound, 404, "model-not-found", None),
    (StreamNotFound, 404, "stream-not-found", None),
    (AnswerNotFound, 404, "answer-not-found", None),
    (Conflict, 409, "conflict", None),
    (InputTooLarge, 413, "input-too-large", None),
    (UnsupportedMedia, 415, "unsupported-media", None),
    (InvalidInput, 422, "invalid-input", None),
    (RateLimited, 429, "rate-limited", 1),
    (DetectorFailure, 500, "internal-error", None),
    (NotReady, 503, "model-not-ready", 5),
    (ArtifactError, 503, "model-not-ready", 60),
    (Overloaded, 503, "overloaded", 1),
    (Unavailable, 503, "unavailable", 1),
    (DeadlinePassed, 504, "deadline-passed", None),
)
TITLES = {
    "malformed-input": "The body is not what it claims to be",
    "unauthenticated": "A key is needed",
    "forbidden": "This key may not do that",
    "model-not-found": "No such model or version",
    "stream-not-found": "No such stream",
    "answer-not-found": "No such answer is remembered",
    "conflict": "Not possible in this state",
    "input-too-large": "More than this service accepts",
    "unsupported-media": "A kind of content that is not accepted",
    "invalid-input": "Well-formed, but wrong",
    "rate-limited": "Too many requests",
    "internal-error": "Internal error",
    "model-not-ready": "Not ready",
    "overloaded": "Too much is waiting already",
    "unavailable": "A store that is needed cannot be used",
    "deadline-passed": "Not done in time",
}
INTERNAL_DETAIL = "The service failed; its log holds the cause under this request id."


def request_id_of(request: Request) -> str:
    """The id that ``request_context`` gave the request."""
    return str(getattr(request.state, "request_id", ""))


def _text(text: str) -> str:
    """``text`` as JSON can hold it: a lone surrogate, from a file name say, becomes an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def problem(
    request: Request,
    status: int,
    slug: str,
    detail: str,
    errors: tuple[FieldError, ...] = (),
    retry_after_s: int | None = None,
    **members: Any,
) -> dict[str, Any]:
    """A problem object, its members in the order people read them."""
    body: dict[str, Any] = {
        "type": f"urn:anomaly:problem:{slug}",
        "title": TITLES.get(slug) or HTTPStatus(status).phrase,
        "status": status,
        "detail": _text(detail),
        "instance": request.url.path,
        "request_id": request_id_of(request),
    }
    if errors:
        shown = [
            {"pointer": _text(e.pointer), "detail": _text(e.detail)}
            for e in errors[:MAX_FIELD_ERRORS]
        ]
        body["errors"] = shown
    if retry_after_s is not None:
        body["retry_after_s"] = retry_after_s
    if request.url.path.startswith(PROTOCOL_PATH):
        body["error"] = body["detail"]  # where clients of that protocol look
    return body | members


def problem_of(request: Request, error: AnomalyError) -> dict[str, Any]:
    """The problem object of one of our exceptions."""
    for kind, status, slug, retry_after_s in TABLE:
        if isinstance(error, kind):
            detail = str(error) if status != HTTPStatus.INTERNAL_SERVER_ERROR else INTERNAL_DETAIL
            errors = error.errors if isinstance(error, InvalidInput) else ()
            if isinstance(error, RateLimited):
                return problem(request, status, slug, detail, errors, error.retry_after_s)
            return problem(request, status, slug, detail, errors, retry_after_s)
    return problem(request, 500, "internal-error", INTERNAL_DETAIL)


def problem_response(body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """A problem object as a response, with ``Retry-After`` where it says so."""
    all_headers = dict(headers or {})
    if "retry_after_s" in body:
        all_headers["Retry-After"] = str(body["retry_after_s"])
    return Response(orjson.dumps(body), body["status"], all_headers, MEDIA_TYPE)


def _reject(request: Request, body: Mapping[str, Any]) -> None:
    request.app.state.resources.telemetry.rejected(body["type"].rpartition(":")[2])


def response_of(request: Request, error: AnomalyError) -> Response:
    """The answer to one of our exceptions, counted; a bug is raised again.

    Raises:
        AnomalyError: ``error`` itself, where it is no problem of the request.
    """
    body = problem_of(request, error)
    if body["status"] == HTTPStatus.INTERNAL_SERVER_ERROR:
        raise error
    _reject(request, body)
    return problem_response(body)


def install(app: FastAPI) -> None:
    """Every error of ``app`` but a bug is answered with a problem; bugs: ``request_context``."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, AnomalyError)
        return response_of(request, error)

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        errors = tuple(
            FieldError("/" + "/".join(str(part) for part in e["loc"][1:]), e["msg"])
            for e in error.errors()
        )
        detail = "; ".join(f"{e.pointer.lstrip('/')}: {e.detail}" for e in errors[:3])
        body = problem(request, 422, "invalid-input", detail, errors)
        _reject(request, body)
        return problem_response(body)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        phrase = HTTPStatus(error.status_code).phrase
        detail = str(error.detail)
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.url.path}; /docs lists what there is"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "another method")
            detail = f"{request.method} is not allowed at {request.url.path}; allowed: {allowed}"
        slug = phrase.lower().replace(" ", "-").replace("'", "")
        return problem_response(problem(request, error.status_code, slug, detail), error.headers)

    app.add_exception_handler(AnomalyError, ours)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
