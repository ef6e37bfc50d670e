"""The server: the routes of all APIs, behind the guard."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from pellucid.errors import PellucidError
from pellucid.serve.api import Api, ClientCall, answer, known_apis
from pellucid.serve.guard import AccessRules, Guard
from pellucid.serve.pool import ModelPool

GONE = 499  # nobody reads it
RETRY = {"Retry-After": "1"}


def create_app(models: ModelPool, rules: AccessRules) -> Starlette:
    """The application, for any ASGI server."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        yield
        await models.close()

    routes = [
        Route(name.split(" ")[1], _served(api, run, models), methods=[name.split(" ")[0]])
        for api in known_apis().values()
        for name, run in api.routes.items()
    ]
    middleware = [Middleware(Guard, rules)]
    if rules.origins:
        allowed = ["Authorization", "Content-Type", "X-Api-Key"]
        cors = Middleware(
            CORSMiddleware, allow_origins=list(rules.origins), allow_methods=["*"], allow_headers=allowed
        )
        middleware.insert(0, cors)
    return Starlette(routes=routes, middleware=middleware, lifespan=lifespan)


def _served(
    api: Api, run: Callable[[ClientCall], Awaitable[Response]], models: ModelPool
) -> Callable[[Request], Awaitable[Response]]:
    """The function of a route: errors have the API's own form."""

    async def endpoint(request: Request) -> Response:
        try:
            return await run(ClientCall(request, models))
        except ClientDisconnect:
            return Response(status_code=GONE)
        except PellucidError as error:
            status, content = api.failure(error)
            response = answer(content, status)
            if status == 503:
                response.headers.update(RETRY)
            return response

    return endpoint
