"""Binds a plan to memory: fills the addresses of buffers, packed weights and cache pages into the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import definition
from pellucid.kernels.core.library import CompileProgress, shared
from pellucid.kernels.core.record import WORD
from pellucid.kernels.matmul.packed_layout import BLOCK
from pellucid.kernels.matmul.quantize import block_bytes
from pellucid.plan.builder import ROW_COUNT
from pellucid.plan.plan import (
    At,
    Buffer,
    Cache,
    CacheGroup,
    Constant,
    Fill,
    Operation,
    PageBytes,
    Plan,
    ScoreBias,
    Value,
    Vector,
    Weights,
)
from pellucid.plan.points import RowKind
from pellucid.runtime.cache import KVCache
from pellucid.runtime.executor import LOOP_KERNELS, Program, table
from pellucid.runtime.memory import address, aligned
from pellucid.weights.pack import Matrix


class Arrays(Struct, frozen=True):
    """The memory of a plan: the buffers by name, as arrays (rows, width) or as bytes of activation blocks."""

    by_name: dict[str, NDArray[Any]]


def allocate(buffers: Mapping[str, Buffer], limits: Mapping[RowKind, int]) -> Arrays:
    """Allocate buffers for the largest step."""
    return Arrays({name: _array(buffer, limits[buffer.rows]) for name, buffer in buffers.items()})


def allocate_missing(plan: Plan, limits: Mapping[RowKind, int], arrays: Arrays) -> None:
    """Add the buffers of a plan that ``arrays`` lacks to ``arrays``."""
    for name, buffer in plan.buffers.items():
        if name not in arrays.by_name:
            arrays.by_name[name] = _array(buffer, limits[buffer.rows])


def buffer_bytes(buffer: Buffer, rows: int) -> int:
    """Bytes of a buffer with ``rows`` rows."""
    if buffer.activation_bits:
        return rows * (buffer.width // BLOCK) * block_bytes(buffer.activation_bits)
    return rows * buffer.width * 4


def _array(buffer: Buffer, rows: int) -> NDArray[Any]:
    memory = aligned(buffer_bytes(buffer, rows))
    return memory if buffer.activation_bits else memory.view(buffer.dtype).reshape(rows, buffer.width)


def bind(
    plan: Plan,
    arrays: Arrays,
    matrices: Mapping[str, Matrix],
    vectors: Mapping[Vector, NDArray[np.float32]],
    cache: KVCache,
    progress: CompileProgress | None = None,
    sources: KVCache | None = None,
) -> Program:
    """Create the program of a plan. Compiles the kernels that this machine has not compiled yet.

    ``sources`` is the cache of an encoder's sources, which cross attention reads.

    Raises:
        KernelError: a kernel did not compile.
    """
    kernels = shared().load([*plan.kernels(), *LOOP_KERNELS], progress)
    constants = {name: np.array(values, np.float64) for name, values in plan.constants.items()}
    tables = {
        name: table.values(*(vectors[vector] for vector in table.learned))
        for name, table in plan.tables.items()
    }
    fills = {
        value: np.full(value.count, value.number, np.float32)
        for op in plan.operations
        for value in op.fields.values()
        if isinstance(value, Fill)
    }

    caches = (cache, sources or cache)
    buffers = {name: address(arrays.by_name[name]) for name in plan.buffers}

    def word(value: Value) -> int | float:
        if isinstance(value, (int, float)):  # the most frequent case
            return value
        match value:
            case At(buffer, offset):
                return buffers[buffer] + offset
            case Weights(slot, _):
                return matrices[slot].address
            case Vector():
                return address(vectors[value])
            case Constant(name):
                return address(constants[name])
            case Fill():
                return address(fills[value])
            case ScoreBias(name):
                return address(tables[name]) + 4 * plan.tables[name].origin
            case Cache(layer, part, of_source):
                return caches[of_source].address(layer, part)
            case CacheGroup(layer, of_source):
                return caches[of_source].group(layer)
            case PageBytes(layer, of_source):
                return caches[of_source].page_bytes(layer)
            case _:
                return value

    rows = []
    for op in plan.operations:
        record = definition(op.kernel.name).record
        assert record is not None
        fields = {name: word(value) for name, value in op.fields.items()}
        rows.append(record.pack(fields, kernels[op.kernel], _barrier(op)))
    return Program(table(rows), (arrays, matrices, vectors, constants, fills, tables, caches))


def places(plan: Plan, value: Value) -> list[tuple[int, int]]:
    """All positions of a value in the table of records, as (record index, word index)."""
    positions = []
    for index, op in enumerate(plan.operations):
        record = definition(op.kernel.name).record
        assert record is not None
        words = [name for name in record.fields if op.fields[name] == value]
        positions += [(index, getattr(record.at, name) // WORD) for name in words]
    return positions


def _barrier(op: Operation) -> int:
    """The barrier word of a record: 0 for no barrier, 1 for a barrier in every step.

    A value above 1 means a barrier in steps with more than one row: 2 + the offset of the number of rows in the step's
    record.
    """
    return {"none": 0, "always": 1, "rows": 2 + ROW_COUNT[op.rows]}[op.barrier]
