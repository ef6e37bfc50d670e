"""A model's supervisor without Ray: when the model is ready, and which replicas end for another model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

pytest.importorskip("ray", reason="pip install 'pellucid[cluster]'")

from ray.exceptions import RayTaskError
from support.fake_ray import Actor, Ray, fake_ray

from pellucid.cluster import ray_actors
from pellucid.cluster import supervisor as module
from pellucid.cluster.fleet import Fleet, RemoteTask
from pellucid.cluster.ray_actors import ReplicaSettings
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.stage_server import StageLost
from pellucid.cluster.supervisor import Supervisor
from pellucid.errors import InvalidRequest, ModelNotFound, PellucidError, QueueFull


class Work(RemoteTask):
    """A request that runs until it is cancelled."""

    kind = "generate"

    def body(self) -> dict[str, Any]:
        return {}

    def take(self, kind: str, fields: Sequence[Any]) -> bool:
        return False

    def fail(self, error: PellucidError) -> None:
        """The fleet closes."""


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def supervised(
    work: Callable[[Supervisor, Ray], Coroutine[Any, Any, None]], make: Callable[[str], Any] = Actor, count: int = 1
) -> None:
    """Run ``work`` with a supervisor that starts ``count`` replicas, whose actors ``make`` makes."""

    async def main() -> None:
        with fake_ray(make) as ray:
            secret = ClusterSecret.drawn()
            supervisor = Supervisor(Fleet(secret), ReplicaSettings("a model", least=count, most=count), secret)
            await supervisor.start()
            try:
                await work(supervisor, ray)
            finally:
                await supervisor.close()
                await supervisor.fleet.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_windows_cannot_be_part_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_actors.sys, "platform", "win32")
    with pytest.raises(InvalidRequest, match="a cluster needs Linux or macOS"):
        ray_actors.connect("auto")


def test_ready_when_a_replica_is_up() -> None:
    async def work(supervisor: Supervisor, ray: Ray) -> None:
        await supervisor.ready(10.0)
        assert [link.address for link in supervisor.fleet.links] == [f"tcp://{name}" for name in ray.actors]

    supervised(work)


def test_no_replica_in_time() -> None:
    async def work(supervisor: Supervisor, ray: Ray) -> None:
        with pytest.raises(QueueFull, match="no machine of the cluster has room"):
            await supervisor.ready(0.1)

    supervised(work, lambda name: Actor(name, placed=False))


@pytest.mark.parametrize("losses", [0, 2])
def test_the_error_of_a_model_is_raised(losses: int) -> None:
    """The error of a model is final. After the loss of a stage, the replica loads again."""
    errors: list[Exception] = [*[StageLost("gone")] * losses, ModelNotFound("no model")]

    class Failing(Actor):
        async def up(self) -> tuple[str, str, str]:
            raise RayTaskError("listen", "", errors.pop(0))

    async def work(supervisor: Supervisor, ray: Ray) -> None:
        with pytest.raises(ModelNotFound, match="no model"):
            await supervisor.ready(10.0)
        assert not errors
        await until(lambda: len(ray.ended) == 1)

    supervised(work, Failing)


def test_a_server_says_that_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITS", 0.02)

    class Slow(Actor):
        async def up(self) -> tuple[str, str, str]:
            await until(lambda: self.told == 4)
            return await super().up()

    async def work(supervisor: Supervisor, ray: Ray) -> None:
        await supervisor.ready(10.0)
        assert [actor.told for actor in ray.actors.values()] == [4]

    supervised(work, Slow)


def test_what_a_model_gives_to_another() -> None:
    """An idle replica ends, and replicas without a machine before it. A busy replica and the last replica stay."""

    async def work(supervisor: Supervisor, ray: Ray) -> None:
        fleet = supervisor.fleet
        await until(lambda: len(ray.actors) == 4 and len(fleet.links) == 2)
        names = list(ray.actors)
        fleet.submit(Work([1]))
        (busy,) = (name for name, link in zip(names, fleet.links) if link.load.running)
        (idle,) = {*names[:2]} - {busy}
        assert (supervisor.waits, supervisor.lacks, supervisor.idle) == (False, False, [idle])
        others = [Work([number]) for number in range(3)]
        for other in others:
            fleet.submit(other)
        assert supervisor.waits, "all replicas are busy"
        assert not await supervisor.give_back()
        for other in others:
            fleet.cancel(other)
        assert supervisor.idle == [idle]
        assert await supervisor.give_back()
        assert ray.ended == [*names[2:], idle]
        assert supervisor.lacks
        assert not await supervisor.give_back()
        assert not supervisor.waits, "no replica waits for a machine"

    made = list[str]()

    def make(name: str) -> Actor:
        made.append(name)
        return Actor(name, placed=len(made) <= 2)

    supervised(work, make, 4)


def test_a_model_without_a_machine_waits() -> None:
    async def work(supervisor: Supervisor, ray: Ray) -> None:
        await until(lambda: len(ray.actors) == 1)
        assert (supervisor.waits, supervisor.starves) == (True, True)
        await supervisor.close()
        assert not supervisor.waits

    supervised(work, lambda name: Actor(name, placed=False))
