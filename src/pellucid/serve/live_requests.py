"""Running requests, and the clients that may see them: clients with the request's key or an admin key."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request as HTTPRequest

from pellucid.base_llm import BaseLLM
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest, NotFound, brief
from pellucid.trace.frames import TraceStream

T = TypeVar("T")
HEADER = "X-Request-Id"
NUMBER = re.compile(r"[A-Za-z0-9._:-]{1,128}")
EVENT = re.compile(rf"({NUMBER.pattern}):(\d{{1,9}})")
"""Id of an event: the number of the request, and the event's own number."""


@dataclass(eq=False)
class LiveRequest:
    """A running request: its ``number``, its client's ``key``, its ``route``, its model, and its engine ``groups``.

    ``streams`` are the trace streams of its viewer.
    """

    number: str
    key: str
    route: str
    model: str
    llm: BaseLLM[Any]
    groups: Sequence[Request]
    streams: list[TraceStream] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def attach(self, names: Sequence[str], limit: int, notify: Callable[[], object]) -> None:
        """Start to trace the points ``names`` at the next step."""
        if any(not stream.closed for stream in self.streams):
            raise InvalidRequest(
                f"request {brief(self.number)}: another viewer is attached, and the limit is one: retry later"
            )
        self.streams = [self.llm.watch(group, names, limit, notify) for group in self.groups]

    def detach(self, streams: Sequence[TraceStream]) -> None:
        """Close trace streams."""
        for stream in streams:
            stream.close()


@dataclass(frozen=True)
class Viewer:
    """Sender of a request: its ``key``, and its ``client`` name for the scheduler. ``admin`` marks an admin key."""

    key: str
    admin: bool = False
    client: str = ""

    def sees(self, request: LiveRequest) -> bool:
        """True if the viewer may see a request."""
        return self.admin or self.key == request.key


class LiveRequests:
    """Running requests by key and number, and viewers that wait for a request. Used in the event loop only."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], LiveRequest] = {}
        self._expected: dict[str, list[_Expected]] = {}

    @contextmanager
    def running(self, request: LiveRequest) -> Iterator[None]:
        """List a request while the ``with`` block runs. Viewers that wait for the request attach before it starts.

        If another request of the key has the same number, the request gets a new number.
        """
        while (request.key, request.number) in self._running:
            request.number = secrets.token_hex(12)
        self._running[request.key, request.number] = request
        for one in list(self._expected.get(request.number, ())):
            if one.viewer.sees(request) and not one.result.done():
                one.start(request)
        try:
            yield
        finally:
            del self._running[request.key, request.number]
            request.ended.set()

    def visible_to(self, viewer: Viewer) -> list[LiveRequest]:
        """Running requests that the viewer may see."""
        return [one for one in self._running.values() if viewer.sees(one)]

    async def when_running(self, number: str, viewer: Viewer, wait: float, begin: Callable[[LiveRequest], T]) -> T:
        """Call ``begin`` with the request ``number`` and return the result.

        If the request does not run yet, waits for it, and calls ``begin`` before it starts.
        """
        for running in self._running.values():
            if running.number == number and viewer.sees(running):
                return begin(running)
        expected = _Expected(viewer, begin, asyncio.get_running_loop().create_future())
        self._expected.setdefault(number, []).append(expected)
        try:
            result: T = await asyncio.wait_for(expected.result, wait)
            return result
        except (asyncio.TimeoutError, TimeoutError):
            raise NotFound(
                f"request {brief(number)}: no such request is running, or it belongs to another client"
            ) from None
        finally:
            self._expected[number].remove(expected)
            if not self._expected[number]:
                del self._expected[number]


@dataclass(eq=False)
class _Expected:
    """A viewer that waits for a request. ``result`` gets the result of ``begin``."""

    viewer: Viewer
    begin: Callable[[LiveRequest], Any]
    result: asyncio.Future[Any]

    def start(self, request: LiveRequest) -> None:
        """Call ``begin`` with the request."""
        try:
            self.result.set_result(self.begin(request))
        except Exception as error:
            self.result.set_exception(error)


def number_of(request: HTTPRequest) -> str:
    """Number (request id) from the client's header; a random number if the header is missing or invalid."""
    given = request.headers.get(HEADER, "")
    return given if NUMBER.fullmatch(given) else secrets.token_hex(12)
