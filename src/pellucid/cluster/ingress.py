"""The ingress: the server's own app in front of replicas. It reads requests, and writes answers of tokens that come."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pellucid import pipeline
from pellucid.cluster.actors import ReplicaSettings
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.model import RemoteModel
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.supervisor import Supervisor, connect
from pellucid.loading import OpenModel, open_model
from pellucid.plan.stages import cut
from pellucid.plan.weights import layouts
from pellucid.serve.app import create_app
from pellucid.serve.guard import AccessRules
from pellucid.serve.pool import ModelPool
from pellucid.serve.run import Settings, listen, run_app

UNLIMITED = 1 << 62  # bytes: weights are elsewhere


class SupervisedModel(RemoteModel):
    """A model with the supervisor of its replicas, which end with it."""

    def __init__(self, opened: OpenModel, supervisor: Supervisor) -> None:
        super().__init__(opened, supervisor.fleet)
        self.supervisor = supervisor

    def close(self) -> None:
        """End the replicas, and close the file."""
        self._wait(self.supervisor.close())
        super().close()


def serve_cluster(
    models: Mapping[str, ReplicaSettings],
    opening: Mapping[str, Any],
    address: str,
    secret: ClusterSecret,
    queue: int,
    rules: AccessRules,
    settings: Settings,
) -> None:
    """Serve models on replicas until SIGTERM or Ctrl-C. ``opening`` are options of ``loading.open_model``.

    The first model's replicas are started now, others' when they are asked for. SIGHUP replaces all replicas, one after
    the other.

    Raises:
        InvalidRequest: there is no such cluster, or the address to listen at is taken.
        PellucidError: the first model cannot be loaded.
    """
    listening, names = listen(settings), list(models)
    connect(address)

    def load(name: str) -> Coroutine[Any, Any, SupervisedModel]:
        opened = open_model(models[name].source, **opening)
        if models[name].stages > 1:
            plan = pipeline.build_plan(opened.model.spec, layouts(opened.checkpoint, opened.model))
            cut(plan, models[name].stages)
        return started(opened, name)

    async def started(opened: OpenModel, name: str) -> SupervisedModel:
        supervisor = Supervisor(Fleet(secret, queue), models[name], secret)
        supervisor.start()
        model = SupervisedModel(opened, supervisor)
        try:
            await supervisor.ready()
        except BaseException:
            await supervisor.close()
            opened.checkpoint.close()
            raise
        return model

    pool = ModelPool(names, load, UNLIMITED)
    replacing = set[asyncio.Task[None]]()

    async def replace(names: Sequence[str]) -> None:
        for name in names:
            model = pool.llm(name)
            if isinstance(model, SupervisedModel):
                await model.supervisor.replace()

    def asked_to_replace() -> None:
        task = asyncio.ensure_future(replace(pool.loaded))
        replacing.add(task)
        task.add_done_callback(replacing.discard)

    async def begin() -> None:
        with suppress(NotImplementedError, AttributeError, RuntimeError):  # not on every system or thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked_to_replace)
        async with pool.use(names[0]):
            pass

    run_app(create_app(pool, rules), names, listening, settings, begin=begin)
