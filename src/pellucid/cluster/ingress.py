"""The ingress: the HTTP server in front of the replicas. It parses requests and writes responses."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import ray

from pellucid.cluster.actors import ReplicaSettings
from pellucid.cluster.cluster_model import ClusterModel, opened, supervised
from pellucid.cluster.core_sharing import CoreSharing, warn_about_cores
from pellucid.cluster.ray_head import connect
from pellucid.cluster.secret import ClusterSecret
from pellucid.receipts.signature import Signer
from pellucid.runtime.memory import share_heaps
from pellucid.serve.app import create_app
from pellucid.serve.guard import AccessRules
from pellucid.serve.pool import ModelPool
from pellucid.serve.request_spans import request_spans
from pellucid.serve.server import Settings, listen, run_app
from pellucid.trace.registered_vectors import NO_VECTORS, RegisteredVectors

PATIENCE = 120.0  # seconds that a request waits for its model's replicas
# Bytes of weights in this process. There is no limit, because the replicas hold the weights.
UNLIMITED = 1 << 62


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

    pool = ModelPool(names, load, UNLIMITED, any_name=settings.any_model, local=False)
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
