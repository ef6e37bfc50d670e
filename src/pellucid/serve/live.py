"""The requests that run, and who may look at them: who has the key that a request came with, or an admin key."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from pellucid.engine.request import RequestGroup
from pellucid.errors import InvalidRequest, ModelNotFound
from pellucid.errors.messages import brief
from pellucid.llm import LLM

T = TypeVar("T")
HEADER = "X-Request-Id"
NUMBER = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(eq=False)
class LiveRequest:
    """A request that runs: its ``number``, the ``key`` it came with, its ``route`` and model, and what it asks."""

    number: str
    key: str
    route: str
    model: str
    llm: LLM
    groups: Sequence[RequestGroup]
    began: float = field(default_factory=time.monotonic)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Viewer:
    """Who looks: with a key, or with an admin key."""

    key: str
    admin: bool = False

    def may_see(self, request: LiveRequest) -> bool:
        """Whether a request is theirs."""
        return self.admin or self.key == request.key


class LiveRequests:
    """The requests that run, by number, and those who wait for one. It belongs to the event loop."""

    def __init__(self) -> None:
        self._running: dict[str, LiveRequest] = {}
        self._expected: dict[str, list[_Expected]] = {}

    @contextmanager
    def running(self, request: LiveRequest) -> Iterator[None]:
        """A request runs as long as the context. Those who wait for it meet it before it starts."""
        number = request.number
        if number in self._running:
            raise InvalidRequest(f"{HEADER}={brief(number)}: a request with it runs already: send another")
        self._running[number] = request
        for one in list(self._expected.get(number, ())):
            if one.viewer.may_see(request) and not one.met.done():
                one.meet(request)
        try:
            yield
        finally:
            del self._running[number]
            request.ended.set()

    def expects(self, number: str) -> bool:
        """Whether somebody waits for a request."""
        return number in self._expected

    def seen_by(self, viewer: Viewer) -> list[LiveRequest]:
        """The requests that somebody may see."""
        return [one for one in self._running.values() if viewer.may_see(one)]

    async def meet(self, number: str, viewer: Viewer, wait: float, begin: Callable[[LiveRequest], T]) -> T:
        """What ``begin`` makes of a request: at once if it runs, else when it comes, before it starts.

        Raises:
            ModelNotFound: it has not come within ``wait`` seconds, or is not theirs; the answer does not say which.
        """
        found = self._running.get(number)
        if found is not None and viewer.may_see(found):
            return begin(found)
        expected = _Expected(viewer, begin, asyncio.get_running_loop().create_future())
        self._expected.setdefault(number, []).append(expected)
        try:
            made: T = await asyncio.wait_for(expected.met, wait)
            return made
        except (asyncio.TimeoutError, TimeoutError):
            raise ModelNotFound(
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


def number_of(request: Request, drawn: str) -> str:
    """The number that a client gives its request, or the one that was ``drawn``.

    Raises:
        InvalidRequest: it is no number.
    """
    given = request.headers.get(HEADER)
    if given is None:
        return drawn
    if not NUMBER.fullmatch(given):
        raise InvalidRequest(f"{HEADER}={brief(given)}: must be 1 to 128 letters, digits, or . _ : -")
    return given
