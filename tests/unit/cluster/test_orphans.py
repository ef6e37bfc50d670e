"""Replicas without a server end by themselves, before and after loading a model; without Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="pip install 'pellucid[cluster]'")

from pellucid.cluster import actors, supervisor
from pellucid.cluster.actors import ReplicaActor, ReplicaSettings
from pellucid.cluster.secret import ClusterSecret
from pellucid.load_options import LoadOptions

ORPHANED = 0.3


class Serving:
    """A replica that runs until it is closed, or fails."""

    def __init__(self, fails: bool = False) -> None:
        self.last_heard, self.fails, self.closing = 0.0, fails, asyncio.Event()

    async def serve(self) -> None:
        if self.fails:
            raise RuntimeError("it cannot go on")
        await self.closing.wait()

    def close(self) -> None:
        self.closing.set()


def run(work: Callable[[ReplicaActor, asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        made = ReplicaActor(ReplicaSettings("a model"), ClusterSecret.drawn().text, "replica", ORPHANED)
        ended = asyncio.Event()
        made._end = ended.set  # type: ignore[method-assign]
        await asyncio.wait_for(work(made, ended), 20)
        made._watching.cancel()

    asyncio.run(main())


def test_a_replica_that_was_started_again_and_nobody_asks_ends() -> None:
    async def work(made: ReplicaActor, ended: asyncio.Event) -> None:
        await ended.wait()
        assert made._replica is None

    run(work)


def test_a_replica_that_is_waited_for_may_load_for_long() -> None:
    async def work(made: ReplicaActor, ended: asyncio.Event) -> None:
        for _ in range(20):
            await made.waited_for()
            await asyncio.sleep(ORPHANED / 6)
            assert not ended.is_set()
        await ended.wait()

    run(work)


def test_a_replica_that_is_asked_runs_on_and_ends_without_a_server() -> None:
    async def work(made: ReplicaActor, ended: asyncio.Event) -> None:
        serving: Any = Serving()
        made._replica, made._serving = serving, asyncio.ensure_future(made._serve(serving))
        for _ in range(20):
            serving.last_heard = time.monotonic()
            await asyncio.sleep(ORPHANED / 6)
            assert not ended.is_set()
        await ended.wait()
        await made.served()

    run(work)


def test_a_replica_that_fails_ends(capsys: pytest.CaptureFixture[str]) -> None:
    async def work(made: ReplicaActor, ended: asyncio.Event) -> None:
        await made._serve(Serving(fails=True))  # type: ignore[arg-type]
        assert ended.is_set()

    run(work)
    assert capsys.readouterr().err == "replica: RuntimeError: it cannot go on\n"


def test_a_server_says_that_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "WAITS", 0.02)
    said = list[str]()

    async def listen() -> tuple[str, str, str]:
        while len(said) < 3:
            await asyncio.sleep(0.001)
        return "tcp://127.0.0.1:1", "a secret", "here"

    actor = SimpleNamespace(
        listen=SimpleNamespace(remote=listen), waited_for=SimpleNamespace(remote=lambda: said.append("waits"))
    )
    assert asyncio.run(supervisor._listens(actor)) == ("tcp://127.0.0.1:1", "a secret", "here")
    assert len(said) == 3


def test_a_replica_has_a_thread_for_each_of_its_cores() -> None:
    for given, wanted in (({}, 3), ({"threads": None}, 3), ({"threads": 2}, 2)):
        settings = ReplicaSettings("some.gguf", LoadOptions(**given, precise=True), cpus=3)
        assert actors._options(settings) == LoadOptions(threads=wanted, precise=True)
