"""What a replica has sent for each part, by the names under which ingresses may ask for it again."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import Any

from pellucid.cluster.watching import PartWatch

MOST_KNOWN = 512  # parts that are known by name
MOST_BYTES = 256 << 20  # of all their messages


@dataclass(eq=False)
class AskedPart:
    """What an ingress asked for: whom it is sent to, what was sent, by what ``name`` another may ask for it."""

    sender: bytes
    number: int
    name: str
    messages: list[list[Any]] = field(default_factory=list)
    """What was sent, as long as it is known by its name."""
    bytes: int = 0
    task: asyncio.Task[None] | None = None
    watch: PartWatch | None = None
    ended: float | None = None
    whole: bool = True
    """Whether the messages are all that there have been of it, on any replica."""

    def cancel(self) -> None:
        if self.task:
            self.task.cancel()


class KnownParts:
    """Parts by name, up to ``most`` of ``most_bytes``: beyond that the oldest is forgotten, of those that have ended if
    there is one. A part that is forgotten runs on. Use it under one lock.
    """

    def __init__(self, most: int = MOST_KNOWN, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._parts: dict[str, AskedPart] = {}  # the oldest first
        self.bytes = 0
        """An estimate of what the messages take."""

    def __len__(self) -> int:
        return len(self._parts)

    def get(self, name: str) -> AskedPart | None:
        """The part of a name, with all messages that there have been of it; None if it is not known."""
        return self._parts.get(name)

    def add(self, part: AskedPart) -> None:
        """Know a part by its name, in place of one that had it before; not if another replica has begun with it."""
        if before := self._parts.get(part.name):
            self.forget(before)
        if part.name and part.whole:
            self._parts[part.name] = part
            self._shrink()

    def keep(self, part: AskedPart, message: list[Any]) -> None:
        """Keep a message of a part that is known."""
        if self._parts.get(part.name) is part:
            size = _size(message)
            part.messages.append(message)
            part.bytes += size
            self.bytes += size
            self._shrink()

    def forget(self, part: AskedPart) -> None:
        """It is not known by its name any more, unless another one is by now."""
        if self._parts.get(part.name) is part:
            del self._parts[part.name]
            self.bytes -= part.bytes
            part.messages, part.bytes = [], 0

    def forget_ended(self, before: float) -> None:
        """Forget what has ended before a time."""
        for part in list(self._parts.values()):
            if part.ended is not None and part.ended < before:
                self.forget(part)

    def _shrink(self) -> None:
        while len(self._parts) > self._most or self.bytes > self._most_bytes:
            self.forget(
                min(self._parts.values(), key=lambda part: part.ended is None)
            )  # the first of the least


def _size(value: Any) -> int:
    """Bytes of a plain value, about."""
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    more = sum(map(_size, inner)) if isinstance(value, (list, tuple, dict)) else 0
    return sys.getsizeof(value) + more
