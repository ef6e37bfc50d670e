"""Readiness of a model's replicas, without Ray."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="pip install 'pellucid[cluster]'")

from ray.exceptions import RayTaskError

from pellucid.cluster import ray_head
from pellucid.cluster import supervisor as module
from pellucid.cluster.actors import ReplicaSettings
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.stage_connection import StageLost
from pellucid.cluster.supervisor import Supervisor
from pellucid.errors import InvalidRequest, ModelNotFound, QueueFull


def test_windows_cannot_be_part_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_head.sys, "platform", "win32")
    with pytest.raises(InvalidRequest, match="a cluster needs Linux or macOS"):
        ray_head.connect("auto")


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


def test_a_stage_that_is_lost_while_the_replica_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica loads again. An error of the model is final."""
    monkeypatch.setattr(module, "RESTARTS", 0.01)
    monkeypatch.setattr(module, "_has_ended", lambda name: False)
    monkeypatch.setattr(module, "_kill", lambda actor: asyncio.sleep(0))

    async def main() -> None:
        secret = ClusterSecret.drawn()
        errors: list[Exception] = [StageLost("gone"), StageLost("gone"), ModelNotFound("no model")]

        async def listen() -> Any:
            raise RayTaskError("listen", "", errors.pop(0))

        actor = SimpleNamespace(
            waited_for=SimpleNamespace(remote=lambda: asyncio.sleep(0)), listen=SimpleNamespace(remote=listen)
        )
        supervisor = Supervisor(Fleet(secret), ReplicaSettings("a model"), secret)
        monkeypatch.setattr(supervisor, "_created", lambda name: actor)
        supervisor._add()
        with pytest.raises(ModelNotFound):
            await supervisor.ready(10.0)
        assert not errors
        await supervisor.close()
        await supervisor.fleet.close()

    asyncio.run(asyncio.wait_for(main(), 20))
