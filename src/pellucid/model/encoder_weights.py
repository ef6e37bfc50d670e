"""Chooses the matrices of encoders whose floating-point weights are quantized when they are loaded.

Files of encoders have float32 or float16 weights. A step of an encoder has hundreds of tokens, so multiply-adds limit
its speed, and integer products are several times as fast as float32 products
(docs/decisions/0052-encoders-throughput.md).
"""

from __future__ import annotations

import re

from msgspec.structs import replace

from pellucid.model.slot_reader import format_of, shape_of
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.quant.formats.q8_0 import Q8_0

MATRICES = re.compile(r"blocks\.\d+\.(attention\.(q|k|v|output)|feedforward\.(gate|up|down))\.weight")
"""The slots of matrices that are multiplied with every token."""


def quantize_encoder(checkpoint: Checkpoint, model: Model) -> Model:
    """The model with the float matrices of its blocks in Q8_0, if it is a ``coarse`` encoder, else the same model."""
    if not model.spec.coarse:
        return model
    slots = {
        slot: tuple(replace(source, quantized=True) for source in model.sources(slot))
        if MATRICES.fullmatch(slot) and all(_fits(checkpoint, source) for source in model.sources(slot))
        else sources
        for slot, sources in model.slots.items()
    }
    return replace(model, slots=slots)


def _fits(checkpoint: Checkpoint, source: Slot) -> bool:
    """True if a tensor has floats, in rows of whole blocks."""
    tensor = checkpoint.tensors.get(source.tensor)
    if tensor is None or not format_of(tensor, source).packed.is_float:
        return False
    return shape_of(tensor, source)[-1] % Q8_0.block == 0
