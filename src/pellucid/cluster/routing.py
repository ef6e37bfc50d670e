"""The router: chooses the replica that has cached the longest prefix of a prompt, unless that replica is overloaded.

A page's name is a hash of the prompt up to the end of this page (``runtime/prefix_cache.py``). Replicas publish the
names of their cached pages, and the router compares names. Requests without a cached prefix are spread by rendezvous
hashing of their first page (Thaler and Ravishankar 1998), so requests with equal prefixes go to the same replica. Each
replica has a share of all requests, and replicas with faster steps have a larger share. The share bounds the load of
the replica (consistent hashing with bounded loads, Mirrokni, Thorup and Zadimoghaddam 2018).

The router needs no socket and no model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from pellucid.runtime.prefix_cache import page_names

SPARE = 0.25
"""Allowed load above a replica's share, as a fraction of the share. Further requests go to other replicas."""
MAX_SENT = 20_000  # page names of sent requests that the router remembers for each replica


@dataclass(eq=False)
class ReplicaLoad:
    """A replica as the router sees it: its cached ``pages``, its number of ``running`` requests, the mean step time."""

    name: str
    pages: set[int] = field(default_factory=set)
    running: int = 0
    step_seconds: float = 0.0
    sent: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Page names of the requests that were sent to the replica. The replica will soon have cached these pages."""

    def __post_init__(self) -> None:
        self.rename(self.name)

    def rename(self, name: str) -> None:
        """Change the name. The name seeds the replica's pseudo-random numbers in rendezvous hashing."""
        self.name, self.seed = name, _digest(name)

    def has(self, names: Sequence[int]) -> int:
        """Return the number of leading pages of a prompt that the replica has or will have."""
        count = 0
        for name in names:
            if name not in self.pages and name not in self.sent:
                break
            count += 1
        return count

    def expect(self, names: Iterable[int]) -> None:
        """Record that a prompt with these pages was sent to the replica."""
        for name in names:
            self.sent[name] = None
            self.sent.move_to_end(name)
        while len(self.sent) > MAX_SENT:
            self.sent.popitem(last=False)

    def evict(self, names: Iterable[int]) -> None:
        """Record that the replica has evicted these pages."""
        for name in names:
            self.pages.discard(name)
            self.sent.pop(name, None)


@dataclass(frozen=True)
class ChosenReplica:
    """A routing decision: the replica, and the names of all pages of the prompt.

    ``pages`` is the number of leading pages of the prompt that the replica has cached.
    """

    replica: ReplicaLoad
    pages: int
    names: Sequence[int]


def choose(ids: Sequence[int], replicas: Sequence[ReplicaLoad], spare: float = SPARE) -> ChosenReplica:
    """Choose a replica for a prompt. ``replicas`` are the replicas that accept requests, at least one replica.

    Among the replicas below their load bound, the replica with the most cached pages wins. Ties go to the replica with
    the lowest pseudo-random number. If all replicas are at their bound, the replica with the lowest ratio of load to
    share wins.
    """
    names, count = list(page_names(ids)), len(replicas)
    begins = names[0] if names else _digest(repr(list(ids)))
    known = np.fromiter((replica.has(names) for replica in replicas), np.int64, count)
    running = np.fromiter((replica.running for replica in replicas), np.int64, count)
    shares = _shares(np.fromiter((replica.step_seconds for replica in replicas), np.float64, count))
    bounds = np.ceil((1 + spare) * (running.sum() + 1) * shares)
    work = np.where(running + 1 <= bounds, 0.0, (running + 1) / shares)
    at = int(np.lexsort((_draws(begins, replicas), -known, work))[0])
    return ChosenReplica(replicas[at], int(known[at]), names)


def _digest(text: str) -> int:
    """Return a 64-bit hash of a text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _draws(begins: int, replicas: Sequence[ReplicaLoad]) -> NDArray[np.uint64]:
    """Return a pseudo-random number for each replica. In a tie the replica with the lowest number wins.

    The prompt's first page and the replica's name are mixed as in SplitMix64 (Steele et al. 2014).
    """
    drawn = np.fromiter((replica.seed for replica in replicas), np.uint64, len(replicas)) ^ np.uint64(begins)
    drawn = (drawn ^ (drawn >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    drawn = (drawn ^ (drawn >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = drawn ^ (drawn >> np.uint64(31))
    return mixed


def _shares(step_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each replica's share of the requests, in proportion to the speed of its steps.

    A replica with an unknown step time counts with the mean step time.
    """
    known = step_seconds[step_seconds > 0]
    usual = known.mean() if len(known) else 1.0
    speeds: NDArray[np.float64] = 1.0 / np.where(step_seconds > 0, step_seconds, usual)
    speeds /= speeds.sum()
    return speeds
