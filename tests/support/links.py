"""A fleet's links to replicas that do not exist, and links that change what replicas say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import pytest

from pellucid.cluster import fleet
from pellucid.cluster.replica_link import ReplicaLink

Hear: TypeAlias = "Callable[[Any, Sequence[Any]], object]"
Changed: TypeAlias = "Callable[[Any], object]"


@contextmanager
def links_made_by(make: Callable[[str, Hear, Changed], Any]) -> Iterator[None]:
    """Fleets use ``make(address, hear, changed)`` in place of a ``ReplicaLink`` while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, "ReplicaLink", lambda context, secret, session, *rest: make(*rest))
        yield


@contextmanager
def messages_changed_by(change: Callable[[ReplicaLink, Sequence[Any]], Sequence[Any] | None]) -> Iterator[None]:
    """Links of fleets pass on ``change(link, message)`` for each message about a request; None drops the message."""

    def make(*given: Any) -> ReplicaLink:
        *most, hear, changed = given

        def changing(link: ReplicaLink, message: Sequence[Any]) -> None:
            if (new := change(link, message)) is not None:
                hear(link, new)

        return ReplicaLink(*most, changing, changed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, "ReplicaLink", make)
        yield
