"""Pieces of texts with other characters in them, as a normalizer makes them. Called straight from Python, on UTF-8.

A character becomes what a table says, whatever is around it. Sidecar that, spaces in a row may become one, and none at
a piece's ends; a piece may get something put before it; and there may be rules for several characters, as SentencePiece
compiles them into a model: the longest counts, or, as in Hugging Face ``tokenizers``, a rule for the beginning of a
short grapheme cluster is for all of it (``tokenize/stages/precompiled_charsmap.py``). A character that the table does
not know enough about is where this gives up: Python then does it. A piece that is an id (``text/pieces.py``) takes one
byte, so that what lies behind another stays there.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record
from pellucid.kernels.text.split import decoding, running
from pellucid.kernels.text.words import walking

KEPT, STRANGE = 0, -1  # targets of a character that stays, and of one that is not for this
DONE, GAVE_UP = 0, 1
NEVER, ALWAYS, FIRST = 0, 1, 2
# Flags of characters: of a cluster with what is before it; of a longer rule the first, or the second; one that nothing
# joins; and a picture, which JOINER joins with another.
JOINS, BEGINS, FOLLOWS, APART, PICTURE = 1, 2, 4, 8, 16
JOINER = 0x200D
SHORT = 6  # bytes of a cluster for which there are no rules


class ChangedRecord(Record):
    """What all kernels have that make other texts of texts (``changing``)."""

    text: Address  # UTF-8
    pieces: Address  # (n, 2) int32: a piece's first byte, and the one behind its last (text_pieces.py)
    count: int  # n
    ends: Address  # (texts,) int32: the byte behind each text
    texts: int
    out: Address  # the new texts
    out_pieces: Address  # (n, 2) int32
    out_ends: Address  # (texts,) int32
    status: Address  # int64: DONE, or why not


class RewriteRecord(ChangedRecord):
    """``out`` has room for the longest target of every byte, and a prefix for every piece."""

    targets: Address  # (0x110000,) int32: KEPT, STRANGE, or where in ``written`` the target is
    written: Address  # targets, each with its length in a byte before it, and PADDING
    flags: Address  # (0x110000,) uint8: JOINS, BEGINS, FOLLOWS, APART, PICTURE
    slots: Address  # a tree of the rules
    rules: Address  # beside it: where the target of the rule that ends at a node is in ``written``, or -1
    collapse: int  # 1: of spaces in a row, the first stays
    trim: int  # 1: none does at the ends of a piece
    prefix: Address  # what is put before a piece that is not empty
    prefix_length: int  # bytes of that
    when: int  # NEVER, ALWAYS, or FIRST: only where a text begins
    unless_there: int  # 1: not where it begins with that
    plain: (
        int  # 1: letters, digits and signs of ASCII stay as they are, but for what is not ASCII behind them
    )


def changing(simd: Any, at: Any, change: Any) -> Any:
    """The body of a kernel whose record begins with the fields of Changed.

    ``change(record, begin, end, begins_text, made)`` makes something else of one piece, behind what is made already.
    Returns where that ends, or -1 where it gives up.
    """
    load, load_i32, store_u8, store_i32, store_i64 = (
        simd.load_i64, simd.load_i32, simd.store_u8, simd.store_i32, simd.store_i64,
    )  # fmt: skip

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        pieces, ends, texts = load(record + at.pieces), load(record + at.ends), load(record + at.texts)
        out, out_pieces = load(record + at.out), load(record + at.out_pieces)
        out_ends, made, done, text_begin = load(record + at.out_ends), 0, 0, 0
        for i in range(load(record + at.count)):
            begin, end = load_i32(pieces + i * 8), load_i32(pieces + i * 8 + 4)
            while done < texts - 1 and begin >= load_i32(ends + done * 4):
                store_i32(out_ends + done * 4, made)
                text_begin = load_i32(ends + done * 4)
                done += 1
            store_i32(out_pieces + i * 8, made)
            if end < 0:
                store_i32(out_pieces + i * 8 + 4, end)
                store_u8(out + made, 0)
                made += 1
                continue
            made = change(record, begin, end, begin == text_begin, made)
            if made < 0:
                store_i64(load(record + at.status), GAVE_UP)
                return
            store_i32(out_pieces + i * 8 + 4, made)
        while done < texts:
            store_i32(out_ends + done * 4, made)
            done += 1
        store_i64(load(record + at.status), DONE)

    return body


def copying(simd: Any) -> Any:
    """copy: copies bytes front to back, so ``out`` may overlap ``place`` if it lies before it."""
    load_u8, store_u8 = simd.load_u8, simd.store_u8

    @simd.jit
    def copy(place, length, out):
        for i in range(length):
            store_u8(out + i, load_u8(place + i))

    return copy


def comparing(simd: Any) -> Any:
    """begins_with: whether some bytes begin with a prefix."""
    load_u8 = simd.load_u8

    @simd.jit
    def begins_with(place, length, prefix, prefix_length):
        if length < prefix_length:
            return False
        i = 0
        while i < prefix_length and load_u8(place + i) == load_u8(prefix + i):
            i += 1
        return i == prefix_length

    return begins_with


def spacing(simd: Any) -> Any:
    """superfluous: whether a space that comes next in the new piece, which begins at ``first``, is left out."""
    load_u8 = simd.load_u8

    @simd.jit
    def superfluous(out, first, made, collapse, trim):
        if made == first:
            return trim
        return collapse and load_u8(out + made - 1) == 32

    return superfluous


def emitting(simd: Any, superfluous: Any) -> Any:
    """emit: writes a target to ``out``. Returns the new end."""
    load, load_u8, store_u8, store_i64 = simd.load_i64, simd.load_u8, simd.store_u8, simd.store_i64

    @simd.jit
    def emit(written, target, out, first, made, collapse, trim):
        length = load_u8(written + target)
        if length <= 8 and not collapse and not trim:
            store_i64(out + made, load(written + target + 1))
            return made + length
        for i in range(length):
            byte = load_u8(written + target + 1 + i)
            if not (byte == 32 and superfluous(out, first, made, collapse, trim)):
                store_u8(out + made, byte)
                made += 1
        return made

    return emit


def ruling(simd: Any) -> Any:
    """rule: the longest or shortest rule that applies at a position: its target, and how many bytes it replaces."""
    at, load, walk = RewriteRecord.at, simd.load_i64, walking(simd)

    @simd.jit
    def rule(record, position, end, longest):
        text, slots = load(record + at.text), load(record + at.slots)
        found, stop = walk(slots, load(record + at.rules), text + position, text + end, longest)
        return found, stop - text - position

    return rule


def clustering(simd: Any, length_of: Any, code_point: Any) -> Any:
    """cluster: where the grapheme cluster at a position ends, as far as it matters for short ones."""
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
    """rewrite: writes one piece to ``out`` from ``first`` on. Returns its end there, or -1 if this gives up."""
    at, load, load_u8, load_i32 = RewriteRecord.at, simd.load_i64, simd.load_u8, simd.load_i32
    store_i64, run_of, superfluous = simd.store_i64, running(simd), spacing(simd)
    length_of, code_point = decoding(simd)
    rule, cluster, emit = ruling(simd), clustering(simd, length_of, code_point), emitting(simd, superfluous)

    @simd.jit
    def rewrite(record, begin, end, first):
        text, out = load(record + at.text), load(record + at.out)
        targets, written, flags = (
            load(record + at.targets),
            load(record + at.written),
            load(record + at.flags),
        )
        collapse, trim = load(record + at.collapse) != 0, load(record + at.trim) != 0
        plain, position, alone, made = load(record + at.plain) != 0, begin, begin, first
        while position < end:
            place = text + position
            if plain:
                run = min(run_of(place), end - position)
                if rules != "none" and run > 0 and load_u8(place + run) >= 0x80:
                    run -= 1
                if run > 0:
                    store_i64(out + made, load(place))
                    position, made = position + run, made + run
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
                made = emit(written, target, out, first, made, collapse, trim)
            elif not (code == 32 and superfluous(out, first, made, collapse, trim)):
                store_i64(out + made, load(place))
                made += size
            position += taken
        while trim and made > first and load_u8(out + made - 1) == 32:
            made -= 1
        return made

    return rewrite


@kernel("text.rewrite", RewriteRecord)
def build(simd: Any, rules: str) -> Any:
    """``rules`` for several characters: "none", the "longest", or those of "clusters"."""
    at, load = RewriteRecord.at, simd.load_i64
    copy, begins_with, rewrite = copying(simd), comparing(simd), rewriting(simd, rules)

    @simd.jit
    def change(record, begin, end, begins_text, start):
        """The same with the prefix, where it is wanted."""
        out, prefix, when = load(record + at.out), load(record + at.prefix), load(record + at.when)
        ahead = load(record + at.prefix_length) if when == ALWAYS or (when == FIRST and begins_text) else 0
        made = rewrite(record, begin, end, start + ahead)
        if made < 0:
            return made
        length = made - start - ahead
        if length == 0:
            return start
        if ahead > 0:
            if load(record + at.unless_there) and begins_with(out + start + ahead, length, prefix, ahead):
                copy(out + start + ahead, length, out + start)
                return start + length
            copy(prefix, ahead, out + start)
        return made

    return changing(simd, at, change)
