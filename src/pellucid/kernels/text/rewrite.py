"""Replaces characters in spans of text, as normalizers do. Called directly from Python, on UTF-8.

A table maps each character to its target, independent of its neighbours. In addition, consecutive spaces may become one
space, spaces at the ends of a span may be removed, and a span may get a prefix.

SentencePiece also compiles rules for several characters into a model. In SentencePiece the longest rule applies. In
Hugging Face ``tokenizers`` a rule for the beginning of a short grapheme cluster replaces the whole cluster
(``tokenize/stages/precompiled_charsmap.py``).

The kernel gives up at a character that the table does not cover; Python then normalizes the text. A span that is an id
(``text/pieces.py``) takes one byte of the new text, so that spans stay in order.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record
from pellucid.kernels.text.split import decoding, running
from pellucid.kernels.text.words import walking

KEPT, STRANGE = 0, -1  # targets: the character stays; the table does not cover it
DONE, GAVE_UP = 0, 1
NEVER, ALWAYS, FIRST = 0, 1, 2
# Flags of characters. JOINS: in one cluster with the character before. BEGINS, FOLLOWS: the first or second character
# of a rule for several characters. APART: no character joins it. PICTURE: a pictograph; JOINER joins two pictographs.
JOINS, BEGINS, FOLLOWS, APART, PICTURE = 1, 2, 4, 8, 16
JOINER = 0x200D
RULES = ("none", "longest", "clusters")  # rules for several characters: none, SentencePiece's, Hugging Face's
SHORT = 6  # clusters of this many bytes or more have no rules


class ChangedRecord(Record):
    """The fields of every kernel built with :func:`spans_body`, which writes new texts."""

    text: Address  # UTF-8
    pieces: Address  # (n, 2) int32: begin and end of each span, in bytes (text/pieces.py)
    count: int  # n
    ends: Address  # (texts,) int32: the end of each text
    texts: int
    out: Address  # the new texts
    out_pieces: Address  # (n, 2) int32
    out_ends: Address  # (texts,) int32
    status: Address  # int64: DONE or GAVE_UP


class RewriteRecord(ChangedRecord):
    """``out`` has room for the longest target per byte of text, and a prefix per span."""

    targets: Address  # (0x110000,) int32: KEPT, STRANGE, or the index of the target in ``written``
    written: Address  # targets, each preceded by its length in one byte; then PADDING
    flags: Address  # (0x110000,) uint8: JOINS, BEGINS, FOLLOWS, APART, PICTURE
    slots: Address  # a tree of the rules (text/words.py)
    rules: Address  # int32 for each slot: index in ``written`` of the target of its rule, or -1
    collapse: int  # 1: only the first of consecutive spaces stays
    trim: int  # 1: spaces at the ends of a span are removed
    prefix: Address  # written before each span that is not empty
    prefix_length: int  # in bytes
    when: int  # the prefix is written NEVER, ALWAYS, or only at the start of a text (FIRST)
    unless_there: int  # 1: no prefix before a span that already begins with the prefix
    plain: int  # 1: ASCII "!" to "~" stays; with rules, only if the next character is ASCII too


def spans_body(simd: Any, at: Any, change: Any) -> Any:
    """Make the body of a kernel whose record begins with the fields of :class:`ChangedRecord`.

    ``change(record, begin, end, begins_text, out_end)`` writes the new text of one span at offset ``out_end`` of
    ``out``. It returns the new end, or -1 to give up.
    """
    load, load_i32, store_u8, store_i32, store_i64 = (
        simd.load_i64, simd.load_i32, simd.store_u8, simd.store_i32, simd.store_i64,
    )  # fmt: skip

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        pieces, ends, texts = load(record + at.pieces), load(record + at.ends), load(record + at.texts)
        out, out_pieces = load(record + at.out), load(record + at.out_pieces)
        out_ends, out_end, done, text_begin = load(record + at.out_ends), 0, 0, 0
        for i in range(load(record + at.count)):
            begin, end = load_i32(pieces + i * 8), load_i32(pieces + i * 8 + 4)
            while done < texts - 1 and begin >= load_i32(ends + done * 4):
                store_i32(out_ends + done * 4, out_end)
                text_begin = load_i32(ends + done * 4)
                done += 1
            store_i32(out_pieces + i * 8, out_end)
            if end < 0:
                store_i32(out_pieces + i * 8 + 4, end)
                store_u8(out + out_end, 0)
                out_end += 1
                continue
            out_end = change(record, begin, end, begin == text_begin, out_end)
            if out_end < 0:
                store_i64(load(record + at.status), GAVE_UP)
                return
            store_i32(out_pieces + i * 8 + 4, out_end)
        while done < texts:
            store_i32(out_ends + done * 4, out_end)
            done += 1
        store_i64(load(record + at.status), DONE)

    return body


def emitting(simd: Any) -> Any:
    """Make ``superfluous`` and ``emit``.

    ``superfluous`` is true if a space at ``out_end`` of a span that begins at ``first`` is left out. ``emit`` writes a
    target to ``out`` at offset ``out_end`` and returns the new end.
    """
    load, load_u8, store_u8, store_i64 = simd.load_i64, simd.load_u8, simd.store_u8, simd.store_i64

    @simd.jit
    def superfluous(out, first, out_end, collapse, trim):
        if out_end == first:
            return trim
        return collapse and load_u8(out + out_end - 1) == 32

    @simd.jit
    def emit(written, target, out, first, out_end, collapse, trim):
        length = load_u8(written + target)
        if length <= 8 and not collapse and not trim:
            store_i64(out + out_end, load(written + target + 1))
            return out_end + length
        for i in range(length):
            byte = load_u8(written + target + 1 + i)
            if not (byte == 32 and superfluous(out, first, out_end, collapse, trim)):
                store_u8(out + out_end, byte)
                out_end += 1
        return out_end

    return superfluous, emit


def clustering(simd: Any, length_of: Any, code_point: Any) -> Any:
    """Make ``cluster``, which returns the end of the grapheme cluster at a position.

    The end is exact for clusters of fewer than SHORT bytes.
    """
    at, load, load_u8 = RewriteRecord.at, simd.load_i64, simd.load_u8

    @simd.jit
    def cluster(record, position, end, flags):
        text = load(record + at.text)
        first = code_point(text + position)
        stop = position + length_of(load_u8(text + position))
        if first == 13 and stop < end and load_u8(text + stop) == 10:
            return stop + 1
        last = first
        while stop < end and load_u8(flags + first) & APART == 0:
            code = code_point(text + stop)
            pictures = load_u8(flags + first) & load_u8(flags + code) & PICTURE != 0
            if load_u8(flags + code) & JOINS == 0 and not (pictures and last == JOINER):
                break
            last = code
            stop += length_of(load_u8(text + stop))
        return stop

    return cluster


def rewriting(simd: Any, rules: str) -> Any:
    """Make ``rewrite``, which writes the new text of one span to ``out`` from ``first`` on.

    It returns the end of the new text, or -1 to give up.
    """
    at, load, load_u8, load_i32 = RewriteRecord.at, simd.load_i64, simd.load_u8, simd.load_i32
    store_i64, run_of, walk, (superfluous, emit) = simd.store_i64, running(simd), walking(simd), emitting(simd)
    length_of, code_point = decoding(simd)
    cluster = clustering(simd, length_of, code_point)

    @simd.jit
    def rule(record, position, end, longest):
        """Find the longest or shortest rule. Returns its target, and the bytes that the target replaces."""
        text, slots = load(record + at.text), load(record + at.slots)
        found, stop = walk(slots, load(record + at.rules), text + position, text + end, longest)
        return found, stop - text - position

    @simd.jit
    def rewrite(record, begin, end, first):
        text, out = load(record + at.text), load(record + at.out)
        targets, written = load(record + at.targets), load(record + at.written)
        flags = load(record + at.flags)
        collapse, trim = load(record + at.collapse) != 0, load(record + at.trim) != 0
        plain, position, alone, out_end = load(record + at.plain) != 0, begin, begin, first
        while position < end:
            place = text + position
            if plain:
                run = min(run_of(place), end - position)
                if rules != "none" and run > 0 and load_u8(place + run) >= 0x80:
                    run -= 1
                if run > 0:
                    store_i64(out + out_end, load(place))
                    position, out_end = position + run, out_end + run
                    continue
            code, size = code_point(place), length_of(load_u8(place))
            target, taken = load_i32(targets + code * 4), size
            if target == STRANGE:
                return -1
            if rules == "longest":
                after = position + size
                begins = after < end and load_u8(flags + code) & BEGINS != 0
                if begins and load_u8(flags + code_point(text + after)) & FOLLOWS != 0:
                    other, longer = rule(record, position, end, True)
                    if longer > size:
                        target, taken = other, longer
            if rules == "clusters" and position >= alone:
                alone = cluster(record, position, end, flags)
                if alone - position > size and alone - position < SHORT:
                    if target == KEPT and load_u8(flags + code) & BEGINS:
                        other, _ = rule(record, position, alone, False)
                        target = max(other, KEPT)
                    if target != KEPT:
                        taken = alone - position
            if target != KEPT:
                out_end = emit(written, target, out, first, out_end, collapse, trim)
            elif not (code == 32 and superfluous(out, first, out_end, collapse, trim)):
                store_i64(out + out_end, load(place))
                out_end += size
            position += taken
        while trim and out_end > first and load_u8(out + out_end - 1) == 32:
            out_end -= 1
        return out_end

    return rewrite


@kernel("text.rewrite", RewriteRecord)
def build(simd: Any, rules: str) -> Any:
    """Build the replacement. ``rules`` is one of ``RULES``."""
    at, load, load_u8, store_u8 = RewriteRecord.at, simd.load_i64, simd.load_u8, simd.store_u8
    rewrite = rewriting(simd, rules)

    @simd.jit
    def copy(place, length, out):
        """Copy bytes front to back. ``out`` may begin before the source and overlap it."""
        for i in range(length):
            store_u8(out + i, load_u8(place + i))

    @simd.jit
    def begins_with(place, length, prefix, prefix_length):
        if length < prefix_length:
            return False
        i = 0
        while i < prefix_length and load_u8(place + i) == load_u8(prefix + i):
            i += 1
        return i == prefix_length

    @simd.jit
    def change(record, begin, end, begins_text, start):
        """Write one span with its prefix. Returns its end, or -1 to give up."""
        out, prefix, when = load(record + at.out), load(record + at.prefix), load(record + at.when)
        ahead = load(record + at.prefix_length) if when == ALWAYS or (when == FIRST and begins_text) else 0
        out_end = rewrite(record, begin, end, start + ahead)
        if out_end < 0:
            return out_end
        length = out_end - start - ahead
        if length == 0:
            return start
        if ahead > 0:
            if load(record + at.unless_there) and begins_with(out + start + ahead, length, prefix, ahead):
                copy(out + start + ahead, length, out + start)
                return start + length
            copy(prefix, ahead, out + start)
        return out_end

    return spans_body(simd, at, change)
