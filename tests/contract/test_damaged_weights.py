"""A weight that is NaN or infinite is refused when a model is loaded, in every format and every tensor of a plan."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny import OF_FAMILY, SOURCES, TASKS, TINY, opened

from pellucid import pipeline
from pellucid.errors import FileFormatError
from pellucid.model.slot_reader import SlotReader
from pellucid.plan.bind import layouts, load_weights
from pellucid.plan.plan import Vector, Weights
from pellucid.runtime.memory import Placement
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.pack import decode_blocks
from pellucid.weights.quant.format import formats

MODELS = {**TINY, **OF_FAMILY, **TASKS, **SOURCES}


@pytest.mark.parametrize("name", sorted(formats()))
def test_the_first_damaged_block_is_found(name: str) -> None:
    form, rng = formats()[name], np.random.default_rng(0)
    for share in (0.0, 0.02, 1.0):
        for _ in range(20):
            raw = rng.integers(0, 60, (200, 1, form.block_bytes), np.uint8)  # no exponent has all bits set
            random = rng.random(len(raw)) < share
            raw[random] = rng.integers(0, 256, (random.sum(), 1, form.block_bytes), np.uint8)
            if form.packed.scale == "e8m0":
                raw[(raw[..., 0] >= 250) & (raw[..., 0] < 255), 0] = 0  # these scales overflow with large values only
            with np.errstate(all="ignore"):
                values = decode_blocks(form, raw)
            finite = np.isfinite(values).all(axis=1)
            found = form.damaged(raw.reshape(len(raw), -1))
            assert found == (None if finite.all() else int(finite.argmin()))


class Damaged:
    """A checkpoint whose tensor ``name`` has damaged blocks."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name

    def __getattr__(self, name: str) -> object:
        return getattr(self._checkpoint, name)

    def read(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        self._checkpoint.read(name, start, out)
        if name == self._name:
            out[-self._checkpoint.tensors[name].nbytes // 2 :] = 0xFF  # NaN in all formats


@pytest.mark.parametrize("name", sorted(MODELS))
def test_damage_is_reported_in_every_tensor(name: str) -> None:
    with opened(MODELS[name]) as (checkpoint, model):
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model))
        plans = [plan, *([plan.encoder] if plan.encoder else [])]
        for plan in plans:
            values = [value for op in plan.with_setup for value in op.fields.values()]
            slots = {value.slot for value in values if isinstance(value, (Weights, Vector))}
            tensors = {source.tensor: slot for slot in slots for source in model.sources(slot)}
            for tensor, slot in tensors.items():
                damaged = Damaged(checkpoint, tensor)
                with pytest.raises(FileFormatError, match="NaN or infinite: the file is damaged") as caught:
                    SlotReader(damaged, model.sources(slot)).values()  # type: ignore[arg-type]
                assert tensor in str(caught.value)
            with pytest.raises(FileFormatError, match="NaN or infinite"):
                load_weights(damaged, model, plan, Placement(1))  # type: ignore[arg-type]
