"""A replica in this process that sends its messages in frames of a chosen size, so that a frame holds many tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from pellucid.cluster import wire
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.remote_model import RemoteModel
from pellucid.cluster.remote_trace import RequestWatch
from pellucid.cluster.replica_tasks import TASKS
from pellucid.cluster.routing import ReplicaLoad
from pellucid.cluster.secret import ClusterSecret
from pellucid.engine.state import EngineState
from pellucid.llm import LLM
from pellucid.loading import open_model
from support.links import Hear, links_made_by


class HeldLink:
    """Replaces a ``ReplicaLink``: runs a part on ``llm`` to its end, then delivers its messages, ``size`` per frame."""

    def __init__(self, hear: Hear, llm: LLM, size: int) -> None:
        self.address, self.load = "held", ReplicaLoad("held")
        self.up, self.draining, self.slots = True, False, 64
        self.state: EngineState | None = llm.state()
        self._hear, self._llm, self._size = hear, llm, size
        self._running: dict[int, asyncio.Task[None]] = {}

    def send(self, kind: str, *fields: Any) -> None:
        if kind == "run":
            number, what, _, body = fields
            (message,) = wire.unpack(wire.pack([[what, body]]))  # encoded and decoded, as over the network
            self._running[number] = asyncio.ensure_future(self._run(number, *message))
        elif kind == "cancel" and (task := self._running.get(fields[0])):
            task.cancel()

    async def _run(self, number: int, what: str, body: dict[str, Any]) -> None:
        messages = list[list[Any]]()

        def tell(kind: str, *more: Any) -> None:
            messages.append([kind, number, *more])

        await TASKS[what](self._llm, body, tell, RequestWatch(self._llm, tell))
        for first in range(0, len(messages), self._size):
            for message in wire.unpack(wire.pack(messages[first : first + self._size])):
                self._hear(self, message)
            await asyncio.sleep(0)

    async def close(self) -> None:
        for task in self._running.values():
            task.cancel()


def held(llm: LLM, path: Any, size: int) -> Callable[[str], Coroutine[Any, Any, RemoteModel]]:
    """Return a server's function that loads a model whose requests run on ``llm``."""

    async def load(name: str) -> RemoteModel:
        fleet = Fleet(ClusterSecret.drawn())
        with links_made_by(lambda address, hear, changed: HeldLink(hear, llm, size)):
            fleet.add("held")
        return RemoteModel(open_model(path), fleet)

    return load
