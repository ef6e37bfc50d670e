"""Chooses the matrices of encoders whose floating-point weights are converted when they are loaded.

Files of encoders have float32 or float16 weights. A step of an encoder has hundreds of tokens, so multiply-adds limit
its speed, and products of integers or of bfloat16 pairs are several times as fast as float32 products
(docs/decisions/0052-encoders-throughput.md). With 8-bit weights, the inputs of the first products of attention and
feed-forward are smoothed if they are the output of a norm, so that 8 bits suffice for them, too.
"""

from __future__ import annotations

import re

from msgspec.structs import replace

from pellucid.model.shapes import SMOOTHING, smoothed_parts
from pellucid.model.slot_reader import CONVERSIONS, format_of, shape_of
from pellucid.model.spec import Attention, FeedForward, ModelSpec
from pellucid.model.weight_map import Model, Slot, Smoothing
from pellucid.weights.checkpoint import Checkpoint

MATRICES = re.compile(r"blocks\.\d+\.(attention\.(q|k|v|output)|feedforward\.(gate|up|down))\.weight")
"""The slots of matrices that are multiplied with every token."""


def convert_encoder(checkpoint: Checkpoint, model: Model) -> Model:
    """The model with the float matrices of its blocks converted, if it is an encoder, else the same model.

    The matrices of a ``coarse`` encoder become Q8_0, the matrices of other encoders bfloat16.
    """
    if not model.spec.encodes:
        return model
    form = "Q8_0" if model.spec.coarse else "BF16"
    slots = {
        slot: tuple(replace(source, loaded_as=form) for source in model.sources(slot))
        if MATRICES.fullmatch(slot) and all(_fits(checkpoint, source, form) for source in model.sources(slot))
        else sources
        for slot, sources in model.slots.items()
    }
    converted = replace(model, slots=slots)
    return _smooth(converted) if model.spec.coarse else converted


def without_conversions(model: Model) -> Model:
    """The model with the slots that it had before ``convert_encoder``. Its spec stays as it is."""
    slots = {
        slot: tuple(replace(source, loaded_as="", smoothing=None) for source in model.sources(slot))
        for slot in model.slots
        if not slot.endswith(SMOOTHING)
    }
    return replace(model, slots=slots)


def _smooth(model: Model) -> Model:
    """The ``coarse`` encoder with smoothed inputs, where a norm makes them and all their matrices are converted."""
    blocks, slots = [], {**model.slots}
    for index, block in enumerate(model.spec.blocks):
        for part in ("attention", "feedforward"):
            kind = getattr(block, part)
            if not isinstance(kind, (Attention, FeedForward)):
                continue
            smoothed = replace(block, **{part: replace(kind, smoothed=True)})
            matrices = [f"blocks.{index}.{part}.{name}.weight" for name in smoothed_parts(smoothed)[part]]
            norm = _norm_of_input(model.spec, index, part)
            weight = model.sources(f"{norm}.weight")
            if not weight or not all(_is_converted(model.sources(matrix)) for matrix in matrices):
                continue
            # The error of values counts most, then the error of the neurons.
            floats = tuple(replace(source, loaded_as="") for source in model.sources(matrices[-1]))
            how = Smoothing(weight, model.sources(f"{norm}.bias"), floats)
            for matrix in matrices:
                slots[matrix] = tuple(replace(source, smoothing=how) for source in model.sources(matrix))
            slots[f"blocks.{index}.{part}.{SMOOTHING}"] = replace(weight[0], smoothing=how)
            block = smoothed
        blocks.append(block)
    return replace(model, spec=replace(model.spec, blocks=tuple(blocks)), slots=slots)


def _norm_of_input(spec: ModelSpec, index: int, part: str) -> str:
    """The slot of the norm whose output a part of a block reads, in a ``coarse`` encoder; "": another operation's."""
    if part == "feedforward":
        return f"blocks.{index}.attention.norm"
    if index:
        after_convolution = index == 1 and spec.convolution
        return "convolution.norm" if after_convolution else f"blocks.{index - 1}.feedforward.norm"
    embedding = spec.embedding
    last = embedding.norm and not embedding.norm_first and (not embedding.narrow or embedding.norm_last)
    return "embed.norm" if last else ""


def _is_converted(sources: tuple[Slot, ...]) -> bool:
    return bool(sources) and all(source.loaded_as for source in sources)


def _fits(checkpoint: Checkpoint, source: Slot, form: str) -> bool:
    """True if a tensor has floats, in rows of whole blocks."""
    tensor = checkpoint.tensors.get(source.tensor)
    if tensor is None or not format_of(tensor, source).packed.is_float:
        return False
    return shape_of(tensor, source)[-1] % CONVERSIONS[form][0].block == 0
