"""What a file of ``apis/`` declares, and what its functions get."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from pellucid.errors import (
    CacheFull,
    DeadlinePassed,
    InvalidRequest,
    NotFound,
    PellucidError,
    QueueFull,
    TemplateError,
)
from pellucid.errors.messages import reason
from pellucid.serve.body import Body
from pellucid.serve.live import EVENT, LiveRequests, Viewer, number_of
from pellucid.serve.metrics import Metrics
from pellucid.serve.model import ServedModel
from pellucid.serve.pool import ModelPool
from pellucid.serve.problem import ErrorForm, problem_of
from pellucid.serve.responses.store import ResponseStore
from pellucid.serve.schema import Schema, check_names
from pellucid.util.registry import discover

T = TypeVar("T")
Events: TypeAlias = "AsyncGenerator[dict[str, Any], None]"
MOST_BODY = 16 << 20  # bytes of a request's body
STATUS: Sequence[tuple[type[PellucidError], int]] = (
    (InvalidRequest, 400),
    (TemplateError, 400),
    (NotFound, 404),
    (QueueFull, 503),
    (CacheFull, 503),
    (DeadlinePassed, 408),
    (PellucidError, 500),
)
"""The HTTP status of each error, the first that fits."""


@dataclass(frozen=True)
class Route:
    """What a path does: ``run`` answers, ``summary`` says what, ``body`` is the schema of a request's body.

    ``media`` is the media type of its answers, ``stream`` that of its streams, if it has any.
    """

    run: Callable[[ClientCall], Awaitable[Response]]
    summary: str
    body: Schema | None = None
    stream: str | None = None
    media: str = "application/json"


@dataclass(frozen=True)
class Api:
    """An API: its ``routes``, such as "POST /v1/completions"; ``error`` makes its form of an error of a status.

    ``prefixes`` are beginnings of its paths: an error before a route is found has the form of the longest that fits.
    """

    name: str
    routes: Mapping[str, Route]
    error: ErrorForm
    prefixes: Sequence[str] = ()


def known_apis() -> Mapping[str, Api]:
    """Every API in the folder, by name."""
    return discover("pellucid.serve.apis", Api, lambda api: (api.name,))


def error_form(path: str) -> ErrorForm:
    """The form of an error for a path, which may be none ("*", "host:443")."""
    known = path if path.startswith("/") else "/"
    found = (
        (prefix, api) for api in known_apis().values() for prefix in api.prefixes if known.startswith(prefix)
    )
    return max(found, key=lambda one: len(one[0]))[1].error


def status_of(error: Exception) -> int:
    """The HTTP status of an error. What is not the user's mistake is raised."""
    for kind, status in STATUS:
        if isinstance(error, kind):
            return status
    raise error


@dataclass
class ClientCall:
    """A request of a client: its ``body``, the ``models``, and a ``number`` that no other request has.

    ``viewer`` says which of the ``live`` requests the client may see.
    """

    request: Request
    models: ModelPool
    metrics: Metrics
    error: ErrorForm
    live: LiveRequests
    viewer: Viewer
    responses: ResponseStore
    schema: Schema | None = None
    """The schema of the body."""
    number: str = ""
    events: int = 0
    """How many events of a stream the client has had before it lost its connection (``Last-Event-ID``)."""
    digest: str = ""
    """Of its key, its number, its path and its body: nobody else's request has it."""

    def __post_init__(self) -> None:
        self.number = number_of(self.request)
        if found := EVENT.fullmatch(self.request.headers.get("last-event-id", "")):
            self.number, self.events = found[1], int(found[2])

    @asynccontextmanager
    async def use(self, name: str) -> AsyncGenerator[ServedModel, None]:
        """A model for the client that asks. Raises: as ``ModelPool.use``."""
        async with self.models.use(name) as llm:
            yield llm.for_client(self.viewer.client)

    def error_body(self, error: Exception) -> tuple[int, dict[str, Any]]:
        """The status of an error, and what the API says of it. What is not the user's mistake is raised."""
        status = status_of(error)
        return status, self.error(status, str(error), problem_of(error, self.schema))

    def model(self, fields: Body) -> str:
        """The name of the model that answers a request.

        The server's first model answers a request that names none, unless the schema requires a name, as OpenAI's and
        Anthropic's do, and the server does not answer to any name.

        Raises:
            ModelNotFound: the server has no such model.
            InvalidRequest: the name is no text, or is missing.
        """
        required = "model" in (self.schema or {}).get("required", ()) and not self.models.any_name
        return self.models.known(fields.model("" if required else self.models.names[0]))

    async def json(self) -> Any:
        """The body.

        Raises:
            InvalidRequest: it is too long, no JSON, or has a field that its schema does not have.
        """
        parts, size = list[bytes](), 0
        async for part in self.request.stream():
            size += len(part)
            if size > MOST_BODY:
                raise InvalidRequest(f"the body is longer than {MOST_BODY >> 20} MiB: send less")
            parts.append(part)
        body = b"".join(parts)
        whole = (self.viewer.key.encode(), self.number.encode(), self.request.scope["path"].encode(), body)
        self.digest = hashlib.blake2b(b"\0".join(whole), digest_size=16).hexdigest()
        try:
            found = json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"the body is no JSON: {reason(error)}") from error
        if self.schema is not None:
            check_names(self.schema, found)
        return found

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


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no value of JSON")


def answer(
    content: Mapping[str, Any] | list[Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON response."""
    # ASCII alone: a text may have half of a character that JSON can escape and UTF-8 cannot have.
    value = content if isinstance(content, list) else dict(content)
    return Response(json.dumps(value), status, headers, media_type="application/json")


def array_body(values: NDArray[Any]) -> dict[str, Any]:
    """An array for JSON: little-endian bytes in base64, with the shape and the type."""
    whole = values.dtype.kind == "i"
    numbers = np.ascontiguousarray(values, "<i4" if whole else "<f4")
    return {
        "shape": list(values.shape),
        "dtype": "int32" if whole else "float32",
        "data": base64.b64encode(numbers.tobytes()).decode(),
    }


SSE = "text/event-stream"


@dataclass(frozen=True)
class StreamForm:
    """How events are written: each by ``encode``, and ``end`` after the last.

    ``encode_error``: an error in their midst, where that is not an event like the others.
    """

    media_type: str
    encode: Callable[[dict[str, Any]], bytes]
    end: bytes = b""
    encode_error: Callable[[dict[str, Any]], bytes] | None = None

    def error(self, event: dict[str, Any]) -> bytes:
        """An error in the midst of events."""
        return (self.encode_error or self.encode)(event)


def _data(event: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def _named(event: Mapping[str, Any]) -> bytes:
    event = {"type": "error", **event}  # an error of an API whose errors have no type
    return f"event: {event['type']}\n".encode() + _data(event)


DATA = StreamForm(SSE, _data, b"data: [DONE]\n\n")
"""Server-sent events as in OpenAI's older APIs."""
NAMED = StreamForm(SSE, _named)
"""Server-sent events that have their ``type`` as a name."""
LINES = StreamForm("application/x-ndjson", lambda event: json.dumps(event).encode() + b"\n")
"""A line of JSON for each event."""


def numbered(form: StreamForm, call: ClientCall) -> StreamForm:
    """Server-sent events with ids: a client that has lost its connection resumes after the last id.

    An error has no id, so that a client that resumes asks for the event in the error's place.
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
    """A response of events.

    The first event is awaited here, so that an error before it has its own status; a later one is an event.
    """

    async def begun() -> dict[str, Any] | None:
        return await anext(events, None)

    try:
        first = await call.unless_gone(begun())
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
