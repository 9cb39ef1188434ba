"""What can go wrong when the service is called.

ClientError
├── ServiceProblem      the service answered with a problem (RFC 9457), or a proxy with an error
├── NoAnswer            the connection could not be made, or broke
│   └── OutOfTime       the call's deadline passed first
└── UnexpectedAnswer    success by its status, but not what this service answers
"""

from dataclasses import dataclass
from typing import Any

import httpx
import orjson


class ClientError(Exception):
    """Base of all exceptions raised on purpose by this package."""


@dataclass(frozen=True)
class FieldProblem:
    """One wrong place: a query parameter, a column, or a JSON pointer."""

    pointer: str
    detail: str


class ServiceProblem(ClientError):
    """The service refused, or failed; what it said of it."""

    def __init__(
        self,
        status: int,
        type: str,  # noqa: A002  # the member's name in RFC 9457
        title: str,
        detail: str,
        errors: tuple[FieldProblem, ...] = (),
        request_id: str = "",
        retry_after_s: float | None = None,
        members: dict[str, Any] | None = None,
    ) -> None:
        at = f" (request {request_id})" if request_id else ""
        super().__init__(f"{status} {title}: {detail}{at}")
        self.status = status
        self.type = type
        """Such as ``urn:anomaly:problem:invalid-input``."""
        self.title = title
        self.detail = detail
        self.errors = errors
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.members = members or {}
        """The whole problem object."""

    @classmethod
    def of(cls, members: dict[str, Any], retry_after_s: float | None = None) -> "ServiceProblem":
        """The exception of a problem object."""
        return cls(
            status=int(members.get("status", 0)),
            type=str(members.get("type", "about:blank")),
            title=str(members.get("title", "")),
            detail=str(members.get("detail", "")),
            errors=tuple(
                FieldProblem(str(e.get("pointer", "")), str(e.get("detail", "")))
                for e in members.get("errors") or ()
            ),
            request_id=str(members.get("request_id", "")),
            retry_after_s=members.get("retry_after_s", retry_after_s),
            members=members,
        )


class NoAnswer(ClientError):
    """The connection could not be made, or broke before the answer was complete."""


class OutOfTime(NoAnswer):
    """The deadline of the call passed."""


class UnexpectedAnswer(ClientError):
    """A success that is not an answer of this service: a proxy's page, or another program's."""


def problem_in(response: httpx.Response) -> ServiceProblem:
    """The problem of an answer that is no success; of a proxy's, what can be made of it."""
    try:
        members = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        members = None
    if not isinstance(members, dict) or "detail" not in members:
        members = {"title": response.reason_phrase, "detail": response.text[:200]}
    said = {"status": response.status_code, "request_id": response.headers.get("x-request-id", "")}
    return ServiceProblem.of(said | members, retry_after_s(response))


def retry_after_s(response: httpx.Response) -> float | None:
    """Seconds of the ``Retry-After`` header; None without one, or with a date."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
