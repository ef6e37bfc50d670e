"""``Model``: a spec, and the tensors of a file that fill its slots."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from pellucid.model.spec import ModelSpec


class Slot(Struct, frozen=True):
    """The source of a slot's values: a tensor of the file, or a part of a tensor.

    ``plus`` is added to every value. (Gemma's norms multiply by 1 + w. GGUF files store 1 + w, safetensors store w.)
    ``transpose``: the file stores the matrix as (inputs, outputs), like GPT-2's Conv1D. ``rows`` (start, stop) selects
    rows of the matrix after transposition: the queries of a fused QKV tensor, or one expert of a tensor (E, N, D), with
    rows numbered over all experts. In a vector, ``rows`` selects values. ``step`` selects every ``step``-th row of
    ``rows``. ``columns`` (start, stop) selects columns of a transposed matrix. ``flat``: the tensor is read as one
    vector, regardless of its dimensions. ``joined``: the last two of its three dimensions are read as one.
    ``negative_exp``: the value is -e^x of the stored x. ``loaded_as`` is the format that the floats of the file
    are converted to when they are loaded, a name in ``slot_reader.CONVERSIONS``; "": they are not converted.
    ``smoothing`` multiplies the columns of a converted matrix by the factors of a ``Smoothing``; the values of a vector
    are the inverse factors. ``adapter`` changes a matrix when it is loaded; its values are then float32.
    """

    tensor: str
    plus: float = 0.0
    rows: tuple[int, int] | None = None
    transpose: bool = False
    step: int = 1
    columns: tuple[int, int] | None = None
    flat: bool = False
    joined: bool = False
    negative_exp: bool = False
    loaded_as: str = ""
    smoothing: Smoothing | None = None
    adapter: Adapter | None = None


class Adapter(Struct, frozen=True):
    """A low-rank change of a matrix W (N, D): W + ``scale`` L R, with ``left`` L (N, R) and ``right`` R (R, D).

    Source: Hu et al. 2021, LoRA, https://arxiv.org/abs/2106.09685.
    """

    left: Slot
    right: Slot
    scale: float


class Smoothing(Struct, frozen=True):
    """The input of ``smoothing.factors``: the weight and the bias of a norm, and a matrix."""

    norm: tuple[Slot, ...]
    bias: tuple[Slot, ...]
    matrix: tuple[Slot, ...]


class Model(Struct, frozen=True):
    """A spec and the tensors that fill its slots, by slot name ("blocks.3.attention.q.weight").

    If several tensors fill a slot, their rows are concatenated. ``layer_count`` is the metadata key of the number of
    layers, for error messages. ``ignored`` lists parts of tensors that are deliberately not loaded. ``mtp_layers`` is
    the number of layers for multi-token prediction. In the file, these layers follow the last layer of the spec. They
    are not loaded, because generation does not need them.
    """

    spec: ModelSpec
    slots: Mapping[str, Slot | tuple[Slot, ...]]
    layer_count: str
    ignored: tuple[Slot, ...] = ()
    mtp_layers: int = 0

    def __repr__(self) -> str:
        return f"Model({self.spec!r}, {len(self.slots)} slots)"

    def sources(self, slot: str) -> tuple[Slot, ...]:
        """The sources of a slot; empty if no tensor fills it."""
        sources = self.slots.get(slot, ())
        return sources if isinstance(sources, tuple) else (sources,)
