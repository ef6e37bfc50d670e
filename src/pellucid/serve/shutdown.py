"""Shutdown of a server: requests that outlast the shutdown timeout get an error in their API's form."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pellucid.serve.api import JSON_LINES, NAMED_SSE, SSE, error_form, json_response

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
        """ASGI entry point."""
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
