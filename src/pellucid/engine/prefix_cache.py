"""The prefix cache: a prompt that begins like an earlier request reuses the keys and values of that beginning.

It holds the block table of the last request, until another request takes it or the cache needs its pages.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pellucid.engine.model_runner import ModelRunner
from pellucid.runtime.cache import BlockTable


@dataclass
class PrefixLease:
    """A block table lent to a request, and the tokens whose keys and values it holds."""

    table: BlockTable = field(default_factory=BlockTable)
    tokens: list[int] = field(default_factory=list)


class PrefixCache:
    """Lends the block table of the last request to the next one.

    ``release`` waits for no lock: a request may end whenever the garbage collector runs.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._idle_leases: deque[PrefixLease] = deque()
        # A strong reference in the key/value cache would keep this object alive.
        weak_self = weakref.ref(self)

        def reclaim() -> None:
            if prefixes := weak_self():
                prefixes._runner.drain()
                prefixes._evict()

        runner.cache.reclaim = reclaim

    def acquire(self, ids: Sequence[int]) -> PrefixLease:
        """A lease for a prompt: the last request's block table, truncated to the common beginning, or an empty one.

        At least one token of the prompt is left out of the common beginning, because its step computes the logits of
        the token that follows. More are left out if the cache can only go back to an earlier snapshot.
        """
        try:
            lease = self._idle_leases.pop()
        except IndexError:
            return PrefixLease()
        common = 0
        while common < min(len(lease.tokens), len(ids) - 1) and lease.tokens[common] == ids[common]:
            common += 1
        kept = self._runner.truncate(lease.table, common)
        del lease.tokens[kept:]
        return lease

    def release(self, lease: PrefixLease, tokens: Sequence[int]) -> None:
        """Take back a lease at the end of a request; ``tokens`` begin with those that its block table holds."""
        lease.tokens = list(tokens[: lease.table.length])
        self._idle_leases.append(lease)
        while len(self._idle_leases) > 1:
            try:
                self._runner.release(self._idle_leases.popleft().table)
            except IndexError:  # another thread has acquired it
                return

    def _evict(self) -> None:
        """Free the pages that no request holds. The key/value cache calls this within a step."""
        try:
            while True:
                self._runner.cache.truncate(self._idle_leases.pop().table, 0)
        except IndexError:
            return
