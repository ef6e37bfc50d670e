"""The kernels "text.merge" and "text.pairs" against merging in Python: ``tokenize/merges.py`` and the BPE kinds."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from support.encoded import ids_of

from pellucid.kernels.text.merge import SHORT
from pellucid.kernels.text.pieces import KEPT_BYTES, LONG_BYTES
from pellucid.tokenize.compiled.compiled_pipeline import CompiledPipeline
from pellucid.tokenize.kinds.byte_bpe import ByteBPE
from pellucid.tokenize.kinds.sentencepiece_bpe import CharBPE
from pellucid.tokenize.merges import PairRanks, Ranks, ScoreRanks

Model = ByteBPE | CharBPE
Merges = Sequence[tuple[str, str]]

LETTERS = ["a", "b", "c", "ab", "bc", "aa", "aaa", "abc", "aab", "aaaa", "ca", "bca"]
WIDE = ["漢", "字", "é", "漢字", "a漢", "字字", "é漢", "éé", "漢字é", "字aa"]
LONG = "ab" * 20
CHARACTERS = ["<unk>", *LETTERS, *WIDE, LONG]
DOUBLED = ["a" * 2**n for n in range(6)]


def splits(pieces: Sequence[str]) -> list[tuple[str, str]]:
    """All pairs of pieces that join to another piece."""
    every = [(piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece))]
    return [pair for pair in every if set(pair) <= set(pieces)]


def merges(pieces: Sequence[str]) -> st.SearchStrategy[Merges]:
    """Some of the pairs in any order, with duplicates."""
    pairs = splits(pieces)
    return st.permutations(pairs) | st.lists(st.sampled_from(pairs), min_size=1, max_size=2 * len(pairs))


def ranks(order: Merges, pieces: Sequence[str], never: str = "") -> PairRanks:
    """The table of merges in this order; merges to the piece ``never`` are excluded."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    rows = [(ids[left], ids[right], -1 if left + right == never else ids[left + right]) for left, right in order]
    columns = np.array(rows, np.int32).reshape(-1, 3).T
    return PairRanks(*map(np.ascontiguousarray, columns), size=len(pieces))


def of_bytes(pieces: Sequence[str], order: Merges, whole: bool = False, never: str = "") -> ByteBPE:
    """A byte-level model of ASCII pieces; bytes that are not printable ASCII have no id."""
    names = [*pieces, *(chr(code) for code in range(0x21, 0x7F) if chr(code) not in pieces), "Ġ"]
    ids = {piece: index for index, piece in enumerate(names) if piece != never}
    return ByteBPE(ranks(order, names, never), ids, whole, Path("model"))


def of_characters(
    pairs: Ranks, fallback: range = range(0), unknown: int | None = 0, fuse: bool = True, whole: bool = False
) -> CharBPE:
    """A model of CHARACTERS; the ids of the bytes in ``fallback`` follow theirs."""
    names = [*CHARACTERS, *(f"<0x{byte:02X}>" for byte in fallback)]
    pieces = {piece: index for index, piece in enumerate(CHARACTERS) if index > 0}
    byte_ids = {byte: len(CHARACTERS) + at for at, byte in enumerate(fallback)}
    pairs.size = len(names)
    return CharBPE(names, pieces, pairs, byte_ids, unknown, fuse, whole)


def check(model: Model, texts: Sequence[str], apart: bool = True) -> None:
    """Compiled code returns Python's ids for all texts, for each, and when repeated, also without cutting ``apart``."""
    compiled, data, expected = model.compiled(), [text.encode() for text in texts], list(map(model, texts))
    for stages in (compiled.stages, ()) if apart else ((),):
        pipeline = CompiledPipeline({False: [], True: []}, [], replace(compiled, stages=stages))
        assert ids_of(pipeline, data, False) == expected
        assert [ids_of(pipeline, [one], False) for one in data] == [[ids] for ids in expected]


texts_of_bytes = st.lists(
    st.text("abc", max_size=2 * SHORT) | st.text("ab\x01", min_size=SHORT - 2, max_size=400) | st.sampled_from(LETTERS),
    max_size=6,
)
texts_of_characters = st.lists(
    st.text("ab漢字éxü😀", max_size=2 * SHORT)
    | st.text("a漢é", min_size=SHORT - 2, max_size=200)
    | st.sampled_from(CHARACTERS),
    max_size=6,
)
fallbacks = st.sampled_from([range(0), range(128), range(256)])


@settings(max_examples=60)
@given(merges(LETTERS), st.booleans(), st.sampled_from(["", *LETTERS]), texts_of_bytes)
def test_bytes_merge_in_the_order_of_the_list(order: Merges, whole: bool, never: str, texts: list[str]) -> None:
    check(of_bytes(LETTERS, order, whole, never if len(never) > 1 else ""), texts)


@settings(max_examples=60)
@given(merges(CHARACTERS[1:]), fallbacks, st.sampled_from([None, 0]), st.booleans(), st.booleans(), texts_of_characters)
def test_characters_merge_in_the_order_of_the_list(
    order: Merges, fallback: range, unknown: int | None, fuse: bool, whole: bool, texts: list[str]
) -> None:
    model = of_characters(ranks(order, CHARACTERS), fallback, unknown, fuse, whole)
    check(model, texts, apart=unknown is not None)


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, -1.0, -2.5]), min_size=len(CHARACTERS), max_size=len(CHARACTERS)),
    st.booleans(),
    fallbacks,
    texts_of_characters,
)
def test_of_pairs_with_the_same_score_the_leftmost_merges_first(
    scores: list[float], alone: bool, fallback: range, texts: list[str]
) -> None:
    names = [*CHARACTERS, *(f"<0x{byte:02X}>" for byte in fallback)]
    pieces = {piece: index for index, piece in enumerate(CHARACTERS) if index > 0}
    scores = [*scores, *[0.0] * len(fallback)]
    pairs = ScoreRanks(names, pieces, scores, frozenset([pieces["aab"]]), by_score_alone=alone)
    check(of_characters(pairs, fallback), [*texts, "aaaaa", "éééa漢字字"])


def test_a_word_that_its_bytes_do_not_merge_to_is_found_whole_only_where_merges_are_ignored() -> None:
    for whole, ids in ((True, [3]), (False, [2, 0])):
        model = of_bytes(["a", "b", "ab", "aba"], [("a", "b")], whole)
        pipeline = CompiledPipeline({False: [], True: []}, [], model.compiled())
        assert ids_of(pipeline, [b"aba"] * 3, False) == [ids] * 3


@pytest.mark.parametrize("word", ["ab", LONG], ids=len)
def test_a_part_of_a_piece_is_not_taken_whole(word: str) -> None:
    model = of_characters(ranks([("字", "字")], CHARACTERS), whole=True)
    wide, whole, *letters = map(CHARACTERS.index, ("漢", word, *word))
    pipeline = CompiledPipeline({False: [], True: []}, [], model.compiled())
    texts = [f"{word}漢", word, f"{word}漢", word]
    expected = [[*letters, wide], [whole]] * 2
    assert ids_of(pipeline, [text.encode() for text in texts], False) == expected == list(map(model, texts))


@pytest.mark.parametrize("order", [[], splits(DOUBLED)], ids=["many ids", "few ids"])
def test_pieces_of_every_length_are_remembered_and_told_apart(order: Merges) -> None:
    assert KEPT_BYTES < LONG_BYTES < 170
    texts = ["a" * (length - 1) + last for length in (*range(1, 101), *range(150, 171)) for last in "xya"]
    check(of_bytes(DOUBLED, order), texts * 2)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 100), st.sampled_from(["a", "b", "xxxxxxxxx"])), min_size=1))
def test_what_stands_behind_a_piece_does_not_count(lengths: list[tuple[int, str]]) -> None:
    model, text, pieces = of_bytes(DOUBLED, splits(DOUBLED)), "", list[tuple[int, int]]()
    for length, behind in lengths:
        middle = len(text) + length
        text += "a" * length + behind
        pieces += [(middle - length, middle), (middle, len(text))]
    pipeline = CompiledPipeline({False: [], True: []}, [], model.compiled())
    expected = [index for begin, end in pieces for index in model(text[begin:end])]
    assert [ids.tolist() for ids in pipeline.ids_of_pieces([text.encode()], pieces)] == [expected]


def test_a_million_letters_take_no_longer_each_than_a_thousand() -> None:
    pipeline = CompiledPipeline({False: [], True: []}, [], of_bytes(LETTERS, splits(LETTERS)).compiled())
    (ids,) = ids_of(pipeline, [b"ab" * 500_000], False)
    assert len(ids) <= 500_000


def test_threads_do_not_disturb_each_other() -> None:
    model = of_bytes(LETTERS, splits(LETTERS))
    texts = ["abc" * n + "ca" * (n % 7) for n in range(200)]
    expected, data = list(map(model, texts)), [text.encode() for text in texts]
    pipeline = CompiledPipeline({False: [], True: []}, [], model.compiled())
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: ids_of(pipeline, data, False), range(40))) == [expected] * 40
