"""Loads the models of a server at their first use, and unloads the least recently used; names of models in requests."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool

from pellucid.base_llm import BaseLLM
from pellucid.errors import CacheFull, InvalidRequest, ModelNotFound, QueueFull, brief
from pellucid.serve.response_store import RememberedResponses
from pellucid.weights.catalogue import find
from pellucid.weights.gguf import SPLIT_NAME
from pellucid.weights.sources.source import DownloadProgress, source_of

# Names of models in requests. Short names stay unchanged. Files and folders are named without their path.

ENDINGS = (".gguf", ".safetensors")


def served_names(models: Sequence[str], aliases: Sequence[str] = ()) -> dict[str, str]:
    """Map names in requests to models: first ``models`` in their order, then additional models of ``aliases``.

    An alias is "NAME=MODEL", or "NAME" for the first of ``models``. Without an alias, a file is named by its stem and
    a folder by its name, without the path.

    Raises:
        InvalidRequest: an alias is malformed, two models would have one name, or a file does not exist.
    """
    given = dict[str, str]()
    for alias in aliases:
        name, equals, model = alias.partition("=")
        model = model or ("" if equals or not models else models[0])
        if not name.strip() or not model:
            raise InvalidRequest(f"--alias {brief(alias)}: must be NAME=FILE, such as chat=models/some.gguf")
        if given.setdefault(model, name) != name:
            raise InvalidRequest(f"--alias: {brief(model)} is named {given[model]} and {name}: a model has one name")
    served = dict[str, str]()
    for model in dict.fromkeys([*models, *given]):
        if not model:
            raise InvalidRequest("MODEL is empty: give the path of a file, or the name of a model")
        usual = _usual_name(model)
        name = given.get(model, usual)
        if name in served:
            raise InvalidRequest(
                f"{brief(served[name])} and {brief(model)} would both be called {brief(name)}: "
                f"name one of them, --alias NAME={brief(model)[1:-1]}"
            )
        served[name] = model
    return served


def _usual_name(model: str) -> str:
    if find(model) is not None:
        return model
    path = Path(model)
    if path.is_dir():
        return path.resolve().name or model
    if not os.path.lexists(path) and model.endswith(ENDINGS) and source_of(model) is None:
        # Raised when the server starts, because an error during a request would show the path to a client.
        raise InvalidRequest(f"there is no file {brief(model)}: give the path of a file, or the name of a model")
    if os.path.lexists(path):
        split = SPLIT_NAME.fullmatch(path.name)
        return split["stem"] if split else path.stem
    return model


# Loads the models of a server at their first use, and unloads the least recently used model if memory is short.

T = TypeVar("T")
Pull: TypeAlias = "Callable[[str, DownloadProgress], str]"
MOST_WORK = 4  # functions that ``ModelPool.work`` runs at a time
MOST_PULLS = 8  # downloads that run or wait
SLACK = 0.1  # seconds by which a timer may fire too early


@dataclass
class Served:
    """A loaded model: the number of requests that use it (``users``), and the time of its last use (``used``).

    It stays loaded for ``keep`` seconds after its last use (None: until another model needs its memory).
    """

    llm: BaseLLM[Any]
    nbytes: int
    users: int = 0
    used: float = field(default_factory=time.monotonic)
    keep: float | None = None
    remembered: RememberedResponses = field(default_factory=RememberedResponses)

    @property
    def expires_in(self) -> float | None:
        """Seconds until the model is unloaded if it is not used; None: no limit."""
        return None if self.keep is None else max(0.0, self.used + self.keep - time.monotonic())


class ModelPool:
    """The models ``names``. The weights of the loaded models take at most ``limit`` bytes together.

    ``load`` loads a model by name, in a thread. If ``load`` returns an awaitable, the event loop awaits it. With
    ``any_name``, the first model also answers to unknown names. ``pull`` downloads a model by name, in a thread, and
    returns the name under which the server serves the model. Without ``pull``, clients cannot download models.
    ``local`` is True if the models run in this process, which can unload them.
    """

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], BaseLLM[Any] | Awaitable[BaseLLM[Any]]],
        limit: int,
        *,
        any_name: bool = False,
        pull: Pull | None = None,
        local: bool = True,
    ) -> None:
        self.names, self._load, self._limit = list(names), load, limit
        self.local, self.any_name, self._pull = local, any_name, pull
        self.created = int(time.time())
        self.needed: str | None = None
        """The server is not ready until this model is loaded and can run. None: no model is needed."""
        self.clustered = False
        self.degraded: str | None = None
        """``degraded`` describes a failure that does not stop requests. None: there is no failure."""
        self._loaded: dict[str, Served] = {}
        self._lock = asyncio.Lock()
        self._limiter: CapacityLimiter | None = None  # created in the event loop
        self._tasks = set[asyncio.Future[Any]]()
        self._unload_timers = dict[str, asyncio.TimerHandle]()
        self._pulling, self._pulls = asyncio.Lock(), 0

    def put(self, name: str, llm: BaseLLM[Any]) -> None:
        """Add a model that is already loaded."""
        self._loaded[name] = Served(llm, llm.weight_bytes)

    @property
    def loaded(self) -> list[str]:
        return list(self._loaded)

    def llm(self, name: str) -> BaseLLM[Any] | None:
        """The model if it is loaded, else None."""
        served = self._loaded.get(name)
        return served.llm if served else None

    def remembered(self, name: str) -> RememberedResponses:
        """The remembered responses of a loaded model."""
        return self._loaded[name].remembered

    @property
    def missing(self) -> list[str]:
        """Loaded or needed models that cannot run, because they are not loaded or no replica is up.

        Requests for these models wait.
        """
        missing = []
        for name in dict.fromkeys([*self._loaded, *filter(None, [self.needed])]):
            states = served.llm.replica_states() if (served := self._loaded.get(name)) else None
            if served is None or (states is not None and not any(states.replicas.values())):
                missing.append(name)
        return missing

    def known(self, name: str) -> str:
        """Name of the model that answers to ``name``. Raises ModelNotFound if no model has this name."""
        if name in self.names:
            return name
        if self.any_name:
            return self.names[0]
        raise ModelNotFound(f"model={brief(name)}: this server has {', '.join(self.names)}")

    def by_last_use(self, idle: float = 0.0) -> list[str]:
        """Names of the loaded models, the least recently used first. ``idle`` selects models without requests for
        this number of seconds.
        """
        late = time.monotonic() - idle
        names = [name for name, one in self._loaded.items() if not idle or (not one.users and one.used < late)]
        return sorted(names, key=lambda name: self._loaded[name].used)

    async def unload(self, name: str) -> bool:
        """Unload a model. Returns False if it is in use or not loaded."""
        served = self._loaded.get(name)
        if served is None or served.users:
            return False
        del self._loaded[name]
        if timer := self._unload_timers.pop(name, None):
            timer.cancel()
        await run_in_threadpool(served.llm.close)
        return True

    async def pulled(self, name: str, progress: DownloadProgress) -> str:
        """Download a model, serve it, and return its name. One download runs at a time.

        If the caller is cancelled, the download continues.

        Raises:
            InvalidRequest: clients cannot download models from this server.
            QueueFull: too many downloads wait.
            PellucidError: as ``pull``.
        """
        if (pull := self._pull) is None:
            raise InvalidRequest("this server downloads no models for clients: start it with --pull")
        if self._pulls >= MOST_PULLS:
            raise QueueFull(f"{MOST_PULLS} downloads run or wait already: retry later")

        async def run() -> str:
            try:
                async with self._pulling:
                    pulled_name = await to_thread.run_sync(pull, name, progress)
            finally:
                self._pulls -= 1
            if pulled_name not in self.names:
                self.names.append(pulled_name)
            return pulled_name

        self._pulls += 1
        return await asyncio.shield(self._uncancelled(run()))

    def keep(self, name: str, seconds: float | None) -> None:
        """Unload a model ``seconds`` after its last request (None: when another model needs its memory)."""
        if served := self._loaded.get(name):
            served.keep = seconds

    def expires_in(self, name: str) -> float | None:
        """Seconds until a model is unloaded if it is not used; None: no limit."""
        served = self._loaded.get(name)
        return served.expires_in if served else None

    @asynccontextmanager
    async def use(self, name: str) -> AsyncGenerator[BaseLLM[Any], None]:
        """Load a model if necessary, and keep it loaded while the ``with`` block runs.

        Raises:
            ModelNotFound: the server has no model of that name.
            CacheFull: the model does not fit into memory beside the models in use.
        """
        self.known(name)
        if name not in self._loaded:
            async with self._lock:  # one load at a time; requests for loaded models do not wait
                if name not in self._loaded:
                    self._loaded[name] = await self._load_model(name)
        served = self._loaded[name]
        served.users += 1
        if timer := self._unload_timers.pop(name, None):
            timer.cancel()
        try:
            yield served.llm
        finally:
            served.users -= 1
            served.used = time.monotonic()
            if served.keep is not None and not served.users:
                loop = asyncio.get_running_loop()
                self._unload_timers[name] = loop.call_later(served.keep, self._unload_expired, name, served)

    def _unload_expired(self, name: str, served: Served) -> None:
        """Unload a model whose ``keep`` time is over, unless it is in use again."""

        async def unload() -> None:
            async with self._lock:
                if self._loaded.get(name) is served and not served.users and (served.expires_in or 0.0) < SLACK:
                    del self._loaded[name]
                    await run_in_threadpool(served.llm.close)

        self._unload_timers.pop(name, None)
        self._uncancelled(unload())

    async def work(self, name: str, function: Callable[[BaseLLM[Any]], T]) -> T:
        """Run a function of a model in a thread, and return its result. At most ``MOST_WORK`` functions run at a time.

        A thread cannot be cancelled. If the caller is cancelled, the function continues, counts towards the limit, and
        keeps the model in use.

        Raises: as ``use``, and the errors of the function.
        """
        if self._limiter is None:
            self._limiter = CapacityLimiter(MOST_WORK)
        limiter = self._limiter

        async def run() -> T:
            async with self.use(name) as llm:
                return await to_thread.run_sync(function, llm, limiter=limiter)

        return await asyncio.shield(self._uncancelled(run()))

    def _uncancelled(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Start a task that survives the cancellation of its caller."""
        task = asyncio.ensure_future(work)

        def forget(_: object) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                # Mark the exception as retrieved. A cancelled caller does not retrieve it, and asyncio would log it.
                task.exception()

        self._tasks.add(task)
        task.add_done_callback(forget)
        return task

    async def _load_model(self, name: str) -> Served:
        loaded = await run_in_threadpool(self._load, name)
        llm = await loaded if isinstance(loaded, Awaitable) else loaded
        size = llm.weight_bytes
        while self._loaded and size + sum(one.nbytes for one in self._loaded.values()) > self._limit:
            idle = [other for other, one in self._loaded.items() if not one.users]
            if not idle:
                await run_in_threadpool(llm.close)
                raise CacheFull(
                    f"model {brief(name)} takes {size / 1e9:.1f} GB; together with the models in use this exceeds "
                    f"{self._limit / 1e9:.1f} GB: retry later, or start the server with a larger --memory"
                )
            oldest = min(idle, key=lambda other: self._loaded[other].used)
            await run_in_threadpool(self._loaded.pop(oldest).llm.close)
        return Served(llm, size)

    async def close(self) -> None:
        for timer in self._unload_timers.values():
            timer.cancel()
        async with self._lock:
            for served in self._loaded.values():
                await run_in_threadpool(served.llm.close)
            self._loaded.clear()
