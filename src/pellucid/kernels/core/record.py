"""Records: the arguments of a compiled operation, as a row of 64-bit words with named fields.

A kernel receives the address of its record and the address of the step's record. A field is an address, an integer or a
float64. All fields are eight bytes wide, so NumPy can write a record and a compiled kernel can read it without a shared
struct layout.

    class Scale(Record):
        x: Address          # (T, D) float32
        width: int          # D
        factor: float

    Scale.at.width          # the byte offset of the field, a constant in compiled kernels
    Scale.pack({"x": 4096, "width": 576, "factor": 0.5})    # the words, as plan/bind.py writes them

Dimensions in comments: B sequences, T tokens, D model width, H heads, G key/value heads, K head width, F feed-forward
width, V vocabulary (in attention: width of a value head), L layers, P pages, S page size.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Mapping
from typing import Any, ClassVar

WORD = 8
HEADER = 2  # words before a record's own fields: the kernel's address, and the barrier after the operation
RECORD_WORDS = 32
# Bytes at the start of a thread's scratch memory for counters that threads share; zero when not in use.
SCRATCH_HEADER = 64


class Address(int):
    """The address of an array in memory."""


class Count(int):
    """The byte offset, in the step's record, of the number of rows to process, such as ``StepRecord.at.tokens``."""


_KINDS: Mapping[str, type] = {"Address": Address, "Count": Count, "int": int, "float": float}


class _Offsets:
    """Makes ``Record.at`` at its first use, because this takes 0.3 ms. Numba treats the named tuple as constants."""

    def __get__(self, instance: object, record: type[Record]) -> Any:
        offsets: Any = namedtuple(f"{record.__name__}At", list(record.fields))  # type: ignore[misc]
        record.at = offsets(*((record.header + i) * WORD for i in range(len(record.fields))))
        return record.at


class Record:
    """Base class of all records. Its fields are the annotations, in order, with types from ``_KINDS``.

    A record with several bases has the fields of all its bases.
    """

    at: ClassVar[Any]
    fields: ClassVar[dict[str, type]] = {}
    header: ClassVar[int] = HEADER

    def __init_subclass__(cls) -> None:
        # ``get_type_hints`` would take another 0.3 ms.
        own = {name: kind if isinstance(kind, type) else _KINDS[kind] for name, kind in cls.__annotations__.items()}
        inherited = {name: kind for base in cls.__bases__ for name, kind in base.fields.items()}  # type: ignore[attr-defined]
        cls.fields, cls.at = inherited | own, _Offsets()
        if cls.header + len(cls.fields) > RECORD_WORDS:
            raise TypeError(f"{cls.__name__} has {len(cls.fields)} fields; a record holds {RECORD_WORDS}")

    @classmethod
    def pack(cls, values: Mapping[str, int | float], *header: int) -> list[int]:
        """Return the record as int64 words: the header, zeros by default, and the fields in order.

        All fields must be given. The words of the header are all given or all omitted; only the loop over a program
        reads them (kernels/core/loop.py).
        """
        if header and len(header) != cls.header:
            raise TypeError(f"{cls.__name__}: {len(header)} words of a header; it has {cls.header}")
        if values.keys() != cls.fields.keys():
            wrong = sorted(values.keys() ^ cls.fields.keys())
            raise TypeError(f"{cls.__name__}: fields missing or unknown: {', '.join(wrong)}")
        fields = [float_word(values[name]) if kind is float else int(values[name]) for name, kind in cls.fields.items()]
        return [*(header or [0] * cls.header), *fields]


def float_word(value: float) -> int:
    """Return the bits of a float64 as an int64 word."""
    word: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return word


class StepRecord(Record):
    """One step's ragged batch: T tokens of B sequences, with prefill chunks and decode tokens mixed.

    The tokens of a sequence are consecutive rows with consecutive positions.
    """

    header = 0

    tokens: int  # T
    outputs: int  # R, the rows whose logits are computed
    sequences: int  # B
    token_ids: Address  # (T,) int32
    token_types: Address  # (T,) int32: 1 for a second text (BERT) or scaled positions, otherwise 0
    positions: Address  # (T,) int32
    output_rows: Address  # (R,) int32, row indices below T
    first_row: Address  # (B,) int32, the sequence's first row
    row_count: Address  # (B,) int32, the sequence's number of rows
    length: Address  # (B,) int32, the sequence's number of tokens after this step
    pages: Address  # (groups, B, page_stride) int32, the sequence's pages in each group of cached layers
    encoder_length: Address  # (B,) int32, tokens of the encoder sequence for cross attention; 0: none
    encoder_pages: Address  # (groups, B, page_stride) int32, the pages of the encoder sequence
    page_stride: int  # entries of a row of the block tables
    group_stride: int  # bytes from one group's block tables to the next
    states: Address  # (B,) int32, the page of the sequence's state before this step; -1: zeros
    next_states: Address  # (B,) int32, the page of the sequence's state after this step
    scratch: Address  # scratch memory of all threads
    scratch_bytes: int  # bytes of scratch memory of one thread
