"""One module a group of routes; here: what several of them share."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

import orjson
from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from service.contract.errors import FieldError, InvalidInput, MalformedInput
from service.decoding.body import header_of
from service.problems import MEDIA_TYPE
from service.rate_limits import caller_of
from service.resources import resources_of
from service.schemas import Problem

COMMAND_BYTES = 4096
"""Of a body that is no data to score."""
Q = TypeVar("Q", bound=BaseModel)

_PROBLEMS = {
    400: "Malformed: truncated image, broken JSON, multipart or csv, empty body.",
    401: "A key is needed.",
    403: "The key lacks the scope.",
    404: "No such model or version.",
    409: "The state of the service does not allow it.",
    413: "Too many bytes, pixels, images, cells or windows.",
    415: "A content type or file format that is not accepted.",
    422: "Well-formed but wrong: query, columns, cells, too few rows.",
    429: "Too many requests; see Retry-After.",
    503: "The model is not ready, or too much is waiting; see Retry-After.",
    504: "Not done in time.",
}


def problem_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may answer with these problems."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    return {s: {"description": _PROBLEMS[s], "content": content} for s in statuses}


def query_docs(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The OpenAPI ``parameters`` of a route that reads its query with ``read_query``."""
    described = model.model_json_schema()
    required = described.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        | ({"description": schema["description"]} if "description" in schema else {})
        for name, schema in described["properties"].items()
    ]


def read_query(model: type[Q], request: Request) -> Q:
    """The query of a request; a parameter that is unknown or given twice is an error, so that a
    mistyped one is not silently ignored.

    Raises:
        InvalidInput: it names each parameter that is wrong.
    """
    raw = request.scope["query_string"]
    parse = _remembered_query if len(raw) <= _REMEMBERED_BYTES else _parse_query
    return cast("Q", parse(model, raw))


def _parse_query(model: type[BaseModel], raw: bytes) -> BaseModel:
    pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True)
    counts = Counter(key for key, _ in pairs)
    allowed = ", ".join(model.model_fields)
    errors = [
        FieldError(f"/{key}", f"unknown query parameter; allowed: {allowed}")
        for key in counts
        if key not in model.model_fields
    ]
    errors += [FieldError(f"/{k}", "given more than once") for k, n in counts.items() if n > 1]
    if not errors:
        try:
            return model.model_validate(dict(pairs))
        except ValidationError as error:
            errors = [FieldError(f"/{e['loc'][0]}", e["msg"]) for e in error.errors()]
    first = errors[0]
    raise InvalidInput(f"{first.pointer.lstrip('/')}: {first.detail}", tuple(errors))


_REMEMBERED_BYTES = 256
_remembered_query = lru_cache(maxsize=1024)(_parse_query)


def read_command(model: type[Q], data: bytes, example: str) -> Q:
    """The body of a request that is no data to score.

    Args:
        model: what it must be.
        data: JSON.
        example: of such a body, for whoever sent something else.

    Raises:
        MalformedInput: it is not JSON.
        InvalidInput: it is something else; every wrong place is named.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_input=False, include_context=False)
        first = found[0]
        if first["type"] == "json_invalid":
            raise MalformedInput(f"the body is not JSON: {first['msg']}") from None
        wrong = [FieldError("/" + "/".join(map(str, e["loc"])), e["msg"]) for e in found]
        raise InvalidInput(
            f"{wrong[0].pointer}: {wrong[0].detail}; a body is {example}", tuple(wrong)
        ) from None


def known_query(model: type[BaseModel]) -> Callable[[Request], None]:
    """A dependency: what ``read_query`` checks, for a route that needs none of it."""

    def check(request: Request) -> None:
        read_query(model, request)

    return check


async def within_rate(request: Request) -> None:
    """A dependency, or a call, that refuses one request too many of its caller."""
    await resources_of(request).rate_limits.check(caller_of(request.scope))


def json_response(
    body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """``body`` as JSON."""
    return Response(orjson.dumps(body), status, headers, "application/json")


def timeout_s(request: Request, longest: float) -> float:
    """The caller's deadline (``X-Request-Timeout``, seconds), never more than ``longest``.

    Raises:
        InvalidInput: the header is no positive number.
    """
    text = header_of(request, b"x-request-timeout")
    if not text:
        return longest
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InvalidInput(f"X-Request-Timeout must be a positive number of seconds, got {text!r}")
    return min(seconds, longest)
