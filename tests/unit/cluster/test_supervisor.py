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
from pellucid.cluster.stage_server import StageLost
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


def test_what_a_model_gives_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle replica ends, and replicas without a machine before it. A busy replica and the last replica stay."""

    async def main() -> None:
        secret, removed = ClusterSecret.drawn(), list[str]()
        settings = ReplicaSettings("a model", least=4, most=4)
        supervisor = Supervisor(Fleet(secret), settings, secret)

        async def remove(name: str) -> None:
            removed.append(name)
            replica = supervisor._replicas.pop(name)
            supervisor.fleet._links.pop(replica.address, None)

        monkeypatch.setattr(supervisor, "_remove", remove)
        for name, running in (("busy", 1), ("idle", 0), ("waiting", None)):
            replica = supervisor._replicas[name] = module._Supervised(name)
            if running is not None:
                replica.placed, replica.address = True, f"tcp://{name}"
                load = SimpleNamespace(running=running)
                link: Any = SimpleNamespace(address=replica.address, up=True, slots=2, load=load)
                supervisor.fleet._links[replica.address] = link
        assert (supervisor.waits, supervisor.lacks, supervisor.idle) == (False, True, ["idle"])
        supervisor.fleet._running.update(dict.fromkeys(range(4), (None, None)))  # type: ignore[misc]
        assert supervisor.waits, "all replicas are busy"
        assert await supervisor.give_back()
        assert removed == ["waiting", "idle"]
        assert not await supervisor.give_back()
        assert not supervisor.waits, "no replica waits for a machine"
        supervisor._replicas.clear()
        supervisor._replicas["waiting"] = module._Supervised("waiting")
        assert supervisor.waits
        supervisor._closed = True
        assert not supervisor.waits
        supervisor.fleet._links.clear()
        supervisor.fleet._running.clear()
        await supervisor.fleet.close()

    asyncio.run(asyncio.wait_for(main(), 20))
