"""The models of a server: loaded at first use, the least recently used given up when they take too much memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool

from pellucid.errors import CacheFull, ModelNotFound
from pellucid.errors.messages import brief
from pellucid.serve.model import ServedModel

T = TypeVar("T")
MOST_WORK = 4  # functions of ``work`` that run at a time


@dataclass
class Served:
    """A model that is loaded: how many requests use it, and when one did last."""

    llm: ServedModel
    nbytes: int
    users: int = 0
    used: float = field(default_factory=time.monotonic)


class ModelPool:
    """The models ``names``, of which some are loaded. Their files may take ``limit`` bytes together.

    ``load`` loads a model by its name, in a thread; what it returns may be awaited in the event loop.
    """

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], ServedModel | Awaitable[ServedModel]],
        limit: int,
    ) -> None:
        self.names, self._load, self._limit = list(names), load, limit
        self.created = int(time.time())
        self.needed: str | None = None
        """A model without which the server is not ready, whether or not it is loaded yet."""
        self._loaded: dict[str, Served] = {}
        self._lock = asyncio.Lock()
        self._limiter: CapacityLimiter | None = None  # which an event loop makes
        self._working = set[asyncio.Future[Any]]()

    def put(self, name: str, llm: ServedModel) -> None:
        """Have a model that is loaded already."""
        self._loaded[name] = Served(llm, llm.weight_bytes)

    @property
    def loaded(self) -> list[str]:
        """The names of the models in memory."""
        return list(self._loaded)

    def llm(self, name: str) -> ServedModel | None:
        """A model if it is in memory."""
        served = self._loaded.get(name)
        return served.llm if served else None

    @property
    def missing(self) -> list[str]:
        """The models without anything to run on: no replica is up. Requests for them wait."""
        found = []
        for name in dict.fromkeys([*self._loaded, *filter(None, [self.needed])]):
            states = served.llm.replica_states() if (served := self._loaded.get(name)) else None
            if served is None or (states is not None and not any(states.replicas.values())):
                found.append(name)
        return found

    def known(self, name: str) -> str:
        """The name. Raises ModelNotFound if the server has no such model."""
        if name not in self.names:
            raise ModelNotFound(f"model={brief(name)}: this server has {', '.join(self.names)}")
        return name

    @asynccontextmanager
    async def use(self, name: str) -> AsyncGenerator[ServedModel, None]:
        """A model, which stays loaded meanwhile.

        Raises:
            ModelNotFound: the server has no model of that name.
            CacheFull: it does not fit beside the models that are in use.
        """
        self.known(name)
        if name not in self._loaded:
            async with self._lock:  # one model is loaded at a time, and nobody waits for it who wants another
                if name not in self._loaded:
                    self._loaded[name] = await self._opened(name)
        served = self._loaded[name]
        served.users += 1
        try:
            yield served.llm
        finally:
            served.users -= 1
            served.used = time.monotonic()

    async def work(self, name: str, function: Callable[[ServedModel], T]) -> T:
        """What a function makes of a model, in a thread; at most ``MOST_WORK`` of these run at a time.

        A thread cannot be ended: if the caller is cancelled, it goes on, counts, and keeps the model in use.

        Raises: as ``use``, and what the function raises.
        """
        if self._limiter is None:
            self._limiter = CapacityLimiter(MOST_WORK)
        limiter = self._limiter

        async def run() -> T:
            async with self.use(name) as llm:
                return await to_thread.run_sync(function, llm, limiter=limiter)

        task = asyncio.ensure_future(run())
        self._working.add(task)
        task.add_done_callback(self._worked)
        return await asyncio.shield(task)

    def _worked(self, task: asyncio.Future[Any]) -> None:
        self._working.discard(task)
        if not task.cancelled():
            task.exception()  # it is the caller's, who may have gone

    async def _load_here(self, name: str) -> ServedModel:
        found = await run_in_threadpool(self._load, name)
        return await found if isinstance(found, Awaitable) else found

    async def _opened(self, name: str) -> Served:
        llm = await self._load_here(name)
        size = llm.weight_bytes
        while self._loaded and size + sum(one.nbytes for one in self._loaded.values()) > self._limit:
            idle = [other for other, one in self._loaded.items() if not one.users]
            if not idle:
                await run_in_threadpool(llm.close)
                raise CacheFull(
                    f"model {brief(name)} takes {size / 1e9:.1f} GB; with those that are in use it would be more than "
                    f"{self._limit / 1e9:.1f} GB: ask again later, or start the server with a larger --memory"
                )
            oldest = min(idle, key=lambda other: self._loaded[other].used)
            await run_in_threadpool(self._loaded.pop(oldest).llm.close)
        return Served(llm, size)

    async def close(self) -> None:
        """Give up all models."""
        async with self._lock:
            for served in self._loaded.values():
                await run_in_threadpool(served.llm.close)
            self._loaded.clear()
