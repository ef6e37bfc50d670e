"""The ingress: the HTTP server in front of the replicas, and each of its models with replicas and supervisor."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from msgspec import structs

from pellucid.cluster.fleet import Fleet
from pellucid.cluster.ray_actors import ReplicaSettings, ask_head, connect
from pellucid.cluster.remote_model import RemoteModel
from pellucid.cluster.secret import ClusterSecret, say
from pellucid.cluster.supervisor import QUIET, Supervisor
from pellucid.loading import OpenModel, open_model
from pellucid.plan.pipeline_stages import cut
from pellucid.receipts.receipt import Signer
from pellucid.runtime.memory import share_heaps
from pellucid.serve.guard import AccessRules
from pellucid.serve.pool import ModelPool
from pellucid.serve.request_spans import request_spans
from pellucid.serve.server import Settings, create_app, listen, run_app
from pellucid.trace.control_vector import NO_VECTORS, RegisteredVectors

# Shares the cores of a cluster among the models of a server, and notices that Ray's head does not answer.
#
# If a model has requests and no free cores, an idle replica of the least recently used model ends. A model without
# requests is unloaded instead of its last replica, and its next request loads it again. Models get their replicas back
# when cores are free and no model waits.

LOOKS = 1.0  # seconds between two checks
PLACES = 10.0  # seconds that Ray may need to place a replica on free cores
HEAD_LATE = 10.0
"""Seconds without an answer after which Ray's head counts as down."""
HEAD_DOWN = "Ray's head does not answer: requests continue, but a replica that ends is not started again"


class CoreSharing:
    """Shares cores among the loaded models of ``pool``. ``supervisors`` has the models, also while they load.

    ``free`` returns the number of free cores of the cluster.
    """

    def __init__(self, pool: ModelPool, free: Callable[[], float] | None = None) -> None:
        self._pool, self._free = pool, free or _free_cores
        self.supervisors: dict[str, Supervisor] = {}
        self._answered = time.monotonic()
        self._cores = self._until = 0.0
        self._given = set[str]()
        """The models that get the cores of the last ended replica. No other replica ends for them before ``_until``."""

    async def run(self) -> None:
        """Check the models and the head until the task is cancelled."""
        asking: asyncio.Future[float] | None = None
        while True:
            if asking is None or asking.done():
                if asking is not None and not asking.cancelled() and asking.exception() is None:
                    self._answered, self._cores = time.monotonic(), asking.result()
                asking = asyncio.ensure_future(ask_head(self._free))
            self._report_head(time.monotonic() - self._answered < HEAD_LATE)
            try:
                await self.share()
            except Exception as error:  # any error: the next check may work
                say(f"cores are not shared: {type(error).__name__}: {error}")
            await asyncio.sleep(LOOKS)

    async def share(self) -> None:
        """End an idle replica if a model waits for cores. If no model waits, start a missing replica."""
        waiting = {name for name, supervisor in self.supervisors.items() if supervisor.waits}
        if waiting <= self._given and time.monotonic() < self._until:
            return  # Ray places a replica on the cores of the last ended replica
        if waiting:
            # A model that runs on fewer replicas than it could use does not stop a model between two of its requests.
            idle = 0.0 if any(self.supervisors[name].starves for name in waiting) else QUIET
            for name in self._by_last_use(idle):
                supervisor = self.supervisors[name]
                if not supervisor.waits and (await supervisor.give_back() or await self._unload(name)):
                    say(f"{name}: an idle replica ended, because another model waits for cores")
                    self._given, self._until = waiting, time.monotonic() + PLACES
                    return
            return
        for supervisor in self.supervisors.values():
            if supervisor.lacks and self._cores >= supervisor.cores:
                self._cores = 0.0  # unknown until the head answers again
                supervisor.restore()
                return

    async def _unload(self, name: str) -> bool:
        """Unload a model without requests. Returns False if it has requests, or is not loaded yet."""
        supervisor = self.supervisors[name]
        if supervisor.fleet.running or supervisor.fleet.waiting or not await self._pool.unload(name):
            return False
        self.supervisors.pop(name, None)
        return True

    def _by_last_use(self, idle: float) -> list[str]:
        """As ``ModelPool.by_last_use``, without models that are not on the cluster."""
        return [name for name in self._pool.by_last_use(idle) if name in self.supervisors]

    def _report_head(self, up: bool) -> None:
        if up is (self._pool.degraded is None) and self._pool.clustered:
            return
        if self._pool.degraded is not None or not up:
            say("Ray's head answers again" if up else HEAD_DOWN)
        self._pool.clustered, self._pool.degraded = True, None if up else HEAD_DOWN


def _free_cores() -> float:
    return float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]


def warn_about_cores(models: Mapping[str, ReplicaSettings], cluster: Mapping[str, Any]) -> None:
    """Warn if all replicas of all models together need more cores than the cluster has now."""
    needed = sum(one.least * one.stages * one.cpus for one in models.values())
    cores = int(cluster.get("CPU", 0))
    if needed <= cores:
        return
    first = next(iter(models.values()))
    each = first.stages * first.cpus
    counted = f"{len(models):,} models with " if len(models) > 1 else ""
    idle = "idle replicas end when another model waits; " if len(models) > 1 else ""
    say(
        f"{counted}{first.least:,} replica{'s' * (first.least > 1)} of {each:,} core{'s' * (each > 1)} need "
        f"{needed:,} cores, and the cluster has {cores:,}: {idle}add machines, or lower --replicas or --replica-cpus"
    )


# A model together with its replicas and their supervisor.
#
# The model runs in the event loop of a server, or in a separate thread with its own event loop.

UNLIMITED = 1 << 30
"""Limit on queued requests. A program waits for its own requests, so the queue refuses no request."""


class ClusterModel(RemoteModel):
    """A ``RemoteModel`` that also owns the supervisor of its replicas."""

    def __init__(self, opened: OpenModel, supervisor: Supervisor) -> None:
        super().__init__(opened, supervisor.fleet, supervisor.settings.stages)
        self.supervisor = supervisor

    def close(self) -> None:
        """Close the supervisor and the model's file. Replicas end if no other server uses them."""
        self._wait(self.supervisor.close())
        super().close()


def opened(settings: ReplicaSettings) -> OpenModel:
    """Open the file of a model.

    Raises:
        InvalidRequest: the model cannot be divided into ``settings.stages`` stages.
        PellucidError: any error of ``open_model``.
    """
    found = open_model(settings.source, settings.load)
    if settings.stages > 1:
        cut(found.plan(settings.load), settings.stages)
    return found


async def supervised(
    found: OpenModel,
    settings: ReplicaSettings,
    secret: ClusterSecret,
    queue: int,
    seconds: float = math.inf,
    begun: Callable[[Supervisor], object] = lambda supervisor: None,
) -> ClusterModel:
    """Start the replicas of a model, and return the model once the first replica is up.

    Calls ``begun`` before the replicas start.

    Raises:
        QueueFull: no replica is up within ``seconds``.
        PellucidError: the error of a replica that cannot start.
    """
    # All replicas and this process need the same context, whatever memory is free on their machines.
    load = structs.replace(settings.load, context=found.inputs.context)
    supervisor = Supervisor(Fleet(secret, queue), replace(settings, load=load), secret)
    begun(supervisor)
    try:
        await supervisor.start()
        await supervisor.ready(seconds)
    except BaseException:
        await supervisor.close()
        found.checkpoint.close()
        raise
    return ClusterModel(found, supervisor)


@contextmanager
def model_on_cluster(settings: ReplicaSettings, address: str, secret: ClusterSecret) -> Iterator[ClusterModel]:
    """Yield a model on a cluster, for use in threads. A separate thread runs the event loop that talks to the replicas.

    Raises: as ``opened``, ``connect`` and ``supervised``.
    """
    found = opened(settings)
    connect(address)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="pellucid-cluster", daemon=True)
    thread.start()
    try:
        made = supervised(found, settings, secret, UNLIMITED)
        model = asyncio.run_coroutine_threadsafe(made, loop).result()
        try:
            yield model
        finally:
            model.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# The ingress: the HTTP server in front of the replicas. It parses requests and writes responses.

PATIENCE = 120.0  # seconds that a request waits for its model's replicas
# Bytes of weights in this process. There is no limit, because the replicas hold the weights.
INGRESS_UNLIMITED = 1 << 62


def serve_cluster(
    models: Mapping[str, ReplicaSettings],
    address: str,
    secret: ClusterSecret,
    queue: int,
    rules: AccessRules,
    settings: Settings,
    signer: Signer | None = None,
    vectors: RegisteredVectors = NO_VECTORS,
) -> None:
    """Serve models on replicas until SIGTERM or Ctrl-C. Requests may name ``vectors``.

    The replicas of the first model start at once. The replicas of another model start with the first request for that
    model. SIGHUP replaces all replicas, one after the other. ``signer`` signs receipts.

    Raises:
        InvalidRequest: there is no cluster at ``address``, or another process listens at the server's own address, or
            a variable of OpenTelemetry has a wrong value.
        PellucidError: the first model cannot be loaded.
    """
    share_heaps()
    listening, names, spans = listen(settings), list(models), request_spans(os.environ)
    connect(address)
    warn_about_cores(models, ray.cluster_resources())  # type: ignore[no-untyped-call]

    def load(name: str) -> Coroutine[Any, Any, ClusterModel]:
        # The server loads the first model at its start, without a time limit. Requests load models later.
        seconds = math.inf if name == pool.needed else PATIENCE
        begun = partial(sharing.supervisors.__setitem__, name)
        return named(supervised(opened(models[name]), models[name], secret, queue, seconds, begun))

    async def named(starting: Coroutine[Any, Any, ClusterModel]) -> ClusterModel:
        model = await starting
        model.signer, model.vectors = signer, vectors
        return model

    pool = ModelPool(names, load, INGRESS_UNLIMITED, any_name=settings.any_model, local=False)
    pool.needed = names[0]
    sharing = CoreSharing(pool)
    replacing = set[asyncio.Task[None]]()

    async def replace(names: Sequence[str]) -> None:
        for name in names:
            model = pool.llm(name)
            if isinstance(model, ClusterModel):
                await model.supervisor.replace()

    def asked_to_replace() -> None:
        task = asyncio.ensure_future(replace(pool.loaded))
        replacing.add(task)
        task.add_done_callback(replacing.discard)

    async def begin() -> None:
        if hasattr(signal, "SIGHUP"):
            # Not every event loop and not every thread can handle signals.
            with suppress(NotImplementedError, RuntimeError):
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked_to_replace)
        # Another model may later take the cores of the first model, which then loads again at its next request.
        shares = asyncio.ensure_future(sharing.run())
        try:
            async with pool.use(names[0]):
                pool.needed = None
            await shares
        finally:
            shares.cancel()

    app = create_app(pool, rules, settings.read_timeout, spans)
    run_app(app, names, listening, settings, begin=begin)
