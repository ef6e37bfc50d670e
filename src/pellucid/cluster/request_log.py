"""The messages that a replica has sent for each named request. An ingress can ask for these messages again."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import Any

from pellucid.cluster.remote_trace import RequestWatch

MAX_REQUESTS = 512
"""Maximum number of requests that are remembered by name."""
MAX_BYTES = 256 << 20
"""Maximum bytes of the messages of all remembered requests together."""


@dataclass(eq=False)
class ReplicaRequest:
    """A request of an ingress. ``sender`` is the ingress's connection, ``number`` the ingress's number of the request.

    Any ingress can ask for the messages of the request again, by ``name``.
    """

    sender: bytes
    number: int
    name: str
    messages: list[list[Any]] = field(default_factory=list)
    """Messages sent so far. They are kept while the log knows the name."""
    bytes: int = 0
    task: asyncio.Task[None] | None = None
    watch: RequestWatch | None = None
    ended: float | None = None
    complete: bool = True
    """False if another replica began the request. ``messages`` then lacks the messages of the other replica."""

    def cancel(self) -> None:
        if self.task:
            self.task.cancel()


class RequestLog:
    """Requests by name. The limits are ``max_requests`` requests and ``max_bytes`` of messages in all.

    Beyond a limit the log forgets the oldest request that has ended. If no request has ended, it forgets the oldest
    request, which continues to run. Callers hold one lock while they use the log.
    """

    def __init__(self, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._requests: dict[str, ReplicaRequest] = {}  # the oldest first
        self.bytes = 0
        """Estimated size of all messages."""

    def __len__(self) -> int:
        return len(self._requests)

    def get(self, name: str) -> ReplicaRequest | None:
        """Return the request of a name, with its messages; None if the name is unknown."""
        return self._requests.get(name)

    def add(self, request: ReplicaRequest) -> None:
        """Add a request. It replaces an earlier request of the same name.

        A request that another replica began is not added.
        """
        if before := self._requests.get(request.name):
            self.forget(before)
        if request.name and request.complete:
            self._requests[request.name] = request
            self._shrink()

    def keep(self, request: ReplicaRequest, message: list[Any]) -> None:
        """Keep a message if the log knows its request."""
        if self._requests.get(request.name) is request:
            size = _size(message)
            request.messages.append(message)
            request.bytes += size
            self.bytes += size
            self._shrink()

    def forget(self, request: ReplicaRequest) -> None:
        """Forget a request. If another request has taken its name, do nothing."""
        if self._requests.get(request.name) is request:
            del self._requests[request.name]
            self.bytes -= request.bytes
            request.messages, request.bytes = [], 0

    def forget_ended(self, before: float) -> None:
        """Forget requests that ended before a time."""
        for request in list(self._requests.values()):
            if request.ended is not None and request.ended < before:
                self.forget(request)

    def _shrink(self) -> None:
        while len(self._requests) > self._max_requests or self.bytes > self._max_bytes:
            ended = (request for request in self._requests.values() if request.ended is not None)
            self.forget(next(ended, next(iter(self._requests.values()))))


def _size(value: Any) -> int:
    """Approximate bytes of a plain value."""
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    more = sum(map(_size, inner)) if isinstance(value, (list, tuple, dict)) else 0
    return sys.getsizeof(value) + more
