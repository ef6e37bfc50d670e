"""A model together with its replicas and their supervisor.

The model runs in the event loop of a server, or in a separate thread with its own event loop.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from msgspec import structs

from pellucid.cluster.actors import ReplicaSettings
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.ray_head import connect
from pellucid.cluster.remote_model import RemoteModel
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.supervisor import Supervisor
from pellucid.loading import OpenModel, open_model
from pellucid.plan.pipeline_stages import cut

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
def model_on_cluster(
    settings: ReplicaSettings, address: str, secret: ClusterSecret
) -> Iterator[ClusterModel]:
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
