"""Answers requests that generate text, with complete or streamed responses, for any API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.engine.request import Request
from pellucid.serve.api import SSE, ClientCall, Events, Route, StreamForm, event_stream, json_response, with_event_ids
from pellucid.serve.live_requests import HEADER, LiveRequest
from pellucid.serve.request_body import BodyType, RequestBody
from pellucid.serve.served_model import ServedModel


class Generating(Protocol):
    """A parsed request that generates. The HTTP server and batches run it in the same way."""

    @property
    def groups(self) -> Sequence[Request]:
        """The engine requests."""
        ...

    def answer(self, name: str, number: str) -> dict[str, Any] | list[Any]:
        """Response body of the model ``name`` with the id ``number``, after the groups have ended."""
        ...


class Streaming(Generating, Protocol):
    """A request that generates and can be streamed."""

    def stream(self, name: str, number: str) -> Events:
        """Events of the streamed response."""
        ...


def generating_route(
    summary: str, body_type: BodyType[Any], read: Callable[[RequestBody[Any], ServedModel], Streaming], form: StreamForm
) -> Route:
    """A route that generates: ``read`` makes a request of the body, and ``form`` encodes its stream."""

    async def run(call: ClientCall) -> Response:
        body = await call.read(body_type)
        name, stream = call.model(body.fields.model), form if body.fields.stream else None
        return await generation_response(call, name, lambda llm: read(body, llm), stream)

    return Route(run, summary, body_type, form.media_type)


async def generation_response(
    call: ClientCall, name: str, read: Callable[[ServedModel], Any], stream: StreamForm | None
) -> Response:
    """Run the request that ``read`` parses for the model ``name``. ``stream`` encodes a stream (None: no stream)."""
    async with AsyncExitStack() as stack:
        if span := call.span(name):
            stack.enter_context(span)
        llm = await stack.enter_async_context(call.use(name))
        request = await run_in_threadpool(read, llm)
        for at, group in enumerate(request.groups):
            group.set_name(f"{call.digest}:{at}", call.events > 0)
        route = call.request.scope["path"]
        live = LiveRequest(call.number, call.viewer.key, route, name, llm, request.groups)
        stack.enter_context(call.live.running(live))
        call.number = live.number
        headers = {HEADER: call.number}
        if span:
            span.begin(call.number, request.groups, stream=stream is not None)
        if stream is None:
            try:
                await call.cancelled_on_disconnect(run_groups(request.groups))
            finally:
                call.metrics.observe(name, request.groups)
            return json_response(await run_in_threadpool(request.answer, name, call.number), headers=headers)
        resources = stack.pop_all()
        resumable = stream.repeatable and [group.resumable for group in request.groups] == [True]
        if stream.media_type == SSE and resumable:
            stream = with_event_ids(stream, call)
        else:
            call.events = 0

        async def events() -> AsyncGenerator[dict[str, Any], None]:
            async with resources:
                to_skip = call.events
                try:
                    async for event in request.stream(name, call.number):
                        # The client received the first events before it lost its connection.
                        if to_skip > 0:
                            to_skip -= 1
                        else:
                            yield event
                finally:
                    call.metrics.observe(name, request.groups)

        return await event_stream(call, events(), stream, headers)


async def run_groups(groups: Sequence[Request]) -> None:
    """Start all groups and wait until they have ended."""
    try:
        for group in groups:
            group.start()
        for group in groups:
            await group.finished()
    finally:
        for group in groups:
            group.close()
