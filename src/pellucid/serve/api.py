"""What a file of ``apis/`` declares, and what its functions get."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import reason
from pellucid.serve.pool import ModelPool
from pellucid.util.registry import discover

T = TypeVar("T")
Events: TypeAlias = "AsyncGenerator[dict[str, Any], None]"
MOST_BODY = 16 << 20  # bytes of a request's body


@dataclass(frozen=True)
class Api:
    """An API: its ``routes``, "POST /v1/completions" → function; ``failure`` makes its form of an error."""

    name: str
    routes: Mapping[str, Callable[[ClientCall], Awaitable[Response]]]
    failure: Callable[[Exception], tuple[int, dict[str, Any]]]


def known_apis() -> Mapping[str, Api]:
    """Every API in the folder, by name."""
    return discover("pellucid.serve.apis", Api, lambda api: (api.name,))


@dataclass
class ClientCall:
    """A request of a client: its ``body``, the ``models``, and a ``number`` that no other request has."""

    request: Request
    models: ModelPool
    number: str = field(default_factory=lambda: secrets.token_hex(12))

    async def json(self) -> Any:
        """The body.

        Raises:
            InvalidRequest: it is too long, or no JSON.
        """
        parts, size = list[bytes](), 0
        async for part in self.request.stream():
            size += len(part)
            if size > MOST_BODY:
                raise InvalidRequest(f"the body is longer than {MOST_BODY >> 20} MiB: send less")
            parts.append(part)
        try:
            return json.loads(b"".join(parts))
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"the body is no JSON: {reason(error)}") from error

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which is cancelled when the client goes.

        Raises:
            ClientDisconnect: it has gone.
        """
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
            return task.result()
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def answer(content: Mapping[str, Any], status: int = 200) -> Response:
    """A JSON response."""
    return JSONResponse(dict(content), status)


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


async def event_stream(
    events: Events, failure: Callable[[Exception], tuple[int, dict[str, Any]]]
) -> Response:
    """Server-sent events, ended by "[DONE]".

    The first event is awaited here, so that an error before it has its own status; a later one is an event.
    """
    try:
        first = await anext(events, None)
    except BaseException:
        await events.aclose()
        raise

    async def lines() -> AsyncGenerator[bytes, None]:
        async with aclosing(events):
            event = first
            while event is not None:
                yield _event(event)
                try:
                    event = await anext(events, None)
                except Exception as error:
                    yield _event(failure(error)[1])
                    return
            yield b"data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
