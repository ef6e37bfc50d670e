"""The prefix cache: blocks of earlier requests, so that a prompt with the same beginning is not read again.

It holds the sequence of the last request, until another request or the cache needs its pages.
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
    """Lends the sequence of the last request to the next one.

    Nothing here waits for a lock: a request may end whenever Python collects garbage.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._free: deque[PrefixLease] = deque()
        me = weakref.ref(self)  # a cache that held its owner would keep it alive

        def reclaim() -> None:
            if prefixes := me():
                prefixes._runner.drain()
                prefixes._evict()

        runner.cache.reclaim = reclaim

    def acquire(self, ids: Sequence[int]) -> PrefixLease:
        """A lease for a prompt: the last request's sequence, cut to the common beginning, or an empty one."""
        try:
            lease = self._free.pop()
        except IndexError:
            return PrefixLease()
        common = 0
        while common < min(len(lease.tokens), len(ids) - 1) and lease.tokens[common] == ids[common]:
            common += 1
        self._runner.truncate(lease.table, common)
        del lease.tokens[common:]
        return lease

    def release(self, lease: PrefixLease, tokens: Sequence[int]) -> None:
        """A request has ended; ``tokens`` begin with those that its table holds."""
        lease.tokens = list(tokens[: lease.table.length])
        self._free.append(lease)
        while len(self._free) > 1:
            try:
                self._runner.release(self._free.popleft().table)
            except IndexError:  # another thread has acquired it
                return

    def _evict(self) -> None:
        """Free the pages that no request holds. Called by the cache, within a step."""
        try:
            while True:
                self._runner.cache.truncate(self._free.pop().table, 0)
        except IndexError:
            return
