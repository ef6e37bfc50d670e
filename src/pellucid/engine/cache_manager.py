"""The cache of a model: pages of keys and values, and the prefix cache, whose pages later requests share.

A step and every change of the cache exclude each other by one lock. Releasing a block table does not wait for the lock:
its pages are freed now, or before the next step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable, KVCache
from pellucid.runtime.prefix_cache import PrefixCache


class CacheManager:
    """Allocates, shares and frees the pages of ``kv``. Prefixes of ended requests may take ``prefix_bytes``.

    Methods may be called from any thread, except where they say that the caller holds the ``lock``. ``allocate``,
    ``insert`` and the methods below them are the only ones that change pages: a subclass that overrides these sees all
    changes (``cluster/staged_runner.py``).
    """

    def __init__(self, kv: KVCache, prefix_bytes: int) -> None:
        self.kv, self.prefixes = kv, PrefixCache(kv, prefix_bytes)
        """``prefixes``: whoever uses it sees to it that no step runs."""
        self.lock = threading.Lock()
        self._released: deque[tuple[BlockTable, Sequence[int]]] = deque()

    @property
    def has_states(self) -> bool:
        """Whether sequences have a recurrent state, which others share only where a step has ended at a page border."""
        return self.kv.has_states

    @staticmethod
    def pages_of(tables: Iterable[BlockTable]) -> int:
        """Number of pages of block tables, shared pages counted once. Needs no lock: a step may be changing them."""
        found = set[tuple[int, int]]()
        for table in tables:
            for group, blocks in enumerate(list(table.blocks)):
                found.update((group, page) for page in list(blocks.pages))
        return len(found)

    def reserve(self, table: BlockTable, tokens: int) -> None:
        """Allocate the pages of ``tokens`` more tokens before the step that runs them. Raises CacheFull."""
        with self.lock:
            self.drain()
            self.allocate(table, tokens)

    def fork(self, table: BlockTable) -> BlockTable:
        """A copy of a block table that can diverge."""
        with self.lock:
            self.drain()
            return self._fork(table)

    def truncate(self, table: BlockTable, length: int) -> int:
        """Drop the tokens of a block table from ``length`` on; 0 frees all pages.

        Returns how many tokens it holds: fewer than ``length`` if the cache can only go further back.
        """
        with self.lock:
            self.drain()
            return self._truncate(table, length)

    def release(self, *tables: BlockTable, tokens: Sequence[int] = ()) -> None:
        """Free all pages of block tables that are no longer used: now, or before the next step.

        With ``tokens``, which begin with those of a block table, its pages stay in the prefix cache until they are
        needed.

        This never waits for a lock, so it may run when a generator is closed: the garbage collector does that at any
        time, even during a step.
        """
        self._released.extend((table, tokens) for table in tables)
        if self.lock.acquire(blocking=False):
            try:
                self.drain()
            finally:
                self.lock.release()

    def find_prefix(self, ids: Sequence[int], most: int) -> BlockTable:
        """A block table of the longest beginning of ``ids``, of at most ``most`` tokens, that the cache holds."""
        with self.lock:
            self.drain()
            return self._find(ids, most)

    def match_prefix(self, ids: Sequence[int], most: int) -> int:
        """The number of the first ``most`` tokens of ``ids`` that the prefix cache has."""
        with self.lock:
            self.drain()
            return self.prefixes.match(ids, most)

    def keep_prefix(self, table: BlockTable, tokens: Sequence[int]) -> None:
        """Let other sequences use the whole pages of a block table that grows; ``tokens`` begin with its own."""
        with self.lock:
            self.drain()
            self._insert(table, tokens, grows=True)

    def watch_prefixes(self, listener: Callable[[int, bool], object] | None) -> list[int]:
        """Have ``listener`` called when a page of the prefix cache comes or goes (``PrefixCache.listener``).

        Returns the names of those that are there. It is called under the lock of the cache, and must be quick.
        """
        with self.lock:
            self.prefixes.listener = listener
            return self.prefixes.names()

    def clear_prefixes(self, limit: int | None = None) -> None:
        """Free all pages that no running sequence uses. From now on they may take ``limit`` bytes, if it is given."""
        with self.lock:
            self.drain()
            self._clear()
            self.prefixes.limit = self.prefixes.limit if limit is None else limit

    def trim(self) -> None:
        """Give memory that no request needs back to the system."""
        with self.lock:
            self.drain()
            self.kv.trim()

    def drain(self) -> None:
        """Free the pages of released block tables. The caller holds the lock."""
        while self._released:
            table, tokens = self._released.popleft()
            if tokens:
                self._insert(table, tokens)
            self._truncate(table, 0)

    def advance(self, chunks: Sequence[Chunk]) -> None:
        """The step of the chunks has run: their block tables grow. The caller holds the lock."""
        for chunk in chunks:
            self.kv.advance(chunk.table, len(chunk.tokens))

    def allocate(self, table: BlockTable, tokens: int, *, in_place: bool = True) -> None:
        """Allocate the pages of ``tokens`` more tokens (``KVCache.allocate``). The caller holds the lock.

        Raises:
            CacheFull: no pages are left.
        """
        self.kv.allocate(table, tokens, in_place=in_place)

    def _truncate(self, table: BlockTable, length: int) -> int:
        return self.kv.truncate(table, length)

    def _fork(self, table: BlockTable) -> BlockTable:
        return self.kv.fork(table)

    def _find(self, ids: Sequence[int], most: int) -> BlockTable:
        return self.prefixes.find(ids, most)

    def _insert(self, table: BlockTable, tokens: Sequence[int], *, grows: bool = False) -> None:
        self.prefixes.insert(table, tokens, grows=grows)

    def _clear(self) -> None:
        self.prefixes.clear()
