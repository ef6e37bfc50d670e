"""The kernels "text.merge", "text.pairs" and "text.words" against the same in Python (``tokenize/merges.py``)."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.kernels import text_merge
from pellucid.tokenize.compiled import ByteMerge, Words
from pellucid.tokenize.merges import PairRanks, merge

PIECES = ["a", "b", "c", "ab", "bc", "aa", "aaa", "abc", "aab", "aaaa", "ca", "bca"]
IDS = {piece: index for index, piece in enumerate(PIECES)}


def splits() -> list[tuple[str, str]]:
    every = [(piece[:cut], piece[cut:]) for piece in PIECES for cut in range(1, len(piece))]
    return [pair for pair in every if set(pair) <= IDS.keys()]


def ranks(order: list[tuple[str, str]], ids: dict[str, int]) -> PairRanks:
    columns = zip(*((ids[left], ids[right], ids[left + right]) for left, right in order))
    return PairRanks(*(np.array(column, np.int32) for column in columns), size=len(ids))


def compiled(pieces: list[str], order: list[tuple[str, str]], whole: bool = False) -> ByteMerge:
    """Byte-level encoding over a vocabulary of ASCII pieces, and no pattern that cuts."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    places = np.cumsum([0, *map(len, pieces)], dtype=np.int32)
    alphabet = np.array([ids.get(chr(byte), -1) for byte in range(256)], np.int32)
    return ByteMerge(
        [], Words("".join(pieces).encode(), places), ranks(order, ids).compiled(), alphabet, whole
    )


@settings(max_examples=50)
@given(
    st.lists(st.text("abc", max_size=60) | st.text("ab", min_size=61, max_size=400), min_size=1, max_size=8),
    st.permutations(splits()),
)
def test_the_kernel_merges_as_defined(texts: list[str], order: list[tuple[str, str]]) -> None:
    pairs, encode = ranks(order, IDS), compiled(PIECES, order)
    for text in texts * 2:  # what was met before is remembered
        assert encode(text) == merge([IDS[character] for character in text], pairs)


@given(st.lists(st.sampled_from([*PIECES, "abcab", "cc", "b" * 40]), max_size=8))
def test_a_word_of_the_vocabulary_is_itself_where_merges_are_ignored(texts: list[str]) -> None:
    encode, merged = compiled(PIECES, splits(), whole=True), compiled(PIECES, splits())
    for text in texts:
        assert encode(text) == ([IDS[text]] if text in IDS else merged(text))


def test_a_word_that_its_bytes_do_not_merge_to_is_not_found_whole() -> None:
    encode = compiled(["a", "b", "ab", "aba"], [("a", "b")])
    assert encode("aba") == [2, 0]
    assert encode("aba") == [2, 0]


def test_bytes_without_a_piece_vanish() -> None:
    assert compiled(PIECES, splits())("a?b?") == merge([0, 1], ranks(splits(), IDS))


def test_a_million_letters_take_no_longer_each_than_a_thousand() -> None:
    encode = compiled(PIECES, splits())
    assert len(encode("ab" * 500_000)) <= 500_000


def test_keys_of_the_memory_that_differ_behind_their_end_are_told_apart() -> None:
    pieces = [chr(97 + i) for i in range(26)]
    encode = compiled([*pieces, "zz"], [("z", "z")])
    for length in range(1, text_merge.KEPT_BYTES + 2):
        for last in "xy":
            text = "a" * (length - 1) + last
            assert encode(text) == [*[0] * (length - 1), ord(last) - 97]
