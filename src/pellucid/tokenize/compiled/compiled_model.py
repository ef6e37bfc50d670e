"""The model stage as compiled code: a kernel that turns pre-tokens into ids, and the fields of its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import Record
from pellucid.kernels.text import merge as text_merge
from pellucid.tokenize.compiled import tables
from pellucid.tokenize.compiled.compiled_stages import CompiledStage, SeparateStage


class CompiledModel(Struct, frozen=True):
    """A kernel that turns pre-tokens into ids.

    ``scratch(n)`` is the number of bytes of scratch memory if the longest pre-token has n bytes. ``lengths`` (V,) has
    the number of bytes of text that each id covers, or -1 if this number depends on more than the id. ``known`` has the
    fields of ``record`` that are the same in every call. ``stages`` run between the pre-tokenizer and the model.
    """

    kernel: KernelKey
    record: type[Record]
    scratch: Any
    lengths: NDArray[np.int32]
    known: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[CompiledStage, ...] = ()


def merging(
    symbols: str,
    ignore_merges: bool,
    pairs: tables.PairTable,
    words: tables.WordTable,
    neighbours: tables.NeighbourTable,
    lengths: NDArray[np.int32],
    **known: Any,
) -> CompiledModel:
    """The compiled form of byte-pair encoding, with ``symbols`` "bytes" or "characters"."""
    fields = {
        "pairs": pairs.slots,
        "pairs_mask": pairs.mask,
        "words": words.slots,
        "words_mask": words.mask,
        "word_text": words.pieces.text,
        "word_places": words.pieces.places,
        "word_state": words.state,
    }
    stages = (SeparateStage(neighbours, ignore_merges),)
    return CompiledModel(
        KernelKey("text.merge", symbols=symbols, whole=ignore_merges),
        text_merge.MergeRecord,
        text_merge.scratch_bytes,
        lengths,
        fields | known,
        stages,
    )
