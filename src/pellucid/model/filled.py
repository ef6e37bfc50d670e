"""A spec with the tensors of a file that fill its slots."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from pellucid.model.spec import ModelSpec


class Slot(Struct, frozen=True):
    """The source of a slot's values: a tensor of the file, or a part of one.

    ``plus`` is added to every value. (Gemma's norms multiply by 1 + w; its GGUF files store 1 + w, its safetensors w.)
    ``transpose``: the file stores the matrix as (inputs, outputs), like GPT-2's Conv1D. ``rows`` (start, stop) selects
    rows of the matrix after transposition: the queries of a fused q-k-v tensor, or one expert of a tensor (E, N, D),
    whose rows are counted over all experts. In a vector it selects values. ``step``: only every so-many-th of them.
    ``columns`` (start, stop) selects columns of a transposed matrix. ``flat``: the tensor is one vector, whatever its
    dimensions. ``negative_exp``: the value is -e^x of the stored x.
    """

    tensor: str
    plus: float = 0.0
    rows: tuple[int, int] | None = None
    transpose: bool = False
    step: int = 1
    columns: tuple[int, int] | None = None
    flat: bool = False
    negative_exp: bool = False


class Model(Struct, frozen=True):
    """A spec and the tensors that fill its slots, by slot name ("blocks.3.attention.q.weight").

    If several tensors fill a slot, their rows are concatenated. ``layer_count`` is the metadata key that states the
    number of layers, for error messages. ``ignored`` are parts of tensors that the model knowingly leaves out, and so
    are ``further_layers`` layers after the last: they predict further tokens, which generation does not need.
    """

    spec: ModelSpec
    slots: Mapping[str, Slot | tuple[Slot, ...]]
    layer_count: str
    ignored: tuple[Slot, ...] = ()
    further_layers: int = 0

    def __repr__(self) -> str:
        return f"Model({self.spec!r}, {len(self.slots)} slots)"

    def sources(self, slot: str) -> tuple[Slot, ...]:
        """The sources of a slot; empty if nothing fills it."""
        found = self.slots.get(slot, ())
        return found if isinstance(found, tuple) else (found,)
