"""The server: the routes of all APIs, behind the guard."""

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
from pellucid.serve.api import Api, ClientCall, Route, answer, error_form, known_apis, status_of
from pellucid.serve.guard import AccessRules, Guard
from pellucid.serve.live import LiveRequests
from pellucid.serve.metrics import Metrics
from pellucid.serve.pool import ModelPool

GONE = 499  # nobody reads it
RETRY = {"Retry-After": "1"}


def create_app(models: ModelPool, rules: AccessRules) -> Starlette:
    """The application, for any ASGI server."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        yield
        await models.close()

    metrics, live = Metrics(models), LiveRequests()
    routes = [
        starlette.routing.Route(
            name.split(" ")[1],
            _served(api, one, models, metrics, live, rules, name),
            methods=[name.split(" ")[0]],
        )
        for api in known_apis().values()
        for name, one in api.routes.items()
    ]
    middleware = [Middleware(Guard, rules)]
    if rules.origins:
        cors = Middleware(
            CORSMiddleware, allow_origins=list(rules.origins), allow_methods=["*"], allow_headers=["*"]
        )
        middleware.insert(0, cors)
    handlers: dict[Any, Any] = {HTTPException: _no_route, Exception: _failed}
    app = Starlette(routes=routes, middleware=middleware, lifespan=lifespan, exception_handlers=handlers)
    app.state.live = live
    return app


async def _no_route(request: Request, error: HTTPException) -> Response:
    """The answer to a path or a method that no API has."""
    path = request.url.path
    message = f"{request.method} {path[:200]}: {error.detail.lower()}"
    return answer(error_form(path)(error.status_code, message), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """The answer where a bug is; its traceback goes to the server's log."""
    message = f"a bug of the server: {type(error).__name__}; its log has more"
    return answer(error_form(request.url.path)(500, message), 500)


def _served(
    api: Api,
    route: Route,
    models: ModelPool,
    metrics: Metrics,
    live: LiveRequests,
    rules: AccessRules,
    name: str,
) -> Callable[[Request], Awaitable[Response]]:
    """The function of a route: errors have the API's own form."""

    async def endpoint(request: Request) -> Response:
        response = await answered(request)
        metrics.answered(name, response.status_code)
        return response

    async def answered(request: Request) -> Response:
        try:
            viewer = rules.viewer(request.headers)
            call = ClientCall(request, models, metrics, api.error, live, viewer, route.body)
            return await route.run(call)
        except ClientDisconnect:
            return Response(status_code=GONE)
        except PellucidError as error:
            status = status_of(error)
            return answer(api.error(status, str(error)), status, RETRY if status == 503 else None)

    return endpoint
