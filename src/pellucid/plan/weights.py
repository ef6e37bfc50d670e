"""The weights of a plan: how each slot's matrix is packed; the packed matrices and the float32 vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.errors.messages import shown
from pellucid.kernels.matmul.packed_layout import ROWS, PackedLayout, round_up
from pellucid.model.slots import SlotReader
from pellucid.model.spec import Model
from pellucid.plan.plan import Plan, Vector, Weights
from pellucid.runtime.memory import Arena
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.pack import Matrix, pack, prepare
from pellucid.weights.quant.registry import lookup


def layouts(checkpoint: Checkpoint, model: Model) -> dict[str, PackedLayout]:
    """How each slot's matrix is packed.

    Raises:
        UnsupportedModel: a tensor's format is not implemented; the message lists those that are.
    """
    found = {}
    for slot in model.slots:
        name = model.sources(slot)[0].tensor
        if name in checkpoint.tensors:
            found[slot] = lookup(checkpoint.tensors[name].format, f"tensor {shown(name)}").packed
    return found


def load_weights(
    checkpoint: Checkpoint, model: Model, plan: Plan, threads: int
) -> tuple[dict[str, Matrix], dict[str, NDArray[np.float32]]]:
    """The packed matrices and the float32 vectors that a plan refers to, by slot."""
    values = [value for op in plan.operations for value in op.fields.values()]
    packings, arena = {}, Arena()
    for slot in dict.fromkeys(v.slot for v in values if isinstance(v, Weights)):
        reader = SlotReader(checkpoint, model.sources(slot))
        packings[slot] = prepare(reader.form, reader.blocks_shape, reader.read, arena.take)
    pack(packings.values(), threads)
    matrices = {slot: packing.matrix for slot, packing in packings.items()}
    vectors: dict[str, NDArray[np.float32]] = {}
    for slot in dict.fromkeys(v.slot for v in values if isinstance(v, Vector)):
        stored = SlotReader(checkpoint, model.sources(slot)).values()
        vector = np.zeros(round_up(len(stored), ROWS), np.float32)
        vector[: len(stored)] = stored
        vectors[slot] = vector
    return matrices, vectors
