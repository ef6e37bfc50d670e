"""The weights of a plan: the packed layout of each slot, the packed matrices and the float32 vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.packed_layout import BLOCK, ROWS, PackedLayout, round_up
from pellucid.kernels.matmul.partition import column_ends
from pellucid.model.shapes import expected_shapes
from pellucid.model.slot_reader import SlotReader, by_expert, format_of
from pellucid.model.weight_map import Model, Slot
from pellucid.plan.plan import Plan, Vector, Weights
from pellucid.runtime.memory import Arena
from pellucid.runtime.placement import Placement
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.pack import Matrix, Packing, pack, packer, padded_blocks, prepare


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


def _padded(
    stored: NDArray[np.float32], shapes: Mapping[str, tuple[int, ...]], vector: Vector
) -> NDArray[np.float32]:
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
