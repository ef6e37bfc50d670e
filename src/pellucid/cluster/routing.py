"""Which replica a request goes to: the one that has most of its beginning, unless that has too much to do already.

Beginnings are compared by the names of their pages, which replicas publish (``runtime/prefix_cache.py``). Requests that
no replica knows are spread by rendezvous hashing of their first page (Thaler and Ravishankar 1998), so that equal
beginnings meet. How much a replica may have is bounded by its share of all requests (consistent hashing with bounded
loads, Mirrokni, Thorup and Zadimoghaddam 2018): a share is weighted by how fast the replica's steps are.

No socket and no model is needed.
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

    def __post_init__(self) -> None:
        self.rename(self.name)

    def rename(self, name: str) -> None:
        """It has another name, by which it is drawn."""
        self.name, self.seed = name, _digest(name)

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
    """The replica for a prompt, of those that can take one; there must be one at least.

    Of those that may have more: the one that has most of its pages, then the one that is drawn. If none may, the one
    that has the least to do for its share.
    """
    names, count = list(page_names(ids)), len(replicas)
    begins = names[0] if names else _digest(repr(list(ids)))
    known = np.fromiter((one.has(names) for one in replicas), np.int64, count)
    running = np.fromiter((one.running for one in replicas), np.int64, count)
    shares = _shares(np.fromiter((one.step_seconds for one in replicas), np.float64, count))
    bounds = np.ceil((1 + spare) * (running.sum() + 1) * shares)
    work = np.where(running + 1 <= bounds, 0.0, (running + 1) / shares)
    at = int(np.lexsort((_draws(begins, replicas), -known, work))[0])
    return ChosenReplica(replicas[at], int(known[at]), names)


def _digest(text: str) -> int:
    """64 bits of a hash."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _draws(begins: int, replicas: Sequence[ReplicaLoad]) -> NDArray[np.uint64]:
    """Numbers drawn by a text's beginning and each replica (SplitMix64, Steele et al. 2014): the lowest wins."""
    drawn = np.fromiter((one.seed for one in replicas), np.uint64, len(replicas)) ^ np.uint64(begins)
    drawn = (drawn ^ (drawn >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    drawn = (drawn ^ (drawn >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    made: NDArray[np.uint64] = drawn ^ (drawn >> np.uint64(31))
    return made


def _shares(step_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each replica's part of the work, by the speed of its steps; unknown ones are as fast as the mean."""
    known = step_seconds[step_seconds > 0]
    usual = known.mean() if len(known) else 1.0
    speeds: NDArray[np.float64] = 1.0 / np.where(step_seconds > 0, step_seconds, usual)
    speeds /= speeds.sum()
    return speeds
