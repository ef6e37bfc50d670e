"""The context that fits into the free memory: bytes of a model with a context, and bytes that are free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pellucid.kernels.attention.disentangled import POSITION_BYTES
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.kernels.attention.walk import ScratchLayout
from pellucid.plan.bind import buffer_bytes
from pellucid.plan.plan import LETTER, Plan
from pellucid.plan.points import RowKind
from pellucid.runtime.batch import StepLimits
from pellucid.runtime.cache_layout import CachedLayer, LayerShape, groups_of, page_counts
from pellucid.runtime.memory import CACHE_LINE
from pellucid.runtime.processors import free_address_space, free_bytes, machine_bytes
from pellucid.weights.checkpoint import Checkpoint, stored_bytes

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
    positions = POSITION_BYTES if any("buckets" in op.fields for op in plan.operations) else 0
    shapes = [layer for layer in all_layers(plan) if isinstance(layer, LayerShape)]
    sizes = (ScratchLayout(layer.head_dim, layer.value_dim, positions).bytes(context) for layer in shapes)
    return max(sizes, default=CACHE_LINE)


class ModelMemory:
    """The memory of a model: bytes of its ``weights``, ``fixed`` bytes of weights and buffers, bytes of a context."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan, limits: StepLimits, threads: int) -> None:
        rows = rows_of(limits, threads)
        plans = [plan, plan.encoder] if plan.encoder else [plan]
        buffers = sum(
            buffer_bytes(buffer, rows[buffer.rows]) for one in plans for buffer in one.buffers.values()
        )
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
