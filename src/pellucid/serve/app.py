"""The server's ASGI application: the routes of all APIs, behind the access rules (``guard.py``)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import starlette.routing
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pellucid.errors import PellucidError
from pellucid.serve.api import Api, ClientCall, Route, error_form, json_response, known_apis
from pellucid.serve.guard import AccessRules, Guard
from pellucid.serve.live_requests import LiveRequests
from pellucid.serve.metrics import Metrics
from pellucid.serve.pool import ModelPool
from pellucid.serve.request_spans import GONE, RequestSpans
from pellucid.serve.response_store import ResponseStore

# 408 closes the connection, because a late body may never end.
HEADERS = {503: {"Retry-After": "1"}, 408: {"Connection": "close"}}


def create_app(
    models: ModelPool, rules: AccessRules, seconds: float = 20.0, spans: RequestSpans | None = None
) -> Starlette:
    """ASGI application of the server. ``seconds`` is the time limit for receiving a request body (``Guard``).

    ``spans`` makes OpenTelemetry spans of requests. The application closes it at its end.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        yield
        await models.close()
        if spans:
            await spans.close()

    metrics, live, responses = Metrics(models), LiveRequests(), ResponseStore()
    routes = [
        starlette.routing.Route(
            name.split(" ")[1],
            _served(api, one, models, metrics, live, responses, rules, spans, name),
            methods=[name.split(" ")[0]],
        )
        for api in known_apis().values()
        for name, one in api.routes.items()
    ]
    middleware = [Middleware(Guard, rules, seconds)]
    if rules.origins:
        cors = Middleware(CORSMiddleware, allow_origins=list(rules.origins), allow_methods=["*"], allow_headers=["*"])
        middleware.insert(0, cors)
    handlers: dict[Any, Any] = {HTTPException: _no_route, Exception: _failed}
    app = Starlette(routes=routes, middleware=middleware, lifespan=lifespan, exception_handlers=handlers)
    app.state.live = live
    return app


async def _no_route(request: Request, error: HTTPException) -> Response:
    """Error response for a path or a method that no API has."""
    path = request.scope["path"]
    message = f"{request.method} {path[:200]}: {error.detail.lower()}"
    return json_response(error_form(path)(error.status_code, message), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """Error response for a bug in the server. The traceback goes to the server's log."""
    message = f"internal server error: {type(error).__name__}; the server's log has the traceback"
    return json_response(error_form(request.scope["path"])(500, message), 500)


def _served(
    api: Api,
    route: Route,
    models: ModelPool,
    metrics: Metrics,
    live: LiveRequests,
    responses: ResponseStore,
    rules: AccessRules,
    spans: RequestSpans | None,
    name: str,
) -> Callable[[Request], Awaitable[Response]]:
    """Handler of a route. Errors become responses in the API's own form."""

    async def endpoint(request: Request) -> Response:
        response = await answered(request)
        metrics.answered(name, response.status_code)
        return response

    async def answered(request: Request) -> Response:
        viewer = rules.viewer(request.headers)
        call = ClientCall(request, models, metrics, api.error, live, viewer, responses, route.body, spans)
        try:
            return await route.run(call)
        except ClientDisconnect:
            return Response(status_code=GONE)
        except PellucidError as error:
            status, body = call.error_body(error)
            return json_response(body, status, HEADERS.get(status))

    return endpoint
