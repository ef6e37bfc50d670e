"""HTTP → request → response, for all APIs. The other half is the API's own file in ``apis/``.

That file declares the fields of a body, and how they become engine requests (``of``), which a route here runs. Every
stream consists of `StreamedToken`; the API's file formats the tokens (``stream``), or the complete texts (``answer``).
Functions that read fields raise InvalidRequest for a wrong field; the message names it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.base_llm import BaseLLM
from pellucid.engine.output import TokenOutput
from pellucid.engine.request import Request
from pellucid.serve.api import SSE, ClientCall, Events, Route, StreamForm, event_stream, json_response, with_event_ids
from pellucid.serve.chat.answer_parser import AnswerParser, Part, parsed
from pellucid.serve.live_requests import HEADER, LiveRequest
from pellucid.serve.request_body import BodyType, ModelFields, RequestBody

M = TypeVar("M", bound=ModelFields)


def plain_route(summary: str, answer: Callable[[ClientCall], Any]) -> Route:
    """A route whose response ``answer`` computes from the call, without a model."""

    async def run(call: ClientCall) -> Response:
        return json_response(answer(call))

    return Route(run, summary)


def facts_route(summary: str, answer: Callable[[BaseLLM[Any], str], Mapping[str, Any]]) -> Route:
    """A route whose response ``answer`` computes from the model in the query string, and from its name."""

    async def run(call: ClientCall) -> Response:
        name = call.queried_model()
        async with call.use(name) as llm:
            return json_response(await run_in_threadpool(answer, llm, name))

    return Route(run, summary)


def model_route(
    summary: str,
    body_type: BodyType[M],
    answer: Callable[[RequestBody[M], BaseLLM[Any], str, str], Mapping[str, Any] | list[Any]],
) -> Route:
    """A route whose response ``answer`` computes from the body, the model, its name and the number of the request."""

    async def run(call: ClientCall) -> Response:
        body = await call.read(body_type)
        name = call.model(body.fields.model)
        async with call.use(name) as llm:
            return json_response(await run_in_threadpool(answer, body, llm, name, call.number))

    return Route(run, summary, body_type)


class Generating(Protocol):
    """A parsed request that generates, for servers and batches. ``groups``: the engine's requests, one per prompt."""

    @property
    def groups(self) -> Sequence[Request]: ...

    def answer(self, name: str, number: str) -> dict[str, Any] | list[Any]:
        """Response body of the model ``name`` with the id ``number``, after the groups have ended."""
        ...


class StreamedToken(NamedTuple):
    """A token of a stream, and the parts of the text that it completes. ``choice`` is the text's index in the response.

    ``streamed`` is the number of the text's tokens so far, with this token.
    """

    choice: int
    group: Request
    output: TokenOutput
    parts: Sequence[Part]
    streamed: int


Tokens: TypeAlias = "AsyncGenerator[StreamedToken, None]"


class Streaming(Generating, Protocol):
    """A request that generates and can be streamed."""

    def parsers(self) -> Sequence[AnswerParser]:
        """New parsers of the texts of a group; none: the texts are not parsed."""
        ...

    def stream(self, name: str, number: str, tokens: Tokens) -> Events:
        """Events of the streamed response. The request runs, and ``tokens`` yields its tokens."""
        ...


class Unparsed:
    """Base of requests whose texts have no reasoning and no tool calls."""

    def parsers(self) -> Sequence[AnswerParser]:
        return ()


def tokens_of(request: Streaming) -> Tokens:
    """Run the groups of a request, one after another. Yields each token.

    Raises:
        QueueFull: the queue is full. The call itself raises this error, before the iteration begins, so that the error
            sets the HTTP status.
    """
    return _tokens_of(request, request.groups[0].stream())


async def _tokens_of(request: Streaming, running: AsyncGenerator[TokenOutput, None] | None) -> Tokens:
    first = 0
    for group in request.groups:
        counts = [0] * len(group.outputs)
        async with aclosing(parsed(running or group.stream(), request.parsers())) as tokens:
            async for output, parts in tokens:
                counts[output.sequence] += 1
                yield StreamedToken(first + output.sequence, group, output, parts, counts[output.sequence])
        first, running = first + len(counts), None


def generating_route(
    summary: str,
    body_type: BodyType[Any],
    read: Callable[[RequestBody[Any], BaseLLM[Any]], Streaming],
    form: StreamForm,
) -> Route:
    """A route that generates: ``read`` makes a request of the body, and ``form`` encodes its stream."""

    async def run(call: ClientCall) -> Response:
        body = await call.read(body_type)
        name, stream = call.model(body.fields.model), form if body.fields.stream else None
        return await generation_response(call, name, lambda llm: read(body, llm), stream)

    return Route(run, summary, body_type, form.media_type)


async def generation_response(
    call: ClientCall, name: str, read: Callable[[BaseLLM[Any]], Any], stream: StreamForm | None
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
                    async with (
                        aclosing(tokens_of(request)) as tokens,
                        aclosing(request.stream(name, call.number, tokens)) as made,
                    ):
                        async for event in made:
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
