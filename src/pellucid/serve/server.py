"""The server: its ASGI application behind the access rules (``guard.py``), run until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import starlette.routing
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pellucid.base_llm import BaseLLM
from pellucid.errors import InvalidRequest, PellucidError, reason
from pellucid.llm import LLM
from pellucid.runtime.memory import share_heaps
from pellucid.serve.api import JSON_LINES, NAMED_SSE, SSE, Api, ClientCall, Route, error_form, json_response, known_apis
from pellucid.serve.connections import USUAL, Connection, Connections, possible_connections
from pellucid.serve.guard import AccessRules, Guard
from pellucid.serve.live_requests import LiveRequests
from pellucid.serve.metrics import Metrics
from pellucid.serve.pool import ModelPool, Pull
from pellucid.serve.request_spans import GONE, RequestSpans, request_spans
from pellucid.serve.response_store import ResponseStore
from pellucid.util.interpreter import collect_requests

# The server's ASGI application: the routes of all APIs, behind the access rules (``guard.py``).

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

    metrics, live = Metrics(models), LiveRequests()
    make_call = partial(ClientCall, models=models, metrics=metrics, live=live, responses=ResponseStore(), spans=spans)
    routes = [
        starlette.routing.Route(
            name.split(" ")[1], _served(name, api, one, rules, make_call), methods=[name.split(" ")[0]]
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
    name: str, api: Api, route: Route, rules: AccessRules, make_call: Callable[..., ClientCall]
) -> Callable[[Request], Awaitable[Response]]:
    """Handler of a route. Errors become responses in the API's own form."""

    async def endpoint(request: Request) -> Response:
        call = make_call(request, error=api.error, viewer=rules.viewer(request.headers), body=route.body)
        response = await answered(call)
        call.metrics.answered(name, response.status_code)
        return response

    async def answered(call: ClientCall) -> Response:
        try:
            return await route.run(call)
        except ClientDisconnect:
            return Response(status_code=GONE)
        except PellucidError as error:
            status, body = call.error_body(error)
            return json_response(body, status, HEADERS.get(status))

    return endpoint


# Runs the server until SIGTERM or Ctrl-C.

MESSAGE = "the server is shutting down: retry later"
STATUS = 503


class Shutdown:
    """ASGI middleware. ``end`` cancels the running requests, and each client gets an error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._running = set[asyncio.Task[None]]()
        self._over = False

    def end(self) -> None:
        """Cancel the running requests."""
        self._over = True
        for task in self._running:
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self._app(scope, receive, send)
            return
        begun: str | None = None

        async def noted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = Headers(raw=list(message["headers"])).get("content-type", "")
            await send(message)

        self._running.add(task)
        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            if not self._over:
                raise
            error = error_form(scope["path"])(STATUS, MESSAGE)
            if begun is None:
                await json_response(error, STATUS, {"Retry-After": "1"})(scope, receive, send)
                return
            usual = {SSE: NAMED_SSE, JSON_LINES.media_type: JSON_LINES}.get(begun.partition(";")[0])
            form = scope.get("state", {}).get("stream", usual)
            data = b"" if form is None else form.error(error)
            await send({"type": "http.response.body", "body": data, "more_body": False})
        finally:
            self._running.discard(task)


READ_TIMEOUT = 20.0  # seconds for the headers of a request, and for its body
LAST = 5  # seconds for sending errors to requests that outlast the shutdown timeout


@dataclass(frozen=True)
class Settings:
    """Settings of a server: its address and limits.

    Running requests have ``shutdown_timeout`` seconds to end after SIGTERM.

    With ``first``, the first model is loaded before the server answers. With ``any_model``, the first model answers to
    every name. ``connections`` limits the open connections. ``read_timeout`` is the time limit in seconds for the
    headers of a request. The limit for the body is ``read_timeout``, plus one second for each ``guard.SLOWEST`` bytes.
    """

    host: str
    port: int
    shutdown_timeout: float
    first: bool = True
    any_model: bool = False
    connections: int = USUAL
    read_timeout: float = READ_TIMEOUT


def serve(
    names: Sequence[str],
    load: Callable[[str], BaseLLM[Any]],
    limit: int,
    rules: AccessRules,
    settings: Settings,
    ready: Callable[[str], object] = lambda url: None,
    pull: Pull | None = None,
) -> None:
    """Serve the models ``names`` until SIGTERM or Ctrl-C. Calls ``ready`` with the URL when the server listens.

    ``pull`` downloads a model for a client, as ``ModelPool`` describes.

    Raises:
        InvalidRequest: the address is in use, or does not belong to this machine, or a variable of OpenTelemetry has a
            wrong value.
        PellucidError: the first model cannot be loaded.
    """
    share_heaps()
    listening, spans = listen(settings), request_spans(os.environ)
    models = ModelPool(names, load, limit, any_name=settings.any_model, pull=pull)
    said = list(names)
    if settings.first:
        try:
            llm = load(names[0])
        except BaseException:
            listening.close()
            raise
        models.put(names[0], llm)
        if isinstance(llm, LLM):
            said[0] += f" (prefix cache of up to {llm.runner.cache.prefixes.limit / 1e9:.1f} GB: --cache-memory)"
    app = create_app(models, rules, settings.read_timeout, spans)
    run_app(app, said, listening, settings, ready)


def run_app(
    app: Starlette,
    names: Sequence[str],
    listening: socket.socket,
    settings: Settings,
    ready: Callable[[str], object] = lambda url: None,
    begin: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Serve an application at a listening socket until SIGTERM or Ctrl-C.

    ``begin`` runs in the event loop beside the server. Its exception ends the server and is raised by ``run_app``.
    """
    host, port = listening.getsockname()[:2]
    connections = Connections(possible_connections(settings.connections), settings.read_timeout)
    ending = Shutdown(app)
    http: Any = partial(Connection, connections)  # uvicorn calls it for each connection
    config = uvicorn.Config(
        ending,
        http=http,
        ws="none",
        backlog=connections.backlog,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout) + LAST,
        server_header=False,
    )
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"serving {', '.join(names)} at {url}", file=sys.stderr, flush=True)
    collect_requests()
    # The socket already listens. Requests wait for the event loop.
    ready(url)
    _Server(config, ending, settings.shutdown_timeout, begin).run(sockets=[listening])


class _Server(uvicorn.Server):
    """A server that runs ``begin`` beside the requests. At shutdown, requests have ``shutdown_timeout`` seconds."""

    def __init__(
        self,
        config: uvicorn.Config,
        ending: Shutdown,
        shutdown_timeout: float,
        begin: Callable[[], Awaitable[object]] | None,
    ) -> None:
        super().__init__(config)
        self._ending, self._shutdown_timeout, self._begin = ending, shutdown_timeout, begin
        self._beginning: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        if self._begin:
            self._beginning = asyncio.ensure_future(self._begun(self._begin))
        await super().serve(sockets)
        if self._failure:
            raise self._failure

    async def _begun(self, begin: Callable[[], Awaitable[object]]) -> None:
        try:
            await begin()
        except Exception as error:
            self._failure, self.should_exit = error, True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._beginning:
            self._beginning.cancel()
            await asyncio.gather(self._beginning, return_exceptions=True)
        timer = asyncio.get_running_loop().call_later(self._shutdown_timeout, self._ending.end)
        await super().shutdown(sockets)
        timer.cancel()


def listen(settings: Settings) -> socket.socket:
    """Open a listening socket. Raises InvalidRequest if the address cannot be used."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where SO_REUSEADDR lets two programs use one port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise InvalidRequest(
            f"cannot listen at {settings.host}, port {settings.port}: {reason(error)}: choose another --host or --port"
        ) from error
    return listener
