"""Routes that are found by one look-up: those on which every microsecond counts.

FastAPI documents them like any other; its middleware, router and dependencies, some 0.3 ms of
Python a request, are walked by the other routes only.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service import problems
from service.contract.errors import AnomalyError

Endpoint = Callable[[Request], Awaitable[Response]]


class DirectRoutes:
    """ASGI: answers POST requests to these paths, and hands everything else on."""

    def __init__(self, app: ASGIApp, posts: Mapping[str, Endpoint]) -> None:
        self._app = app
        self._routes = {path: Route(path, end, methods=["POST"]) for path, end in posts.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["method"] == "POST" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive)
        try:
            response = await route.endpoint(request)
        except AnomalyError as error:
            response = problems.response_of(request, error)
        await response(scope, receive, send)
