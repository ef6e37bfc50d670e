"""Shares the cores of a cluster among the models of a server, and notices that Ray's head does not answer.

If a model has requests and no free cores, an idle replica of the least recently used model ends. A model without
requests is unloaded instead of its last replica, and its next request loads it again. Models get their replicas back
when cores are free and no model waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from pellucid.cluster.ray_actors import ReplicaSettings
from pellucid.cluster.ray_head import ask_head
from pellucid.cluster.secret import say
from pellucid.cluster.supervisor import QUIET, Supervisor
from pellucid.serve.pool import ModelPool

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
