"""Readiness of a model's replicas, without Ray."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("ray", reason="pip install 'pellucid[cluster]'")

from pellucid.cluster.actors import ReplicaSettings
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.supervisor import Supervisor
from pellucid.errors import ModelNotFound, QueueFull


def ready(seconds: float, *, up: bool = False, fails: bool = False) -> None:
    """Wait for a replica that comes up, or fails to load, a moment later."""

    async def main() -> None:
        secret = ClusterSecret.drawn()
        supervisor = Supervisor(Fleet(secret), ReplicaSettings("a model"), secret)
        if up:
            supervisor.fleet.loop.call_later(0.05, supervisor.fleet._up.set)
        if fails:
            supervisor.fleet.loop.call_later(0.05, supervisor._failure.set_result, ModelNotFound("no model"))
        try:
            await supervisor.ready(seconds)
        finally:
            await supervisor.fleet.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_ready_when_a_replica_is_up() -> None:
    ready(10.0, up=True)


def test_no_replica_in_time() -> None:
    with pytest.raises(QueueFull, match="no machine of the cluster has room"):
        ready(0.1)


def test_the_error_of_a_replica_is_raised() -> None:
    with pytest.raises(ModelNotFound, match="no model"):
        ready(10.0, fails=True)
