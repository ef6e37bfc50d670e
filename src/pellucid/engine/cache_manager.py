"""The cache of a model: pages of keys and values, the prefix cache, and the context that fits into memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.kernels.attention.rows import ScratchLayout
from pellucid.plan.bind import buffer_bytes
from pellucid.plan.plan import LETTER, Plan
from pellucid.plan.points import RowKind
from pellucid.runtime.batch import StepLimits
from pellucid.runtime.cache import BlockTable, KVCache
from pellucid.runtime.cache_layout import CachedLayer, LayerShape, groups_of, page_counts
from pellucid.runtime.memory import CACHE_LINE
from pellucid.runtime.prefix_cache import PrefixCache
from pellucid.runtime.processors import free_address_space, free_bytes, machine_bytes
from pellucid.weights.checkpoint import Checkpoint, stored_bytes

# The cache of a model: pages of keys and values, and the prefix cache, which shares pages with later requests.
#
# Steps and all changes of the cache hold one lock. Releasing a block table never waits for the lock. If another thread
# holds the lock, the pages are freed before the next step.


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


# The context that fits into the free memory: bytes of a model with a context, and bytes that are free.

MIN_CONTEXT = 512  # a shorter context is not worth loading the model
STEP = 256  # a reduced context is a multiple of this number
RESERVE = 0.1  # part of the free memory that stays free for other processes
GROWTH = 64 << 20  # bytes that a process needs beside weights, buffers and cache
# Address space that libraries, the compiler and the heaps and stacks of threads reserve, mostly without using it.
RESERVED, RESERVED_BY_THREAD = 256 << 20, 72 << 20


class FreeMemory(NamedTuple):
    """Bytes of free memory and of free address space; None: not known, or not limited."""

    memory: int | None
    address_space: int | None

    @property
    def least(self) -> int:
        """The smaller of the two; 0 if neither is known."""
        return min((size for size in self if size is not None), default=0)

    def __str__(self) -> str:
        kind = "memory" if self.least == self.memory else "address space (ulimit)"
        return f"{self.least / 1e9:.2f} GB of {kind} are free"


def free_memory() -> FreeMemory:
    """The memory that is free now, within the limits of the machine, the container and ``ulimit``."""
    return FreeMemory(free_bytes(), free_address_space())


def rows_of(limits: StepLimits, threads: int) -> Mapping[RowKind, int]:
    """Rows of the buffers of a plan. In a step with one row each thread may have its own copy of the row."""
    rows: dict[RowKind, int] = {kind: max(getattr(limits, kind, 1), threads) for kind in LETTER}
    return rows | {"once": 1}


def pages_of(plan: Plan, limits: StepLimits, kv_memory: int | None) -> list[int]:
    """The number of pages of each group of the cache. ``kv_memory`` is as in ``ModelRunner``."""
    memory = machine_bytes()
    if kv_memory is not None:  # each group takes a quarter of this at most
        memory = min(memory, 4 * kv_memory // max(1, len(groups_of(plan.layers))))
    return page_counts(plan.layers, limits.context, limits.tokens, limits.sequences, memory)


def all_layers(plan: Plan) -> tuple[CachedLayer, ...]:
    """The cached layers that a plan reads: its own, and the layers of an encoder's sources."""
    return (*plan.layers, *(plan.encoder.layers if plan.encoder else ()))


def scratch_bytes(plan: Plan, context: int) -> int:
    """Bytes of the scratch memory of a thread."""
    positions = 0
    if any("buckets" in op.fields for op in plan.operations):
        from pellucid.kernels.attention.disentangled import POSITION_BYTES

        positions = POSITION_BYTES
    shapes = [layer for layer in all_layers(plan) if isinstance(layer, LayerShape)]
    sizes = (ScratchLayout(layer.head_dim, layer.value_dim, positions).bytes(context) for layer in shapes)
    return max(sizes, default=CACHE_LINE)


class ModelMemory:
    """The memory of a model: bytes of its ``weights``, ``fixed`` bytes of weights and buffers, bytes of a context."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan, limits: StepLimits, threads: int) -> None:
        rows = rows_of(limits, threads)
        plans = [plan, plan.encoder] if plan.encoder else [plan]
        buffers = sum(buffer_bytes(buffer, rows[buffer.rows]) for one in plans for buffer in one.buffers.values())
        self.weights = max(stored_bytes(checkpoint), plan.weight_bytes)
        self.fixed = self.weights + buffers + GROWTH
        self._plans, self._limits, self._threads = plans, limits, threads

    def context_bytes(self, context: int, sequences: int = 1) -> int:
        """Bytes of the keys, values and states of one full context, and a page for each further sequence."""
        pages = 0
        for plan in self._plans:
            counts = page_counts(plan.layers, context, self._limits.tokens, sequences, memory=0)
            pages += sum(group.page_bytes * count for group, count in zip(groups_of(plan.layers), counts))
        return pages + sum(self._threads * scratch_bytes(plan, context) for plan in self._plans)

    def room(self, free: FreeMemory) -> int | None:
        """Bytes of ``free`` that contexts may take; None: not known."""
        rooms = []
        if free.memory is not None:
            rooms.append(int(free.memory * (1 - RESERVE)) - self.fixed)
        if free.address_space is not None:
            # The pool reserves the pages of all sequences at once.
            further = self.context_bytes(PAGE, self._limits.sequences) - self.context_bytes(PAGE)
            reserved = RESERVED + RESERVED_BY_THREAD * self._threads
            rooms.append(free.address_space - self.fixed - reserved - further)
        return min(rooms, default=None)

    def longest_context(self, stated: int, room: int) -> int:
        """The longest context of at most ``stated`` tokens whose bytes are at most ``room``.

        It is at least `MIN_CONTEXT`. A shorter context than ``stated`` is a multiple of `STEP`.
        """
        if stated <= MIN_CONTEXT or self.context_bytes(stated) <= room:
            return stated
        low, high = 0, -(-stated // STEP)  # low fits (or is 0), high does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.context_bytes(middle * STEP) <= room else (low, middle)
        return max(low * STEP, MIN_CONTEXT)

    @property
    def least_bytes(self) -> int:
        """Bytes that the model needs to start at all: its weights and a short context."""
        return self.weights + self.context_bytes(MIN_CONTEXT)
