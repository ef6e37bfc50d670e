"""The requests that run, and who may look at them: who has the key that a request came with, or an admin key."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from pellucid.engine.text_group import TextGroup
from pellucid.errors import InvalidRequest, NotFound
from pellucid.errors.messages import brief
from pellucid.serve.model import ServedModel
from pellucid.trace.stream import TraceStream

T = TypeVar("T")
HEADER = "X-Request-Id"
NUMBER = re.compile(r"[A-Za-z0-9._:-]{1,128}")
EVENT = re.compile(rf"({NUMBER.pattern}):(\d{{1,9}})")
"""The id of an event: the number of a request, and the event's own."""


@dataclass(eq=False)
class LiveRequest:
    """A request that runs: its ``number``, the ``key`` it came with, its ``route`` and model, and what it asks.

    ``streams`` are those of the one who looks at it.
    """

    number: str
    key: str
    route: str
    model: str
    llm: ServedModel
    groups: Sequence[TextGroup]
    streams: list[TraceStream] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def attach(self, names: Sequence[str], limit: int, notify: Callable[[], object]) -> None:
        """Somebody looks at it from the next step on.

        Raises:
            InvalidRequest: a name stands for no point, or somebody else looks at it.
        """
        if any(not stream.closed for stream in self.streams):
            raise InvalidRequest(
                f"request {brief(self.number)}: somebody watches it already, and one can at a time"
            )
        self.streams = [self.llm.watch(group, names, limit, notify) for group in self.groups]

    def detach(self, streams: Sequence[TraceStream]) -> None:
        """Nobody reads these any more."""
        for stream in streams:
            stream.close()


@dataclass(frozen=True)
class Viewer:
    """The sender of a request: a ``key``, or an admin key. Requests of one ``client`` share its part of the machine."""

    key: str
    admin: bool = False
    client: str = ""

    def may_see(self, request: LiveRequest) -> bool:
        """Whether a request is theirs."""
        return self.admin or self.key == request.key


class LiveRequests:
    """The requests that run, by number, and those who wait for one. It belongs to the event loop."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], LiveRequest] = {}
        self._expected: dict[str, list[_Expected]] = {}

    @contextmanager
    def running(self, request: LiveRequest) -> Iterator[None]:
        """A request runs as long as the context. Those who wait for it meet it before it starts.

        If one of the same key has its number, it gets another.
        """
        while (request.key, request.number) in self._running:
            request.number = secrets.token_hex(12)
        self._running[request.key, request.number] = request
        for one in list(self._expected.get(request.number, ())):
            if one.viewer.may_see(request) and not one.met.done():
                one.meet(request)
        try:
            yield
        finally:
            del self._running[request.key, request.number]
            request.ended.set()

    def _find(self, number: str, viewer: Viewer) -> LiveRequest | None:
        """A request that runs and that somebody may see."""
        found = (one for one in self._running.values() if one.number == number and viewer.may_see(one))
        return next(found, None)

    def seen_by(self, viewer: Viewer) -> list[LiveRequest]:
        """The requests that somebody may see."""
        return [one for one in self._running.values() if viewer.may_see(one)]

    async def meet(self, number: str, viewer: Viewer, wait: float, begin: Callable[[LiveRequest], T]) -> T:
        """What ``begin`` makes of a request: at once if it runs, else when it comes, before it starts.

        Raises:
            NotFound: it has not come within ``wait`` seconds, or is not theirs; the answer does not say which.
        """
        found = self._find(number, viewer)
        if found is not None:
            return begin(found)
        expected = _Expected(viewer, begin, asyncio.get_running_loop().create_future())
        self._expected.setdefault(number, []).append(expected)
        try:
            made: T = await asyncio.wait_for(expected.met, wait)
            return made
        except (asyncio.TimeoutError, TimeoutError):
            raise NotFound(
                f"request {brief(number)}: none with this number runs, or it is not yours"
            ) from None
        finally:
            self._expected[number].remove(expected)
            if not self._expected[number]:
                del self._expected[number]


@dataclass(eq=False)
class _Expected:
    """Somebody waits for a request: what they make of it is the result of ``met``."""

    viewer: Viewer
    begin: Callable[[LiveRequest], Any]
    met: asyncio.Future[Any]

    def meet(self, request: LiveRequest) -> None:
        """The request has come."""
        try:
            self.met.set_result(self.begin(request))
        except Exception as error:
            self.met.set_exception(error)


def number_of(request: Request) -> str:
    """The number that a client gives its request, or a drawn one if it gives none that can be used."""
    given = request.headers.get(HEADER, "")
    return given if NUMBER.fullmatch(given) else secrets.token_hex(12)
