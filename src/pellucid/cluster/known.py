"""Messages that a replica has sent for each part, by name, so that an ingress may ask for them again.

A part is a request as its replica knows it: by the ingress and its number there, and by a name for all ingresses.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import Any

from pellucid.cluster.watching import PartWatch

MOST_KNOWN = 512  # parts that are remembered by name
MOST_BYTES = 256 << 20  # of all their messages together


@dataclass(eq=False)
class AskedPart:
    """A request of an ingress, which knows it by ``number``. Any ingress may ask for its messages again by ``name``."""

    sender: bytes
    number: int
    name: str
    messages: list[list[Any]] = field(default_factory=list)
    """Messages sent so far, kept while the name is known."""
    bytes: int = 0
    task: asyncio.Task[None] | None = None
    watch: PartWatch | None = None
    ended: float | None = None
    whole: bool = True
    """True if no other replica has begun the request, so that ``messages`` is complete."""

    def cancel(self) -> None:
        if self.task:
            self.task.cancel()


class KnownParts:
    """Parts by name, at most ``most`` parts and ``most_bytes`` of messages. Use it under one lock.

    Beyond a limit the oldest part that has ended is forgotten; if none has ended, the oldest part. A forgotten part
    still runs.
    """

    def __init__(self, most: int = MOST_KNOWN, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._parts: dict[str, AskedPart] = {}  # the oldest first
        self.bytes = 0
        """Estimated size of all messages."""

    def __len__(self) -> int:
        return len(self._parts)

    def get(self, name: str) -> AskedPart | None:
        """Return the part of a name with all its messages; None if the name is unknown."""
        return self._parts.get(name)

    def add(self, part: AskedPart) -> None:
        """Remember a part by its name, in place of an earlier part; not if another replica has begun the request."""
        if before := self._parts.get(part.name):
            self.forget(before)
        if part.name and part.whole:
            self._parts[part.name] = part
            self._shrink()

    def keep(self, part: AskedPart, message: list[Any]) -> None:
        """Keep a message of a known part."""
        if self._parts.get(part.name) is part:
            size = _size(message)
            part.messages.append(message)
            part.bytes += size
            self.bytes += size
            self._shrink()

    def forget(self, part: AskedPart) -> None:
        """Forget a part, unless another part has its name by now."""
        if self._parts.get(part.name) is part:
            del self._parts[part.name]
            self.bytes -= part.bytes
            part.messages, part.bytes = [], 0

    def forget_ended(self, before: float) -> None:
        """Forget parts that ended before a time."""
        for part in list(self._parts.values()):
            if part.ended is not None and part.ended < before:
                self.forget(part)

    def _shrink(self) -> None:
        while len(self._parts) > self._most or self.bytes > self._most_bytes:
            self.forget(
                min(self._parts.values(), key=lambda part: part.ended is None)
            )  # the first, so the oldest


def _size(value: Any) -> int:
    """Approximate bytes of a plain value."""
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    more = sum(map(_size, inner)) if isinstance(value, (list, tuple, dict)) else 0
    return sys.getsizeof(value) + more
