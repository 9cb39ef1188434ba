"""What every request gets: an id, a clock, one log line, one metric sample, and an answer even
when there is a bug.
"""

import itertools
import logging
import os
import re
from time import perf_counter
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.logs import request_fields
from service.problems import INTERNAL_DETAIL, problem, problem_response
from service.telemetry import UNMATCHED, Telemetry

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# what an answer may load when a browser shows it: nothing; pages have a policy of their own
_POLICY = b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# made-up ids: a random part for this process, then a number; urandom for each would cost 5 us
_PREFIX, _COUNT = os.urandom(10).hex().encode(), itertools.count()
_EVERY_ANSWER = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_CLIENT_CLOSED = 499  # nginx's number for a client that went away


class RequestContext:
    """ASGI middleware around everything else.

    ``X-Request-ID`` is taken over when it is 1-128 printable ASCII characters, else made up;
    ``traceparent`` is echoed when it is valid by W3C Trace Context.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        headers = dict(reversed(scope["headers"]))  # the first of several counts
        sent = headers.get(b"x-request-id", b"")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else b"%s%012x" % (_PREFIX, next(_COUNT))
        extra = [(b"x-request-id", request_id), *_EVERY_ANSWER]
        traceparent = headers.get(b"traceparent", b"")
        trace_id = None
        if traceparent and _TRACEPARENT.fullmatch(traceparent):
            extra.append((b"traceparent", traceparent))
            trace_id = traceparent[3:35].decode("ascii")
        state = scope.setdefault("state", {})
        state["request_id"], state["headers"] = request_id.decode("ascii"), headers
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                policy = (b"content-security-policy", state.get("policy", _POLICY))
                message["headers"] = [*message["headers"], *extra, policy]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
            if "error" in state:
                raise state.pop("error")
        except ClientDisconnect:
            status = status or _CLIENT_CLOSED
        except Exception:
            log.exception("request %s failed", request_id.decode("ascii"))
            self._telemetry.rejected("internal-error")
            if status:  # the answer has begun: all that is left is to break it off
                raise
            body = problem(Request(scope), 500, "internal-error", INTERNAL_DETAIL)
            await problem_response(body)(scope, receive, send_with_id)
        finally:
            seconds = perf_counter() - started
            route = getattr(scope.get("route"), "path", UNMATCHED)
            self._telemetry.request_done(route, scope["method"], status or 500, seconds)
            if log.isEnabledFor(logging.INFO):
                identity = request_id.decode("ascii")
                log.info(
                    "%s %s %d %.1f ms %s",
                    quote(scope["method"]),
                    quote(scope["path"]),
                    status,
                    1e3 * seconds,
                    identity,
                    extra=request_fields(scope, identity, trace_id, route, status, seconds),
                )
