"""Responses that have been given, for requests that go on after them or ask for them again: bounded, in memory.

Each key has its own: no client can read, continue or delete the response of another.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pellucid.errors import InvalidRequest, NotFound
from pellucid.errors.messages import brief

MOST_RESPONSES, MOST_BYTES = 512, 32 << 20
"""Limits of one key: responses, and bytes of their JSON."""
MOST_IN_ALL = 128 << 20
"""Limit of all keys: bytes."""


@dataclass(frozen=True)
class StoredResponse:
    """A response: its ``body``, and the items that its request had as ``input``."""

    body: Mapping[str, Any]
    input: Sequence[Mapping[str, Any]]
    nbytes: int

    @property
    def items(self) -> list[Mapping[str, Any]]:
        """The items of this turn: the input, and the model's output."""
        return [*self.input, *self.body["output"]]


@dataclass
class _Shelf:
    """The responses of one key, the least recently used first."""

    responses: OrderedDict[str, StoredResponse] = field(default_factory=OrderedDict)
    nbytes: int = 0

    def remove(self, number: str) -> None:
        self.nbytes -= self.responses.pop(number).nbytes

    def remove_oldest(self) -> None:
        self.remove(next(iter(self.responses)))


@dataclass(frozen=True)
class OwnResponses:
    """The responses of one key."""

    store: ResponseStore
    key: str

    def put(self, body: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
        """Keep a response to a request with these input items."""
        self.store.put(self.key, body, items)

    def get(self, number: str) -> StoredResponse:
        """A response. Raises as ``ResponseStore.get``."""
        return self.store.get(self.key, number)

    def delete(self, number: str) -> None:
        """Forget a response. Raises as ``ResponseStore.get``."""
        self.store.delete(self.key, number)

    def turns(self, number: str) -> list[StoredResponse]:
        """A response and all before it, the first one first. Raises as ``ResponseStore.turns``."""
        return self.store.turns(self.key, number)

    def item(self, number: str) -> Mapping[str, Any]:
        """An item of a response, by its own id. Raises as ``ResponseStore.item``."""
        return self.store.item(self.key, number)


class ResponseStore:
    """Keeps responses by key and id.

    A key that is at its limit loses its least recently used responses. If all keys together hold too much, the key
    with the most bytes does.
    """

    def __init__(self) -> None:
        self._shelves = dict[str, _Shelf]()
        self._lock = threading.Lock()

    def put(self, key: str, body: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
        """Keep a response, unless it alone is larger than a key may hold."""
        size = len(json.dumps([body, items]))
        if size > MOST_BYTES:
            return
        with self._lock:
            shelf = self._shelves.setdefault(key, _Shelf())
            if body["id"] in shelf.responses:
                shelf.remove(body["id"])
            shelf.responses[body["id"]] = StoredResponse(body, items, size)
            shelf.nbytes += size
            while len(shelf.responses) > MOST_RESPONSES or shelf.nbytes > MOST_BYTES:
                shelf.remove_oldest()
            while sum(one.nbytes for one in self._shelves.values()) > MOST_IN_ALL:
                max(self._shelves.values(), key=lambda one: one.nbytes).remove_oldest()
            self._shelves = {key: one for key, one in self._shelves.items() if one.responses}

    def get(self, key: str, number: str) -> StoredResponse:
        """A response.

        Raises:
            NotFound: the key has none with this id, or it is no longer kept.
        """
        with self._lock:
            return self._get(key, number)

    def delete(self, key: str, number: str) -> None:
        """Forget a response. Raises as ``get``."""
        with self._lock:
            self._get(key, number)
            self._shelves[key].remove(number)

    def turns(self, key: str, number: str) -> list[StoredResponse]:
        """A response and all before it, the first one first.

        Raises:
            InvalidRequest: a response is not kept.
        """
        found = list[StoredResponse]()
        at: str | None = number
        with self._lock:
            while at is not None:
                try:
                    found.insert(0, self._get(key, at))
                except NotFound as error:
                    raise InvalidRequest(f"previous_response_id={brief(number)}: {error}") from None
                at = found[0].body["previous_response_id"]
        return found

    def item(self, key: str, number: str) -> Mapping[str, Any]:
        """An item of a response, by its own id.

        Raises:
            NotFound: no response of the key has it.
        """
        with self._lock:
            for one in self._shelves.get(key, _Shelf()).responses.values():
                for item in one.body["output"]:
                    if item["id"] == number:
                        return item  # type: ignore[no-any-return]
        raise NotFound(f"item {brief(number)}: no response that is kept has it, or it is not yours")

    def _get(self, key: str, number: str) -> StoredResponse:
        shelf = self._shelves.get(key, _Shelf())
        if number not in shelf.responses:
            raise NotFound(
                f"response {brief(number)}: the server keeps none with this id, or it is not yours; "
                f"the last {MOST_RESPONSES} of a key are kept, up to {MOST_BYTES >> 20} MiB, unless store is false"
            )
        shelf.responses.move_to_end(number)
        return shelf.responses[number]
