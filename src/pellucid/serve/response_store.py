"""Stores responses for requests that continue or fetch them. The store is in memory and bounded.

Each key has its own responses: no client can read, continue or delete another client's response.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pellucid.errors import InvalidRequest, NotFound, brief

MOST_RESPONSES, MOST_BYTES = 512, 32 << 20
"""Limits of one key: number of responses, and bytes of their JSON."""
MOST_REMEMBERED = 64 << 20
"""Limit of the remembered responses of a model, in bytes."""
MOST_IN_ALL = 128 << 20
"""Limit of all keys together, in bytes."""


@dataclass(frozen=True)
class StoredResponse:
    """A response: its ``body``, and the ``input`` items of its request."""

    body: Mapping[str, Any]
    input: Sequence[Mapping[str, Any]]
    nbytes: int

    @property
    def items(self) -> list[Mapping[str, Any]]:
        """Items of this turn: the input, then the model's output."""
        return [*self.input, *self.body["output"]]


@dataclass
class _Shelf:
    """Responses of one key, the least recently used first."""

    responses: OrderedDict[str, StoredResponse] = field(default_factory=OrderedDict)
    nbytes: int = 0

    def remove(self, number: str) -> None:
        self.nbytes -= self.responses.pop(number).nbytes

    def remove_oldest(self) -> None:
        self.remove(next(iter(self.responses)))


class ResponseStore:
    """The responses of all keys, by key and id. `OwnResponses` are the responses of one key.

    A key at its limit loses its least recently used responses. At the limit of all keys together, the key with the
    most bytes loses its least recently used responses.
    """

    def __init__(self) -> None:
        self.shelves = dict[str, _Shelf]()
        self.lock = threading.Lock()


@dataclass(frozen=True)
class OwnResponses:
    """Access to the responses of one key."""

    store: ResponseStore
    key: str

    def put(self, body: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
        """Store a response to a request with these input items, unless it alone exceeds the limit of a key."""
        size = len(json.dumps([body, items]))
        if size > MOST_BYTES:
            return
        with self.store.lock:
            shelves = self.store.shelves
            shelf = shelves.setdefault(self.key, _Shelf())
            if body["id"] in shelf.responses:
                shelf.remove(body["id"])
            shelf.responses[body["id"]] = StoredResponse(body, items, size)
            shelf.nbytes += size
            while len(shelf.responses) > MOST_RESPONSES or shelf.nbytes > MOST_BYTES:
                shelf.remove_oldest()
            while sum(one.nbytes for one in shelves.values()) > MOST_IN_ALL:
                max(shelves.values(), key=lambda one: one.nbytes).remove_oldest()
            self.store.shelves = {key: one for key, one in shelves.items() if one.responses}

    def get(self, number: str) -> StoredResponse:
        """A response. Raises NotFound if the key has no response with this id, or it is no longer stored."""
        with self.store.lock:
            return self._get(number)

    def delete(self, number: str) -> None:
        """Delete a response. Raises as ``get``."""
        with self.store.lock:
            self._get(number)
            self._shelf.remove(number)

    def turns(self, number: str) -> list[StoredResponse]:
        """A response and all earlier turns, the first turn first."""
        turns = list[StoredResponse]()
        at: str | None = number
        with self.store.lock:
            while at is not None:
                try:
                    turns.insert(0, self._get(at))
                except NotFound as error:
                    raise InvalidRequest(f"previous_response_id={brief(number)}: {error}") from None
                at = turns[0].body["previous_response_id"]
        return turns

    def item(self, number: str) -> Mapping[str, Any]:
        """An output item by its id."""
        with self.store.lock:
            for one in self._shelf.responses.values():
                for item in one.body["output"]:
                    if item["id"] == number:
                        return item  # type: ignore[no-any-return]
        raise NotFound(f"item {brief(number)}: no stored response has it, or it belongs to another key")

    @property
    def _shelf(self) -> _Shelf:
        return self.store.shelves.get(self.key, _Shelf())

    def _get(self, number: str) -> StoredResponse:
        shelf = self._shelf
        if number not in shelf.responses:
            raise NotFound(
                f"response {brief(number)}: it is not stored, or it belongs to another key; "
                f"the server stores the last {MOST_RESPONSES} responses of a key, up to {MOST_BYTES >> 20} MiB, "
                "unless store is false"
            )
        shelf.responses.move_to_end(number)
        return shelf.responses[number]


class RememberedResponses:
    """Complete responses of a loaded model by digests of requests: (content, media type), the oldest first."""

    def __init__(self) -> None:
        self._responses, self._nbytes = OrderedDict[str, tuple[bytes, str]](), 0

    def get(self, digest: str) -> tuple[bytes, str] | None:
        """A response, which becomes the newest; None if it is not known."""
        if digest in self._responses:
            self._responses.move_to_end(digest)
        return self._responses.get(digest)

    def put(self, digest: str, content: bytes, media_type: str) -> None:
        """Remember a response, and forget the oldest above the limit, unless it alone exceeds the limit."""
        if len(content) > MOST_REMEMBERED:
            return
        self._nbytes += len(content) - len(self._responses.pop(digest, (b"",))[0])
        self._responses[digest] = content, media_type
        while self._nbytes > MOST_REMEMBERED:
            self._nbytes -= len(self._responses.popitem(last=False)[1][0])
