"""The model stage of a tokenizer as compiled code: a kernel that makes ids of pieces, and the fields of its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import Record
from pellucid.kernels.text import merge as text_merge
from pellucid.tokenize.compiled import tables
from pellucid.tokenize.compiled.stages import CompiledStage, Separating


@dataclass(frozen=True)
class CompiledModel:
    """A kernel that makes ids of pieces; ``scratch`` says how many bytes it wants for a longest piece of so many.

    ``lengths`` (V,) are the bytes of text that each id stands for, -1 where that hangs on more than the id; ``stages``
    are those that it wants between the pre-tokenizer and itself.
    """

    kernel: KernelKey
    record: type[Record]
    scratch: Any
    lengths: NDArray[np.int32]
    known: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[CompiledStage, ...] = ()


def merging(
    symbols: str,
    whole: bool,
    pairs: tables.PairTable,
    words: tables.WordTable,
    neighbours: tables.NeighbourTable,
    lengths: NDArray[np.int32],
    **known: Any,
) -> CompiledModel:
    """Byte-pair encoding by compiled code, of bytes or characters."""
    told = {
        "pairs": pairs.slots,
        "pairs_mask": pairs.mask,
        "words": words.slots,
        "words_mask": words.mask,
        "word_text": words.pieces.text,
        "word_places": words.pieces.places,
        "word_state": words.state,
    }
    stages = (Separating(neighbours, whole),)
    return CompiledModel(
        KernelKey("text.merge", symbols=symbols, whole=whole),
        text_merge.MergeRecord,
        text_merge.scratch_bytes,
        lengths,
        told | known,
        stages,
    )
