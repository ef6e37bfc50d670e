"""Records: what a compiled operation is told, as a row of 64-bit words with named fields.

A kernel gets the address of its record and the address of the step's record, nothing else. A field is an
address, an integer or a float64, all eight bytes wide, so that a record can be written by NumPy and read by
a compiled kernel without either knowing the other's struct layout.

    class Scale(Record):
        x: Address          # (T, D) float32
        width: int          # D
        factor: float

    Scale.at.width          # the byte offset of the field: what kernels use, a constant when compiled
    Scale.pack({"x": 4096, "width": 576, "factor": 0.5})    # the words: what the executor uses

Dimensions in comments are STYLE's alphabet: B sequences, T tokens, D model width, H heads, G key/value heads,
K head width, F feed-forward width, V vocabulary, L layers, P pages, S page size.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Mapping
from typing import Any, ClassVar, get_type_hints

WORD = 8
HEADER = 2  # words before a record's own fields: the kernel's address, and whether a barrier follows
RECORD_WORDS = 32
SCRATCH_HEADER = 64  # bytes at the start of a thread's work space where threads meet: zero when nobody does


class Address(int):
    """The address of an array in memory."""


class Count(int):
    """The byte offset, in the step's record, of the number of rows to work on (Step.at.tokens, say)."""


class Record:
    """Base of all records. Fields are the annotations, in order."""

    at: ClassVar[Any]
    fields: ClassVar[dict[str, type]]
    header: ClassVar[int] = HEADER

    def __init_subclass__(cls) -> None:
        inherited = get_type_hints(Record)
        cls.fields = {name: kind for name, kind in get_type_hints(cls).items() if name not in inherited}
        if cls.header + len(cls.fields) > RECORD_WORDS:
            raise TypeError(f"{cls.__name__} has {len(cls.fields)} fields; a record holds {RECORD_WORDS}")
        offsets = [(cls.header + i) * WORD for i in range(len(cls.fields))]
        at: Any = namedtuple(f"{cls.__name__}At", list(cls.fields))  # type: ignore[misc]
        cls.at = at(*offsets)

    @classmethod
    def pack(cls, values: Mapping[str, int | float]) -> list[int]:
        """The fields as int64 words, in order, without the header. Every field must be given."""
        if values.keys() != cls.fields.keys():
            wrong = sorted(values.keys() ^ cls.fields.keys())
            raise TypeError(f"{cls.__name__}: fields missing or unknown: {', '.join(wrong)}")
        return [_word(values[name], kind) for name, kind in cls.fields.items()]


def _word(value: int | float, kind: type) -> int:
    return float_word(float(value)) if kind is float else int(value)


def float_word(value: float) -> int:
    """The bits of a float64 as a word."""
    word: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return word


class StepRecord(Record):
    """One step's ragged batch: T tokens of B sequences, prompt chunks and single tokens mixed.

    The tokens of one sequence are consecutive rows with consecutive positions.
    """

    header = 0

    tokens: int  # T
    outputs: int  # R, the rows whose logits are wanted
    sequences: int  # B
    token_ids: Address  # (T,) int32
    positions: Address  # (T,) int32
    output_rows: Address  # (R,) int32, rows of the T
    first_row: Address  # (B,) int32, the sequence's first row
    row_count: Address  # (B,) int32, how many rows it has
    length: Address  # (B,) int32, its tokens after this step
    pages: Address  # (B, page_stride) int32, the sequence's pages in order
    encoder_length: Address  # (B,) int32, tokens of the other sequence that this one attends to; 0: none
    encoder_pages: Address  # (B, page_stride) int32, that one's pages
    page_stride: int
    scratch: Address  # per-thread work space
    scratch_bytes: int  # of one thread
