"""Stands in for the module ``ray``: actors in this process, and links to replicas that are actors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from pellucid.cluster import supervisor
from pellucid.cluster.routing import ReplicaLoad
from pellucid.cluster.secret import ClusterSecret
from support.links import Changed, links_made_by


class Actor:
    """A replica's actor. It comes up at ``listen``; an actor that is not ``placed`` waits for a machine."""

    def __init__(self, name: str, placed: bool = True) -> None:
        self.name, self.placed, self.told = name, asyncio.Event(), 0
        if placed:
            self.placed.set()
        self.waited_for = SimpleNamespace(remote=lambda: asyncio.ensure_future(self.wait()))
        self.listen = SimpleNamespace(remote=lambda: asyncio.ensure_future(self.up()))
        self.served = SimpleNamespace(remote=lambda: asyncio.ensure_future(asyncio.sleep(60)))

    async def wait(self) -> None:
        self.told += 1
        await self.placed.wait()

    async def up(self) -> tuple[str, str, str]:
        return f"tcp://{self.name}", ClusterSecret.drawn().text, "here"


class Link:
    """A link to a replica that is up, and runs what it gets until the fleet cancels it."""

    def __init__(self, address: str, changed: Changed) -> None:
        self.address, self.load = address, ReplicaLoad(address)
        self.up, self.draining, self.slots = True, False, 2
        self.state, self.sent = None, list[tuple[Any, ...]]()
        asyncio.get_running_loop().call_soon(changed, self)

    def send(self, *message: Any) -> None:
        self.sent.append(message)

    async def close(self) -> None:
        self.up = False


class Ray:
    """Makes actors by name with ``make``. ``ended`` are the names of the actors that were killed, in order."""

    def __init__(self, make: Callable[[str], Any] = Actor) -> None:
        self.actors, self.ended, self.make = dict[str, Any](), list[str](), make
        self.util = SimpleNamespace(list_named_actors=lambda: [*self.actors])

    def remote(self, kind: type) -> Any:
        def options(*, name: str, **_: Any) -> Any:
            return SimpleNamespace(remote=lambda *_: self.actors.setdefault(name, self.make(name)))

        return SimpleNamespace(options=options)

    def get_actor(self, name: str, namespace: str) -> Any:
        if name not in self.actors:
            raise ValueError(name)
        return self.actors[name]

    def kill(self, actor: Any) -> None:
        (name,) = (name for name, one in self.actors.items() if one is actor)
        del self.actors[name]
        self.ended.append(name)


@contextmanager
def fake_ray(make: Callable[[str], Any] = Actor) -> Iterator[Ray]:
    """Supervisors use a `Ray` and `Link`s while the block runs, and do not wait between their attempts."""
    ray = Ray(make)
    with pytest.MonkeyPatch.context() as patch, links_made_by(lambda address, hear, changed: Link(address, changed)):
        patch.setattr(supervisor, "ray", ray)
        for name in ("RESTARTS", "LEAVES", "TURN"):
            patch.setattr(supervisor, name, 0.001)
        yield ray
