"""The page, its files and its routes; running requests and their live traces (docs/serving.md)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from pellucid.base_llm import BaseLLM
from pellucid.errors import InvalidRequest, NotFound, brief
from pellucid.llm import LLM
from pellucid.serve.api import NAMED_SSE, TOGETHER_SSE, Api, ClientCall, Route, array_body, json_response
from pellucid.serve.apis.ollama_fields import capabilities
from pellucid.serve.live_requests import HEADER, LiveRequest
from pellucid.serve.look.prompt_fields import token_fields
from pellucid.serve.look.queries import QUERIES, state
from pellucid.serve.look.token_events import LOOK_GENERATE, LookGeneration
from pellucid.serve.look.trace_reading import TRACE, TraceReading
from pellucid.serve.openai_parts import error_body
from pellucid.serve.request_body import RequestBody
from pellucid.serve.response_store import MOST_REMEMBERED
from pellucid.serve.routes import generation_response, plain_route
from pellucid.tokenize import Tokenizer
from pellucid.trace.budget import LIMIT
from pellucid.trace.frames import TraceFrame, TraceStream
from pellucid.util.checks import real, whole
from pellucid.web.bundle import page_script, web_files

# The page and its files. The page itself needs no key; the requests that it sends do.

SCRIPT = "page.js"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    # Scripts and styles are files of this server. Text of a model or a user cannot run as a script or a style.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    # A site that opens the page gets no reference to the page's window.
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


def _file(path: str) -> Response:
    content = page_script() if path == SCRIPT else web_files().get(path)
    if content is None:
        raise NotFound(f"web/{brief(path)}: the page has no such file")
    kind = KINDS[path[path.rindex(".") :]]
    return Response(content, media_type=kind, headers=HEADERS)


async def _root_or_file(call: ClientCall) -> Response:
    if path := call.request.path_params.get("path"):
        return _file(path)
    if "text/html" in call.request.headers.get("accept", ""):
        return _file("index.html")
    return Response("Pellucid is running", media_type="text/plain")


PAGE = Api(
    "page",
    {
        "GET /": Route(_root_or_file, "The page, for browsers; a short text for Ollama's clients.", media="text/plain"),
        "GET /web/{path:path}": Route(_root_or_file, "A file of the page.", media="text/javascript"),
    },
    error_body,
    prefixes=("/web",),
)


def _models(call: ClientCall) -> dict[str, Any]:
    """The names of the models, and the capabilities of the loaded models."""
    found = [(name, call.models.llm(name)) for name in call.models.names]
    return {
        "models": [
            {"name": name, "loaded": llm is not None, **({"capabilities": capabilities(llm)} if llm else {})}
            for name, llm in found
        ]
    }


async def _model(call: ClientCall) -> Response:
    name = call.models.known(call.request.path_params["name"])
    return await _queried(call, "models", name, QUERIES["models"].body.decode({"name": name}))


def _state(call: ClientCall) -> dict[str, Any]:
    llm = call.models.llm(call.models.known(call.request.path_params["name"]))
    return {"loaded": llm is not None, **(state(llm) if llm else {})}


async def _generate(call: ClientCall) -> Response:
    body = await call.read(LOOK_GENERATE)
    name, fields = call.model(body.fields.model), body.fields
    form = TOGETHER_SSE if fields.points or fields.norms else NAMED_SSE
    stream = form if fields.stream else None
    run = partial(generation_response, call, name, lambda llm: LookGeneration.of(body, llm), stream)
    return await (_remembered(call, name, run) if fields.remembered else run())


async def _trace(call: ClientCall) -> Response:
    body = await call.read(TRACE)
    name = call.model(body.fields.model)

    async def run() -> Response:
        async with call.use(name) as llm:
            if not isinstance(llm, LLM):
                return await _remote(call, llm, "trace", name, body)
            return await generation_response(call, name, lambda _: TraceReading.of(body, llm), None)

    return await (_remembered(call, name, run) if body.fields.remembered else run())


def _query(kind: str) -> Route:
    """The route of the query ``kind``."""
    query = QUERIES[kind]

    async def run(call: ClientCall) -> Response:
        body = await call.read(query.body)
        name = call.model(body.fields.model)
        asked = partial(_queried, call, kind, name, body)
        return await (asked() if kind == "profile" else _remembered(call, name, asked))  # a measurement is made again

    return Route(run, query.summary, query.body)


async def _queried(call: ClientCall, kind: str, name: str, body: RequestBody[Any]) -> Response:
    """Response of a query, computed where the model's engine runs: here or on a replica."""
    async with call.use(name) as llm:
        if not isinstance(llm, LLM):
            return await _remote(call, llm, kind, name, body)
        work = call.models.work(name, lambda _: QUERIES[kind].run(body, llm))
        return json_response(await call.cancelled_on_disconnect(work))


async def _remembered(call: ClientCall, name: str, run: Callable[[], Awaitable[Response]]) -> Response:
    """The response of ``run``, or the remembered response to an equal request of the same key."""
    async with call.use(name):
        known = call.models.remembered(name)
    if found := known.get(call.question):
        return Response(found[0], media_type=found[1], headers={HEADER: call.number})
    response = await run()
    if not isinstance(response, StreamingResponse):
        known.put(call.question, bytes(response.body), str(response.media_type))
        return response
    body, content = response.body_iterator, bytearray()

    async def kept() -> AsyncGenerator[Any, None]:
        async for part in body:
            assert isinstance(part, bytes)
            if len(content) <= MOST_REMEMBERED:  # a longer stream is passed on, and not kept
                content.extend(part)
            yield part
        if b'"finish_reason"' in content and b'"dropped"' not in content:
            known.put(call.question, bytes(content), str(response.media_type))

    response.body_iterator = kept()
    return response


async def _remote(call: ClientCall, llm: BaseLLM[Any], kind: str, name: str, body: RequestBody[Any]) -> Response:
    assert not isinstance(llm, LLM)
    response = await call.cancelled_on_disconnect(llm.look(kind, name, body.raw))
    return Response(response, media_type="application/json", headers={HEADER: call.number})


LOOK = Api(
    "look",
    {
        "GET /look/models": plain_route("The models of this server, and which of them are loaded.", _models),
        "GET /look/models/{name:path}": Route(_model, QUERIES["models"].summary),
        "GET /look/state/{name:path}": plain_route("Requests, steps and cache of a running model.", _state),
        "POST /look/generate": Route(
            _generate,
            "Generated text, token by token, with the most likely alternatives of each token.",
            LOOK_GENERATE,
            stream="text/event-stream",
        ),
        "POST /look/trace": Route(_trace, "Recorded values of a prompt and its continuation.", TRACE),
        **{f"POST /look/{kind}": _query(kind) for kind in QUERIES if kind != "models"},
    },
    error_body,
    prefixes=("/look",),
)


# Running requests, and a live trace of a running request as an event stream (docs/serving.md).

VERSION = 1
"""Version of the event format. It changes when clients have to change."""
MOST_POINTS, MOST_WAIT = 64, 300.0
BEAT = 15.0  # seconds without an event, after which a comment keeps the connection open


def _requests(call: ClientCall) -> dict[str, Any]:
    now = time.monotonic()
    return {
        "object": "list",
        "data": [
            {
                "id": one.number,
                "object": "request",
                "model": one.model,
                "route": one.route,
                "seconds": round(now - one.began, 3),
                "prompt_tokens": sum(len(group.prompt) for group in one.groups),
                "completion_tokens": sum(len(b.ids) for group in one.groups for b in group.outputs),
            }
            for one in call.live.visible_to(call.viewer)
        ],
    }


async def _live_trace(call: ClientCall) -> Response:
    query = call.request.query_params
    names = query.getlist("points")
    if not 1 <= len(names) <= MOST_POINTS:
        raise InvalidRequest(f"points={brief(names)}: name 1 to {MOST_POINTS} points, such as blocks.*.residual")
    limit = whole("limit", _number("limit", query.get("limit", str(LIMIT)), int), 1, 1 << 16)
    wait = real("wait", _number("wait", query.get("wait", "0"), float), 0.0, MOST_WAIT)
    loop, ready = asyncio.get_running_loop(), asyncio.Event()

    def notify() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(ready.set)

    def begin(live: LiveRequest) -> LiveRequest:
        live.attach(names, limit, notify)
        return live

    number = call.request.path_params["number"]
    live = await call.cancelled_on_disconnect(call.live.when_running(number, call.viewer, wait, begin))
    return _TraceResponse(live, ready)


class _TraceResponse(StreamingResponse):
    """Event stream of a request's trace. It closes the trace streams when it ends, or if it never begins."""

    def __init__(self, live: LiveRequest, ready: asyncio.Event) -> None:
        self._request, self._streams = live, live.streams
        headers = {"Cache-Control": "no-cache"}
        events = _events(live, self._streams, ready)
        super().__init__(events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._request.detach(self._streams)


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise InvalidRequest(f"{name}={brief(text)}: must be a number") from None


async def _events(
    live: LiveRequest, streams: Sequence[TraceStream], ready: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    ended = asyncio.ensure_future(live.ended.wait())
    try:
        points = [
            {
                "name": one.name,
                "shape": one.point.shape,
                "dtype": one.point.dtype,
                "heads": list(one.heads),
                "dims": None if one.dims is None else list(one.dims),
                "source": one.point.of_source,
            }
            for one in streams[0].selected
        ]
        yield _event("begin", {"version": VERSION, "request": live.number, "model": live.model, "points": points})
        token_fields_of = [
            [_TokenFields(live.llm.tokenizer, group.prompt) for _ in group.outputs] for group in live.groups
        ]
        dropped = 0
        while True:
            over = live.ended.is_set()
            ready.clear()
            for number, stream in enumerate(streams):
                for frame in stream.frames():
                    choice = _choice(live, number, frame.sequence)
                    yield await run_in_threadpool(_values_event, choice, frame)
            for event in _tokens(live, token_fields_of):
                yield event
            if (lost := sum(stream.dropped for stream in streams)) > dropped:
                yield _event("dropped", {"frames": lost - dropped})
                dropped = lost
            if over:
                break
            waiter = asyncio.ensure_future(ready.wait())
            done, _ = await asyncio.wait({ended, waiter}, timeout=BEAT, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
            if not done:
                yield b": quiet\n\n"
        yield _event("end", {"frames_dropped": dropped})
    finally:
        ended.cancel()


def _choice(live: LiveRequest, group: int, sequence: int) -> int:
    """Index of a sequence among the sequences of all groups: the index of its choice in the response."""
    return sum(len(one.outputs) for one in live.groups[:group]) + sequence


class _TokenFields:
    """Builds the token events of one sequence. ``count`` is the number of tokens that already have an event."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer, self.count, self._grouper = tokenizer, 0, tokenizer.grouper()
        for token in prompt:
            self._grouper.push(token)

    def next(self, token: int) -> dict[str, Any]:
        """Event fields of the next token."""
        self.count += 1
        fields = token_fields(self._tokenizer, token, self._grouper.push(token))
        return {"id": fields.pop("token"), "text": fields.pop("piece"), **fields}


def _tokens(live: LiveRequest, token_fields_of: list[list[_TokenFields]]) -> list[bytes]:
    """Token events of the tokens generated since the last call."""
    events = []
    for number, group in enumerate(live.groups):
        for sequence, (builder, known) in enumerate(zip(group.outputs, token_fields_of[number])):
            for at in range(known.count, len(builder.ids)):
                body = {
                    "choice": _choice(live, number, sequence),
                    "position": len(group.prompt) + at,
                    **known.next(builder.ids[at]),
                }
                events.append(_event("token", body))
    return events


def _values_event(choice: int, frame: TraceFrame) -> bytes:
    body = {"choice": choice, "point": frame.selected.name, "first": frame.positions.start, **array_body(frame.values)}
    return _event("values", body)


def _event(kind: str, body: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(body)}\n\n".encode()


LIVE = Api(
    "live",
    {
        "GET /v1/requests": plain_route("Running requests of the caller's key.", _requests),
        "GET /v1/requests/{number}/trace": Route(
            _live_trace, "Values of a running request, streamed as they are computed.", stream="text/event-stream"
        ),
    },
    error_body,
    prefixes=("/v1/requests",),
)
