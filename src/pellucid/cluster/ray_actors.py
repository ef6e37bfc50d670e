"""Ray actors: one for a replica, and one for each stage of the replica except its last stage.

The replica's own process runs the last stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ray
from msgspec.structs import replace

from pellucid.cluster.replica import Replica
from pellucid.cluster.secret import ClusterSecret, RefusalLog, say
from pellucid.cluster.stage_server import StageServer, runner_of
from pellucid.cluster.staged_runner import StagedRunner
from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import InvalidRequest
from pellucid.load_options import LoadOptions
from pellucid.runtime.memory import share_heaps

# A replica ends after this number of seconds without a message from a server.
ORPHANED = 600.0
RECONNECTS = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Environment variable with the seconds that Ray's processes wait for Ray's head to come back. Ray's default is 60."""
# Seconds between two attempts to reach the stages.
AGAIN = 1.0


@dataclass(frozen=True)
class ReplicaSettings:
    """Settings of a model's replicas: the model's ``source``, and the options ``load`` for loading the model.

    The number of replicas is between ``least`` and ``most``, depending on the load. Each replica is divided into
    ``stages`` stages. Each stage runs a part of the model's blocks on ``cpus`` cores.
    """

    source: str
    load: LoadOptions = LoadOptions()  # noqa: RUF009  # immutable
    cpus: int = 1
    least: int = 1
    most: int = 1
    stages: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise InvalidRequest(
                f"replicas from {self.least} to {self.most}: the minimum must be at least 1, and at most the maximum"
            )


class StageActor:
    """Runs one stage in a Ray process, except the last stage. Ray restarts the process when it ends."""

    def __init__(self, settings: ReplicaSettings, secret: str, number: int) -> None:
        self._settings, self._secret, self._number = settings, ClusterSecret(secret), number
        self._server: StageServer | None = None
        self._lock = asyncio.Lock()

    async def listen(self) -> str:
        """Return the stage's address. The first call loads the stage and listens at the address."""
        async with self._lock:
            if self._server is None:
                self._server = await asyncio.to_thread(self._loaded)
                # A daemon thread, so that the process can end while the stage serves.
                threading.Thread(target=self._server.serve, name="pellucid-stage", daemon=True).start()
        return self._server.address

    def _loaded(self) -> StageServer:
        from pellucid.loading import load_model

        make = runner_of(self._number, self._settings.stages)
        llm = load_model(self._settings.source, _options(self._settings), make=make)
        return StageServer(llm.runner, self._secret, _node_address())


class ReplicaActor:
    """Runs a replica in a Ray process. After a crash Ray starts a new process, which loads the model again.

    The replica survives the server that created it, so a restarted server finds the replica again. If no server talks
    to the replica for ``orphaned`` seconds, the replica ends and frees its cores. A restarted process also ends if no
    server asks it to load the model within this time. A later server creates a new replica.
    """

    def __init__(self, settings: ReplicaSettings, secret: str, name: str, orphaned: float = ORPHANED) -> None:
        share_heaps()
        self._settings, self._secret, self._name = settings, ClusterSecret(secret), name
        self._replica: Replica | None = None
        self._last_asked, self._orphaned = time.monotonic(), orphaned
        self._watching = asyncio.ensure_future(self._watch())
        self._serving: asyncio.Task[None] | None = None
        self._address = ""
        self._lock = asyncio.Lock()
        self._stages: list[Any] = []

    def _start_stages(self) -> list[Any]:
        """Start the actors of the earlier stages. Ray ends these actors together with this actor."""
        settings, secret = self._settings, self._secret.text
        stage = ray.remote(StageActor).options(num_cpus=settings.cpus, max_restarts=-1, scheduling_strategy="SPREAD")
        return [stage.remote(settings, secret, number) for number in range(settings.stages - 1)]

    async def _addresses(self) -> Sequence[str]:
        addresses: Sequence[str] = await asyncio.gather(*(stage.listen.remote() for stage in self._stages))
        return addresses

    async def _recover_stages(self, replica: Replica) -> None:
        """Recover from the loss of a stage.

        Running requests move to other replicas. Without other replicas they wait until all stages run again.
        """
        runner = replica.llm.runner
        assert isinstance(runner, StagedRunner)
        replica.drain()
        say(f"{self._name}: a stage is gone; requests are prefilled again when it is back")
        failures = RefusalLog(self._name)
        while True:
            await asyncio.sleep(AGAIN)
            if replica.busy:
                continue
            try:
                addresses = await self._addresses()
                await asyncio.to_thread(runner.begin_all, addresses)
                break
            except Exception as error:  # any error: the replica cannot run without its stages
                failures.add(f"{type(error).__name__}: {error}")
        replica.resume()

    async def listen(self) -> tuple[str, str, str]:
        """Return the replica's address, its secret, and its host and process id as text for the log.

        The first call loads the model and listens at the address.
        """
        from pellucid.loading import load_model

        self._last_asked = time.monotonic()
        async with self._lock:
            if self._replica is None:
                make: Any = ModelRunner
                if self._settings.stages > 1:
                    self._stages = self._stages or self._start_stages()
                    addresses = await self._addresses()
                    make = partial(StagedRunner, stages=addresses, secret=self._secret)
                options = _options(self._settings)
                llm = await asyncio.to_thread(load_model, self._settings.source, options, make=make)
                self._replica = Replica(llm, self._secret, self._name, self._recover_stages)
                self._address = await self._replica.listen(_node_address())
                self._serving = asyncio.ensure_future(self._serve(self._replica))
        where = f"{socket.gethostname()}, process {os.getpid()}"
        if RECONNECTS not in os.environ:  # the environment of Ray on this machine
            where += f"; Ray there ends 60 s after its head: export {RECONNECTS}=3600 before ray start"
        return self._address, self._secret.text, where

    async def waited_for(self) -> None:
        """Note that a server is alive and waits for this replica to listen."""
        self._last_asked = time.monotonic()

    async def _watch(self) -> None:
        """End the replica when no server has talked to it for ``orphaned`` seconds."""
        while time.monotonic() - self._heard < self._orphaned:
            await asyncio.sleep(self._orphaned / 10)
        if self._replica:
            self._replica.close()
        else:
            self._end()

    @property
    def _heard(self) -> float:
        """Time of the last message or call from a server."""
        return max(self._last_asked, self._replica.last_heard) if self._replica else self._last_asked

    async def _serve(self, replica: Replica) -> None:
        try:
            await replica.serve()
        except Exception as error:
            say(f"{self._name}: {type(error).__name__}: {error}")
        self._end()

    def _end(self) -> None:
        """End the process for good. Without ``ray.kill`` Ray would restart it."""
        ray.kill(ray.get_runtime_context().current_actor)

    async def served(self) -> None:
        """Wait until the replica ends."""
        assert self._serving is not None
        await asyncio.shield(self._serving)


def _options(settings: ReplicaSettings) -> LoadOptions:
    """Return the load options. They have one thread for each core, unless the settings give a number of threads."""
    return replace(settings.load, threads=settings.load.threads or settings.cpus)


def _node_address() -> str:
    """Return the address of this machine in the cluster."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


# Ray's head: joining the cluster, and calls to the head.
#
# If the head is down, calls to the head block until it is up again, so each call has its own thread.

T = TypeVar("T")
NAMESPACE = "pellucid"
REACHES = 5.0  # timeout in seconds for joining the cluster, and for calls to its head when the server ends
WAITS_FOR_HEAD = "3600"  # seconds until this process ends without Ray's head


def connect(address: str) -> None:
    """Join the Ray cluster at an address. "auto" joins this machine's cluster, or starts a local cluster if none runs.

    Raises:
        InvalidRequest: there is no cluster at the address, or this system cannot be part of one.
    """
    if sys.platform == "win32":
        raise InvalidRequest("a cluster needs Linux or macOS: Ray joins no machines on Windows; leave out --cluster")
    # For this process, and for Ray's processes if this call starts them.
    os.environ.setdefault(RECONNECTS, WAITS_FOR_HEAD)
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == "auto":
            try:
                ray.init(address="auto", **options)
            except ConnectionError:
                ray.init(include_dashboard=False, **options)
        else:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), REACHES).close()  # Ray itself retries for a minute
            ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise InvalidRequest(f"cluster={address!r}: no Ray cluster can be joined at this address: {first}") from None


async def ask_head(call: Callable[[], T]) -> T:
    """Call Ray's head in a new thread, and return the result. While the head is down, only this thread blocks.

    A thread pool would fill with blocked threads, and would delay the end of the server.

    Raises: any error of ``call``.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def end(setter: Callable[[Any], None], value: Any) -> None:
        if not result.done():
            setter(value)

    def run() -> None:
        try:
            outcome = result.set_result, call()
        except Exception as error:
            outcome = result.set_exception, error  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end, *outcome)

    threading.Thread(target=run, name="pellucid-ray", daemon=True).start()
    return await result
