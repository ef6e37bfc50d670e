"""The cache of a model: pages of keys and values, and the prefix cache, which shares pages with later requests.

Steps and all changes of the cache hold one lock. Releasing a block table never waits for the lock. If another thread
holds the lock, the pages are freed before the next step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from pellucid.runtime.cache import BlockTable, KVCache
from pellucid.runtime.prefix_cache import PrefixCache


class CacheManager:
    """Allocates, shares and frees the pages of ``kv``. The prefix cache may hold ``prefix_bytes`` bytes of pages.

    Methods may be called from any thread, unless their docstring says that the caller holds the ``lock``. Only
    ``allocate`` and the private methods change pages. A subclass that overrides these methods sees all changes
    (``cluster/staged_runner.py``).
    """

    def __init__(self, kv: KVCache, prefix_bytes: int) -> None:
        self.kv, self.prefixes = kv, PrefixCache(kv, prefix_bytes)
        """Use ``prefixes`` only while no step runs."""
        self.lock = threading.Lock()
        self._released: deque[tuple[BlockTable, Sequence[int]]] = deque()

    @property
    def has_states(self) -> bool:
        """True if sequences have a recurrent state. Only states at page borders where a step ended can be shared."""
        return self.kv.has_states

    @staticmethod
    def pages_of(tables: Iterable[BlockTable]) -> int:
        """Number of pages in block tables. Shared pages count once. Needs no lock, even while a step runs."""
        found = set[tuple[int, int]]()
        for table in tables:
            for group, blocks in enumerate(list(table.blocks)):
                found.update((group, page) for page in list(blocks.pages))
        return len(found)

    def reserve(self, table: BlockTable, tokens: int) -> None:
        """Allocate pages for ``tokens`` more tokens before the step that runs them. Raises CacheFull."""
        with self.lock:
            self.drain()
            self.allocate(table, tokens)

    def fork(self, table: BlockTable) -> BlockTable:
        """Copy a block table. The copy shares its pages and can diverge."""
        with self.lock:
            self.drain()
            return self._fork(table)

    def truncate(self, table: BlockTable, length: int) -> int:
        """Drop the tokens of a block table from ``length`` on; 0 frees all pages.

        Returns the number of tokens that remain. This is fewer than ``length`` if the cache can restore only an earlier
        snapshot.
        """
        with self.lock:
            self.drain()
            return self._truncate(table, length)

    def release(self, *tables: BlockTable, tokens: Sequence[int] = ()) -> None:
        """Free all pages of unused block tables, immediately or before the next step.

        With ``tokens`` the pages stay in the prefix cache until their memory is needed. ``tokens`` begin with the
        tokens of the block table.

        This method never waits for a lock. So the garbage collector may call it during a step, for example when the
        collector closes a generator.
        """
        self._released.extend((table, tokens) for table in tables)
        if self.lock.acquire(blocking=False):
            try:
                self.drain()
            finally:
                self.lock.release()

    def find_prefix(self, ids: Sequence[int], most: int, *, scaled: bool = False) -> BlockTable:
        """Block table of the longest prefix of ``ids`` in the prefix cache, with at most ``most`` tokens.

        Pages with ``scaled`` positions are apart from pages without (``BlockTable.scaled``).
        """
        with self.lock:
            self.drain()
            table = self._find(_names(ids, scaled), most)
            table.scaled = scaled
            return table

    def match_prefix(self, ids: Sequence[int], most: int, *, scaled: bool = False) -> int:
        """Length of the longest prefix of ``ids`` in the prefix cache, at most ``most`` tokens."""
        with self.lock:
            self.drain()
            return self.prefixes.match(_names(ids, scaled), most)

    def keep_prefix(self, table: BlockTable, tokens: Sequence[int], *, grows: bool = True) -> None:
        """Add the pages of a block table to the prefix cache; only full pages if it ``grows``.

        ``tokens`` begin with the table's tokens.
        """
        with self.lock:
            self.drain()
            self._insert(table, _names(tokens, table.scaled), grows=grows)

    def watch_prefixes(self, listener: Callable[[int, bool], object] | None) -> list[int]:
        """Call ``listener`` when a page enters or leaves the prefix cache (``PrefixCache.listener``).

        Returns the names of the pages that are in the prefix cache now. The listener runs under the lock of the cache,
        and must be quick.
        """
        with self.lock:
            self.prefixes.listener = listener
            return self.prefixes.names()

    def clear_prefixes(self, limit: int | None = None) -> None:
        """Empty the prefix cache, except for pages in use. ``limit`` sets its new size in bytes."""
        with self.lock:
            self.drain()
            self._clear()
            self.prefixes.limit = self.prefixes.limit if limit is None else limit

    def trim(self) -> None:
        """Return the memory of free pages to the system."""
        with self.lock:
            self.drain()
            self.kv.trim()

    def drain(self) -> None:
        """Free the pages of released block tables. The caller holds the lock."""
        while self._released:
            table, tokens = self._released.popleft()
            if tokens:
                self._insert(table, _names(tokens, table.scaled))
            self._truncate(table, 0)

    def allocate(self, table: BlockTable, tokens: int, *, in_place: bool = True) -> None:
        """Allocate pages for ``tokens`` more tokens (``KVCache.allocate``). The caller holds the lock.

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


def _names(tokens: Sequence[int], scaled: bool) -> Sequence[int]:
    """The names of tokens in the prefix cache: numbers below 0 for tokens with scaled positions."""
    return [~token for token in tokens] if scaled else tokens
