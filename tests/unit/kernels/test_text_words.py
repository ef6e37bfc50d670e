"""The tables of "text.words", "text.splits", "text.tree" and "text.layout" contain exactly a vocabulary's pieces."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import InvalidRequest
from pellucid.kernels.text import words as text_words
from pellucid.tokenize.compiled.tables import PieceTree, SpelledPieces, WordTable, splits

MULTIPLIERS = -7046029254386353131, -4417276706812531889
BITS = (1 << 64) - 1

vocabularies = st.lists(
    st.binary(max_size=4) | st.text("ab", max_size=20).map(str.encode) | st.text("a漢😀\0", max_size=9).map(str.encode),
    max_size=40,
    unique=True,
)


def hashed(data: bytes) -> int:
    """``text_pieces.hashing`` in Python."""
    h = len(data) * MULTIPLIERS[0] & BITS
    for at in range(0, len(data), 8):
        h = (h ^ int.from_bytes(data[at : at + 8], "little")) * MULTIPLIERS[1] & BITS
        h ^= h >> 29
    h = h * MULTIPLIERS[1] & BITS
    return (h ^ h >> 32) & BITS >> 1


def found(words: WordTable, data: bytes) -> int:
    """The piece that the table finds for some bytes, or -1."""
    h, text, places = hashed(data), words.pieces.text.tobytes(), words.pieces.places
    slot = h & words.mask
    while words.slots[slot, 0] != text_words.EMPTY:
        kept, word = words.slots[slot].tolist()
        if kept == h and text[places[word] : places[word + 1]] == data:
            return word
        slot = (slot + 1) & words.mask
    return -1


def stepped(tree: PieceTree, data: bytes) -> int:
    """The index of the tree's node for some bytes, or -1."""
    base, place = text_words.ROOT, -1
    for byte in data:
        place = base ^ byte
        parent, base = int(tree.slots[place]) >> 32, int(tree.slots[place]) & 0xFFFFFFFF
        if parent != place ^ byte:
            return -1
    return place


def near(pieces: list[bytes]) -> set[bytes]:
    """The pieces, their prefixes, and the pieces with one more byte."""
    beginnings = {piece[:end] for piece in pieces for end in range(len(piece) + 1)}
    return beginnings | {piece + end for piece in pieces for end in (b"\0", b"a", b"\xff")}


@settings(max_examples=50)
@given(vocabularies)
def test_a_table_has_every_piece_and_nothing_else(pieces: list[bytes]) -> None:
    words = WordTable(SpelledPieces.of(pieces))
    ids = {piece: index for index, piece in enumerate(pieces) if piece}
    assert {data: found(words, data) for data in near(pieces)} == {data: ids.get(data, -1) for data in near(pieces)}
    assert (words.slots[:, 0] != text_words.EMPTY).sum() == len(ids)
    assert len(ids) < words.mask + 1 == len(words.slots)


@settings(max_examples=50)
@given(vocabularies)
def test_a_tree_has_every_piece_and_all_of_their_beginnings(pieces: list[bytes]) -> None:
    tree = PieceTree.of(pieces)
    ids = {piece: index for index, piece in enumerate(pieces) if piece}
    beginnings = {piece[:end] for piece in pieces for end in range(len(piece) + 1)}
    nodes = {data: stepped(tree, data) for data in near(pieces) if data}
    assert {data for data, node in nodes.items() if node >= 0} == beginnings - {b""}
    assert {data: tree.ids[node] for data, node in nodes.items() if node >= 0} == {
        data: ids.get(data, -1) for data in beginnings - {b""}
    }
    assert (tree.slots != text_words.EMPTY).sum() == len(beginnings - {b""})
    assert len(tree.slots) == len(tree.ids)
    assert (tree.ids >= 0).sum() == len(ids)


@pytest.mark.slow
@pytest.mark.parametrize("children", [1, 2, 3, 130, 256])
def test_nodes_of_few_and_of_many_children_find_room(children: int) -> None:
    draw = random.Random(children)
    pieces = {bytes([*draw.randbytes(3), last]) for _ in range(9000) for last in draw.sample(range(256), children)}
    listed = sorted(pieces)[:60_000]
    draw.shuffle(listed)
    tree = PieceTree.of(listed)
    assert [tree.ids[stepped(tree, piece)] for piece in listed] == list(range(len(listed)))
    nodes = len({piece[:end] for piece in listed for end in (1, 2, 3, 4)})
    assert (tree.slots != text_words.EMPTY).sum() == nodes
    assert len(tree.slots) < 3 * nodes + 1000


@settings(max_examples=50)
@given(vocabularies)
def test_splits_are_all_pairs_of_pieces_that_are_a_piece(pieces: list[bytes]) -> None:
    ids = {piece: index for index, piece in enumerate(pieces) if piece}
    expected = [
        (ids[piece[:cut]], ids[piece[cut:]], index)
        for piece, index in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    columns = splits(WordTable(SpelledPieces.of(pieces)))
    assert list(zip(*(column.tolist() for column in columns))) == expected


def test_a_vocabulary_of_more_bytes_than_there_are_nodes_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="the limit is"):
        PieceTree.of([b"a" * text_words.MAX_NODES])
