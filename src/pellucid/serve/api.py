"""Declarations of an API (``Api``, ``Route``), the request that handlers receive (``ClientCall``), and responses."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from pellucid import errors
from pellucid.base_llm import BaseLLM
from pellucid.errors import reason
from pellucid.serve.live_requests import EVENT, LiveRequests, Viewer, number_of
from pellucid.serve.metrics import Metrics
from pellucid.serve.pool import ModelPool
from pellucid.serve.request_body import BodyType, F, RequestBody
from pellucid.serve.request_spans import RequestSpan, RequestSpans
from pellucid.serve.response_store import ResponseStore
from pellucid.util.registry import discover

# Details of an error that programs read besides its HTTP status: a code, and the name of the wrong field.

CODES: Sequence[tuple[type[Exception], str]] = (
    (errors.ContextOverflow, "context_length_exceeded"),
    (errors.ModelNotFound, "model_not_found"),
    (errors.QueueFull, "server_is_overloaded"),
    (errors.CacheFull, "server_is_overloaded"),
    (errors.DeadlinePassed, "request_timeout"),
)
"""OpenAI's code for each error class. The first class that matches applies."""
UNKNOWN = re.compile(r"unknown option '([^']+)'")
MISSING = re.compile(r"([A-Za-z_]\w*(?:\[\w+\]|\.\w+)*) is missing")
FIELD = re.compile(r"([A-Za-z_]\w*(?:\[\w+\]|\.\w+)*)(?:=|:| has | is empty| does not | must )")
"""Beginning of a message about a wrong field."""


@dataclass(frozen=True)
class ErrorDetails:
    """OpenAI's ``code`` for an error, and ``param``, the name of the wrong field."""

    code: str | None = None
    param: str | None = None


NO_DETAILS = ErrorDetails()


ErrorForm: TypeAlias = "Callable[..., dict[str, Any]]"
"""Builds the error body of a response in an API's form, from its status, its message and its `ErrorDetails`."""


def error_details(error: Exception, schema: Mapping[str, Any] | None) -> ErrorDetails:
    """Code and field of an error, for a request whose body has this schema."""
    code = next((code for kind, code in CODES if isinstance(error, kind)), None)
    schema = schema or {"properties": {}, "required": []}
    if isinstance(error, errors.ContextOverflow):
        texts = [name for name in schema["required"] if name != "model"]
        return ErrorDetails(code, texts[0] if texts else None)
    if not isinstance(error, errors.InvalidRequest):
        return ErrorDetails(code)
    message = str(error)
    if match := UNKNOWN.match(message):
        return ErrorDetails("unknown_parameter", match[1])
    for pattern, kind in ((MISSING, "missing_required_parameter"), (FIELD, "invalid_value")):
        if (match := pattern.match(message)) and re.split(r"[.\[]", match[1])[0] in schema["properties"]:
            return ErrorDetails(kind, match[1])
    return ErrorDetails(code)


T = TypeVar("T")
Events: TypeAlias = "AsyncGenerator[dict[str, Any], None]"
MOST_BODY = 16 << 20  # bytes of a request body
TOO_LONG = f"the body is longer than {MOST_BODY >> 20} MiB: send less"
STATUS: Sequence[tuple[type[errors.PellucidError], int]] = (
    (errors.UnsupportedTask, 501),
    (errors.BodyTooLong, 413),
    (errors.InvalidRequest, 400),
    (errors.TemplateError, 400),
    (errors.NotFound, 404),
    (errors.QueueFull, 503),
    (errors.CacheFull, 503),
    (errors.DeadlinePassed, 408),
    (errors.UnsupportedModel, 501),
    (errors.PellucidError, 500),
)
"""HTTP status of each error class. The first class that matches applies."""


@dataclass(frozen=True)
class Route:
    """A route: ``run`` answers its requests, ``summary`` describes the route, ``body`` declares its request bodies.

    ``media`` is the media type of complete responses, ``stream`` the media type of streams (None: no streams).
    """

    run: Callable[[ClientCall], Awaitable[Response]]
    summary: str
    body: BodyType[Any] | None = None
    stream: str | None = None
    media: str = "application/json"


@dataclass(frozen=True)
class Api:
    """An API: its ``routes`` by method and path ("POST /v1/completions"), and ``error``, which builds an error body.

    ``prefixes`` are beginnings of its paths. If no route matches a path, the error has the form of the API with the
    longest matching prefix.
    """

    name: str
    routes: Mapping[str, Route]
    error: ErrorForm
    prefixes: Sequence[str] = ()


def known_apis() -> Mapping[str, Api]:
    """All APIs in ``apis/``, by name."""
    return discover("pellucid.serve.apis", Api, lambda api: (api.name,))


def error_form(path: str) -> ErrorForm:
    """Return the error form of the API that has a route for ``path``.

    If no API has such a route, return the error form of the API with the longest matching prefix.

    ``path`` is the target of a request, which can also be "*" or "host:443".
    """
    for api in known_apis().values():
        if any(route.partition(" ")[2] == path for route in api.routes):
            return api.error
    known = path if path.startswith("/") else "/"
    matching = ((prefix, api) for api in known_apis().values() for prefix in api.prefixes if known.startswith(prefix))
    return max(matching, key=lambda one: len(one[0]))[1].error


def status_of(error: BaseException, otherwise: int | None = None) -> int:
    """HTTP status of an error. An exception that is not in ``STATUS`` is a bug: it has the status ``otherwise``, or is
    raised."""
    status = next((status for kind, status in STATUS if isinstance(error, kind)), otherwise)
    if status is None:
        raise error
    return status


@dataclass
class ClientCall:
    """A client's HTTP request, with the ``models`` and other state of the server. ``number`` is the request's id.

    ``viewer`` determines which of the ``live`` requests the client may see.
    """

    request: Request
    models: ModelPool
    metrics: Metrics
    error: ErrorForm
    live: LiveRequests
    viewer: Viewer
    responses: ResponseStore
    body: BodyType[Any] | None = None
    """The body that the route declares."""
    spans: RequestSpans | None = None
    """Makes OpenTelemetry spans of requests; None: no spans."""
    number: str = ""
    events: int = 0
    """Number of events that the client received before it lost its connection (``Last-Event-ID``)."""
    question: str = ""
    """Hash of key, path and body."""
    digest: str = ""
    """Hash of key, number, path and body. Requests of other clients have other hashes."""

    def __post_init__(self) -> None:
        self.number = number_of(self.request)
        if event := EVENT.fullmatch(self.request.headers.get("last-event-id", "")):
            self.number, self.events = event[1], int(event[2])

    @asynccontextmanager
    async def use(self, name: str) -> AsyncGenerator[BaseLLM[Any], None]:
        """Use a model on behalf of this client. Raises: as ``ModelPool.use``."""
        async with self.models.use(name) as llm:
            yield llm.for_client(self.viewer.client)

    def span(self, model: str) -> RequestSpan | None:
        """OpenTelemetry span of this request, which ``model`` answers; None if the server makes no spans."""
        return self.spans.span(self.request, model, lambda error: status_of(error, 500)) if self.spans else None

    def error_body(self, error: Exception) -> tuple[int, dict[str, Any]]:
        """HTTP status and error body in the API's form. Raises as ``status_of``."""
        status, schema = status_of(error), None if self.body is None else self.body.schema
        return status, self.error(status, str(error), error_details(error, schema))

    def model(self, name: str) -> str:
        """Name of the model that answers a request for the model ``name``.

        The server's first model answers a request without a name. Raises ModelNotFound for an unknown name.
        """
        return self.models.known(name or self.models.names[0])

    def queried_model(self) -> str:
        """Name of the model in the query string; by default the server's first model."""
        return self.model(self.request.query_params.get("model", ""))

    async def read(self, body: BodyType[F]) -> RequestBody[F]:
        """Receive and decode the body."""
        return body.decode(await self.json())

    async def json(self) -> Any:
        """Read and parse the body."""
        parts, size = list[bytes](), 0
        async for part in self.request.stream():
            size += len(part)
            if size > MOST_BODY:
                raise errors.BodyTooLong(TOO_LONG)
            parts.append(part)
        body = b"".join(parts)
        identity = (self.viewer.key.encode(), self.request.scope["path"].encode(), body)
        self.question = hashlib.blake2b(b"\0".join(identity), digest_size=16).hexdigest()
        self.digest = hashlib.blake2b(f"{self.question}{self.number}".encode(), digest_size=16).hexdigest()
        try:
            return json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise errors.InvalidRequest(f"the body is not JSON: {reason(error)}") from error

    async def cancelled_on_disconnect(self, work: Coroutine[Any, Any, T]) -> T:
        """Result of ``work``. Cancels ``work`` when the client disconnects.

        Raises:
            ClientDisconnect: the client disconnected first.
        """

        async def disconnected() -> None:
            while (await self.request.receive())["type"] != "http.disconnect":
                pass

        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
            return task.result()
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def json_response(
    content: Mapping[str, Any] | list[Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON response."""
    # ASCII only: text may hold a lone surrogate, which JSON can escape and UTF-8 cannot encode.
    value = content if isinstance(content, list) else dict(content)
    return Response(json.dumps(value), status, headers, media_type="application/json")


def array_body(values: NDArray[Any]) -> dict[str, Any]:
    """An array for JSON: base64 of its little-endian bytes (int32 or float32), its shape and its dtype."""
    is_integer = values.dtype.kind == "i"
    numbers = np.ascontiguousarray(values, "<i4" if is_integer else "<f4")
    return {
        "shape": list(values.shape),
        "dtype": "int32" if is_integer else "float32",
        "data": base64.b64encode(numbers.tobytes()).decode(),
    }


SSE = "text/event-stream"


@dataclass(frozen=True)
class StreamForm:
    """Encoding of a stream: ``encode`` for each event, and ``end`` after the last event.

    ``encode_error`` encodes an error in the middle of the stream (None: ``encode`` also encodes errors). A stream
    that is not ``repeatable`` differs in each run of its request, and its events have no ids.
    """

    media_type: str
    encode: Callable[[dict[str, Any]], bytes]
    end: bytes = b""
    encode_error: Callable[[dict[str, Any]], bytes] | None = None
    repeatable: bool = True

    def error(self, event: dict[str, Any]) -> bytes:
        """Encode an error in the middle of the stream."""
        return (self.encode_error or self.encode)(event)


def _data(event: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def _named(event: Mapping[str, Any]) -> bytes:
    event = {"type": "error", **event}  # the default is for APIs whose errors have no type
    return f"event: {event['type']}\n".encode() + _data(event)


DATA_SSE = StreamForm(SSE, _data, b"data: [DONE]\n\n")
"""Server-sent events of OpenAI's completions APIs. Events have only data, and the last event is [DONE]."""
NAMED_SSE = StreamForm(SSE, _named)
"""Server-sent events whose name is their ``type``."""
TOGETHER_SSE = StreamForm(SSE, lambda event: b"".join(map(_named, event.get("events", [event]))), repeatable=False)
"""As ``NAMED_SSE``, for streams that differ in each run. {"events": [...]} are several events in one write."""
JSON_LINES = StreamForm("application/x-ndjson", lambda event: json.dumps(event).encode() + b"\n")
"""Newline-delimited JSON: a line for each event."""


def with_event_ids(form: StreamForm, call: ClientCall) -> StreamForm:
    """Server-sent events with ids. A client that lost its connection resumes after the last id that it received.

    An error event has no id. A client that reconnects after an error therefore gets the event that the error replaced.
    """
    count = call.events

    def encode(event: dict[str, Any]) -> bytes:
        nonlocal count
        count += 1
        return f"id: {call.number}:{count}\n".encode() + form.encode(event)

    return replace(form, encode=encode, encode_error=form.encode)


async def event_stream(
    call: ClientCall, events: Events, form: StreamForm, headers: Mapping[str, str] | None = None
) -> Response:
    """A streamed response.

    This function waits for the first event. An error before the first event therefore sets the HTTP status. A later
    error becomes an event.
    """

    async def begun() -> dict[str, Any] | None:
        return await anext(events, None)

    try:
        first = await call.cancelled_on_disconnect(begun())
    except BaseException:
        await events.aclose()
        raise

    async def encoded() -> AsyncGenerator[bytes, None]:
        async with aclosing(events):
            event = first
            while event is not None:
                yield form.encode(event)
                try:
                    event = await anext(events, None)
                except Exception as failed:
                    yield form.error(call.error_body(failed)[1])
                    return
            yield form.end

    call.request.state.stream = form
    headers = {"Cache-Control": "no-cache", **(headers or {})}
    return StreamingResponse(encoded(), media_type=form.media_type, headers=headers)
