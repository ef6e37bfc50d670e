"""A model with the replicas that are started for it, in a server's event loop or in a thread of its own."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pellucid import pipeline
from pellucid.cluster.actors import ReplicaSettings
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.model import RemoteModel
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.supervisor import Supervisor, connect
from pellucid.loading import OpenModel, open_model
from pellucid.plan.stages import cut
from pellucid.plan.weights import layouts

UNLIMITED = 1 << 30  # requests: whoever asks waits for them
OPENING = ("context", "chat_template", "cap_context", "pulls")
"""Those options of ``loading.load`` that are of the file, and so ``loading.open_model``'s too."""


class SupervisedModel(RemoteModel):
    """A model with the supervisor of its replicas, which end with it."""

    def __init__(self, opened: OpenModel, supervisor: Supervisor) -> None:
        super().__init__(opened, supervisor.fleet, supervisor.settings.stages)
        self.supervisor = supervisor

    def close(self) -> None:
        """End the replicas, and close the file."""
        self._wait(self.supervisor.close())
        super().close()


def opened(settings: ReplicaSettings) -> OpenModel:
    """The file of a model.

    Raises:
        InvalidRequest: it cannot be divided into so many stages; otherwise as ``open_model``.
    """
    found = open_model(
        settings.source, **{name: value for name, value in settings.load.items() if name in OPENING}
    )
    if settings.stages > 1:
        cut(pipeline.build_plan(found.model.spec, layouts(found.checkpoint, found.model)), settings.stages)
    return found


async def supervised(
    found: OpenModel, settings: ReplicaSettings, secret: ClusterSecret, queue: int, seconds: float = math.inf
) -> SupervisedModel:
    """A model when its first replica is up.

    Raises:
        QueueFull: that has not been so within ``seconds``.
        PellucidError: what the replica has failed with.
    """
    supervisor = Supervisor(Fleet(secret, queue), settings, secret)
    try:
        await supervisor.start()
        await supervisor.ready(seconds)
    except BaseException:
        await supervisor.close()
        found.checkpoint.close()
        raise
    return SupervisedModel(found, supervisor)


@contextmanager
def model_on_cluster(
    settings: ReplicaSettings, address: str, secret: ClusterSecret
) -> Iterator[SupervisedModel]:
    """A model on a cluster, for threads: an event loop of its own talks to the replicas.

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
