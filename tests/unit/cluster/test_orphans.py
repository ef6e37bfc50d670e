"""Replicas without a server end by themselves, before and after loading a model; without Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="pip install 'pellucid[cluster]'")

from pellucid import loading
from pellucid.cluster import ray_actors
from pellucid.cluster.ray_actors import ReplicaActor, ReplicaSettings
from pellucid.cluster.secret import ClusterSecret
from pellucid.load_options import LoadOptions

ORPHANED = 0.3
SETTINGS = ReplicaSettings("a model")


class Serving:
    """A replica that runs until it is closed, or fails."""

    fails = False

    def __init__(self, *_: Any) -> None:
        self.last_heard, self.closing = time.monotonic(), asyncio.Event()

    async def listen(self, host: str) -> str:
        return f"tcp://{host}:1"

    async def serve(self) -> None:
        if self.fails:
            raise RuntimeError("it cannot go on")
        await self.closing.wait()

    def close(self) -> None:
        self.closing.set()


class Failing(Serving):
    fails = True


def run(
    work: Callable[[ReplicaActor, asyncio.Event], Coroutine[Any, Any, None]],
    kind: type[Serving] = Serving,
    settings: ReplicaSettings = SETTINGS,
) -> list[LoadOptions]:
    """Run ``work`` with an actor whose replica is of a kind. Returns the options of each load."""
    loads = list[LoadOptions]()

    def load(source: str, options: LoadOptions, make: Any) -> None:
        loads.append(options)

    async def main() -> None:
        ended = asyncio.Event()
        context = SimpleNamespace(current_actor="this actor")
        ray = SimpleNamespace(
            kill=lambda actor: ended.set(),
            get_runtime_context=lambda: context,
            util=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1"),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray_actors, "ray", ray)
            patch.setattr(ray_actors, "Replica", kind)
            patch.setattr(loading, "load_model", load)
            made = ReplicaActor(settings, ClusterSecret.drawn().text, "replica", ORPHANED)
            await asyncio.wait_for(work(made, ended), 20)

    asyncio.run(main())
    return loads


def test_a_replica_that_was_started_again_and_nobody_asks_ends() -> None:
    async def work(made: ReplicaActor, ended: asyncio.Event) -> None:
        await ended.wait()

    assert run(work) == []


def test_a_replica_that_is_waited_for_may_load_for_long() -> None:
    async def work(made: ReplicaActor, ended: asyncio.Event) -> None:
        for _ in range(20):
            await made.waited_for()
            await asyncio.sleep(ORPHANED / 6)
            assert not ended.is_set()
        await ended.wait()

    run(work)


def test_a_replica_that_is_asked_runs_on_and_ends_without_a_server() -> None:
    replicas = list[Serving]()

    class Listed(Serving):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            replicas.append(self)

    async def work(made: ReplicaActor, ended: asyncio.Event) -> None:
        await made.listen()
        for _ in range(20):
            replicas[0].last_heard = time.monotonic()
            await asyncio.sleep(ORPHANED / 6)
            assert not ended.is_set()
        await ended.wait()
        await made.served()

    assert len(run(work, Listed)) == len(replicas) == 1


def test_a_replica_that_fails_ends(capsys: pytest.CaptureFixture[str]) -> None:
    async def work(made: ReplicaActor, ended: asyncio.Event) -> None:
        await made.listen()
        await ended.wait()

    run(work, Failing)
    assert capsys.readouterr().err == "replica: RuntimeError: it cannot go on\n"


def test_a_replica_has_a_thread_for_each_of_its_cores() -> None:
    async def work(made: ReplicaActor, ended: asyncio.Event) -> None:
        assert (await made.listen())[0] == "tcp://127.0.0.1:1"

    for given, wanted in (({}, 3), ({"threads": None}, 3), ({"threads": 2}, 2)):
        settings = ReplicaSettings("some.gguf", LoadOptions(**given, precise=True), cpus=3)
        assert run(work, settings=settings) == [LoadOptions(threads=wanted, precise=True)]
