"""Binds a plan to memory: packs weights, and fills in the addresses of buffers, weights and cache pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey, definition
from pellucid.kernels.core.library import CompileProgress, shared
from pellucid.kernels.core.record import WORD
from pellucid.kernels.matmul.layouts import BLOCK, ROWS, PackedLayout, round_up
from pellucid.kernels.matmul.product import column_ends
from pellucid.kernels.matmul.quantize import block_bytes
from pellucid.model.shapes import expected_shapes
from pellucid.model.slot_reader import SlotReader, by_expert, format_of
from pellucid.model.weight_map import Model, Slot
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
from pellucid.runtime.memory import Arena, Placement, address, aligned
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.pack import Matrix, Packing, pack, packer, padded_blocks, prepare

# The weights of a plan: the packed layout of each slot, the packed matrices and the float32 vectors.


def layouts(checkpoint: Checkpoint, model: Model) -> dict[str, PackedLayout]:
    """The packed layout of each slot's matrix.

    Raises:
        UnsupportedModel: the format of a tensor is not implemented. The message lists the implemented formats.
    """
    packed = {}
    for slot in model.slots:
        source = model.sources(slot)[0]
        if source.tensor in checkpoint.tensors:
            packed[slot] = format_of(checkpoint.tensors[source.tensor], source).packed
    return packed


def packers(checkpoint: Checkpoint, model: Model, plan: Plan) -> list[KernelKey]:
    """The kernels that pack the matrices of a plan, each once."""
    values = (value for op in plan.with_setup for value in op.fields.values())
    sources = (model.sources(value.slot)[0] for value in values if isinstance(value, Weights))
    found = ((checkpoint.tensors.get(source.tensor), source) for source in sources)
    forms = (format_of(tensor, source) for tensor, source in found if tensor)
    return list(dict.fromkeys(map(packer, {form.name: form for form in forms}.values())))


def load_weights(
    checkpoint: Checkpoint,
    model: Model,
    plan: Plan,
    placement: Placement,
    loaded: Mapping[str, Matrix] = MappingProxyType({}),
) -> tuple[dict[str, Matrix], dict[Vector, NDArray[np.float32]]]:
    """Load the packed matrices of a plan by slot, and its float32 vectors.

    Each thread's part of a matrix lies in the memory of its NUMA node. The matrices of experts are interleaved over the
    nodes, because the tokens decide which thread reads which part. Slots with the same tensors share a packed matrix
    (the layers of ALBERT), and a matrix with the sources of a ``loaded`` matrix is not loaded again.
    """
    values = dict.fromkeys(value for op in plan.with_setup for value in op.fields.values())
    values |= dict.fromkeys(vector for table in plan.tables.values() for vector in table.learned)
    packings: dict[tuple[tuple[Slot, ...], int], list[Packing]] = {}
    of_slot: dict[str, tuple[tuple[Slot, ...], int]] = {}
    arena, known = Arena(), {model.sources(slot): matrix for slot, matrix in loaded.items()}
    shared = dict[str, Matrix]()
    for weights in (value for value in values if isinstance(value, Weights)):
        key = sources, experts = model.sources(weights.slot), weights.experts
        if sources in known:
            shared[weights.slot] = known[sources]
            continue
        if key not in packings:
            packings[key] = _packings(checkpoint, sources, experts, arena, placement)
        of_slot[weights.slot] = key
    pack(chain.from_iterable(packings.values()), placement.threads)
    matrices = shared | {slot: packings[key][0].matrix for slot, key in of_slot.items()}
    shapes = expected_shapes(model.spec)
    vectors = {
        vector: _padded(SlotReader(checkpoint, model.sources(vector.slot)).values(), shapes, vector)
        for vector in values
        if isinstance(vector, Vector)
    }
    return matrices, vectors


def _padded(stored: NDArray[np.float32], shapes: Mapping[str, tuple[int, ...]], vector: Vector) -> NDArray[np.float32]:
    """The values of a vector, padded with zeros up to the last column that kernels read."""
    stored = stored.reshape(shapes[vector.slot])
    stored = stored.T if vector.by_column else stored
    *rows, count = stored.shape
    # The norm kernel reads the weights of a head's norm in whole SIMD vectors.
    padded = np.zeros((*rows, round_up(count, ROWS) if rows else round_up(count, BLOCK) + ROWS), np.float32)
    padded[..., :count] = stored
    return padded


def _packings(
    checkpoint: Checkpoint, sources: Sequence[Slot], experts: int, arena: Arena, placement: Placement
) -> list[Packing]:
    """The packings of a slot's matrix or of its experts' matrices: contiguous, each in whole groups of 16 rows."""
    readers = [SlotReader(checkpoint, part) for part in by_expert(checkpoint, sources, experts)]
    packed, (rows, blocks, _) = readers[0].form.packed, readers[0].blocks_shape
    columns = padded_blocks(packed, blocks) * readers[0].form.block
    each, group_bytes = packed.matrix_bytes(rows, columns), packed.group_bytes(columns)
    whole = arena.take(each * experts)
    if experts == 1:
        groups = column_ends(round_up(rows, ROWS), placement.threads)
        placement.divide(whole, [group_bytes * end // ROWS for end in groups])
    else:
        placement.interleave(whole)
    return [
        prepare(reader.form, reader.blocks_shape, reader.read, whole[i * each : (i + 1) * each])
        for i, reader in enumerate(readers)
    ]


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
    tables = {name: table.values(*(vectors[vector] for vector in table.learned)) for name, table in plan.tables.items()}
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
