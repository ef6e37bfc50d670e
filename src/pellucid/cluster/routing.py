"""Which replica a request goes to: the one that has most of its beginning, unless that has too much to do already.

Beginnings are compared by the names of their pages, which replicas publish (``runtime/prefix_cache.py``). Requests that
no replica knows are spread by rendezvous hashing of their first page (Thaler and Ravishankar 1998), so that equal
beginnings meet. How much a replica may have is bounded by its share of all requests (consistent hashing with bounded
loads, Mirrokni, Thorup and Zadimoghaddam 2018): a share is weighted by how fast the replica's steps are.

Plain Python: no socket and no model is needed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from pellucid.runtime.prefix_cache import page_names

SPARE = 0.25
"""How much more than its share a replica may have before requests go elsewhere, as a part of the share."""
MOST_SENT = 20_000  # names of pages that are remembered of what was sent to a replica


@dataclass(eq=False)
class ReplicaLoad:
    """What is known of a replica: the ``pages`` that it has, how many requests were sent to it and have not ended, and
    how many seconds a step takes.
    """

    name: str
    pages: set[int] = field(default_factory=set)
    running: int = 0
    step_seconds: float = 0.0
    sent: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Names of pages of requests that were sent to it: it will have them soon."""

    def has(self, names: Sequence[int]) -> int:
        """How many of a text's first pages it has, or will have."""
        count = 0
        for name in names:
            if name not in self.pages and name not in self.sent:
                break
            count += 1
        return count

    def expect(self, names: Iterable[int]) -> None:
        """A text of these pages is sent to it."""
        for name in names:
            self.sent[name] = None
            self.sent.move_to_end(name)
        while len(self.sent) > MOST_SENT:
            self.sent.popitem(last=False)

    def lost(self, names: Iterable[int]) -> None:
        """Pages that it had are gone."""
        for name in names:
            self.pages.discard(name)
            self.sent.pop(name, None)


@dataclass(frozen=True)
class ChosenReplica:
    """Where a request goes, how many of its first pages are there, and the names of all of its pages."""

    replica: ReplicaLoad
    pages: int
    names: Sequence[int]


def choose(ids: Sequence[int], replicas: Sequence[ReplicaLoad], spare: float = SPARE) -> ChosenReplica:
    """The replica for a prompt, of those that can take one; there must be one at least."""
    names = list(page_names(ids))
    ranked = sorted(replicas, key=lambda one: (-one.has(names), _distance(names, ids, one)))
    shares = _shares(replicas)
    total = sum(one.running for one in replicas) + 1
    for one in ranked:
        if one.running + 1 <= math.ceil((1 + spare) * total * shares[one]):
            return ChosenReplica(one, one.has(names), names)
    least = min(ranked, key=lambda one: one.running / shares[one])
    return ChosenReplica(least, least.has(names), names)


def _distance(names: Sequence[int], ids: Sequence[int], replica: ReplicaLoad) -> bytes:
    """A number that is drawn by a text's beginning and a replica: the lowest wins."""
    begins = names[0].to_bytes(8, "little") if names else repr(list(ids)).encode()
    return blake2b(replica.name.encode() + b"\0" + begins, digest_size=8).digest()


def _shares(replicas: Sequence[ReplicaLoad]) -> dict[ReplicaLoad, float]:
    """Each replica's part of the work, by the speed of its steps; unknown ones are as fast as the mean."""
    known = [one.step_seconds for one in replicas if one.step_seconds]
    usual = sum(known) / len(known) if known else 1.0
    speeds = {one: 1.0 / (one.step_seconds or usual) for one in replicas}
    total = sum(speeds.values())
    return {one: speed / total for one, speed in speeds.items()}
