"""The kernel "text.unigram" against Viterbi's algorithm in Python, ``tokenize/kinds/unigram.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.encoded import ids_of

from pellucid.kernels.text.pieces import KEPT_BYTES, LONG_BYTES
from pellucid.kernels.text.segment import RESET
from pellucid.tokenize.compiled.compiled_pipeline import CompiledPipeline
from pellucid.tokenize.kinds import unigram
from pellucid.tokenize.kinds.unigram import Unigram, rounded

LETTERS = "ab▁é漢😀"
pieces = st.text(LETTERS, min_size=1, max_size=5)
ties = st.sampled_from([0.0, -1.0, -1.5, -2.0, -3.0])
any_score = st.floats(-20, 0, width=32)
great_scores = st.floats(-4000, -100, width=32)
vocabularies = st.dictionaries(pieces, ties) | st.dictionaries(pieces, any_score)
texts = st.lists(st.text(LETTERS, max_size=20) | st.text(f"{LETTERS}xü字", max_size=150), max_size=6)
fallbacks = st.sampled_from([range(0), range(128), range(256)])


def model(
    vocabulary: Mapping[str, float],
    exactly: bool,
    fallback: range = range(0),
    always: Mapping[str, float] | None = None,
) -> Unigram:
    """A model with the unknown id 0. The ids of the bytes in ``fallback`` follow the ids of its pieces."""
    ids = {piece: index for index, piece in enumerate(vocabulary, 1)}
    scores = [0.0, *vocabulary.values(), *[0.0] * len(fallback)]
    byte_ids = {byte: len(ids) + 1 + at for at, byte in enumerate(fallback)}
    sure = {ids[piece]: score for piece, score in (always or {}).items() if piece in ids}
    return Unigram(ids, scores, 0, byte_ids, min(scores), sure, exactly)


def check(reference: Unigram, texts: Sequence[str]) -> None:
    """Compiled code returns Python's ids for all texts, for each, and when repeated."""
    pipeline = CompiledPipeline({False: [], True: []}, [], reference.compiled())
    data, expected = [text.encode() for text in texts], list(map(reference, texts))
    assert ids_of(pipeline, data, False) == expected
    assert [ids_of(pipeline, [one], True) for one in data] == [[ids] for ids in expected]


@pytest.mark.parametrize("exactly", [True, False])
@settings(max_examples=100)
@given(vocabularies, fallbacks, st.dictionaries(pieces, any_score, max_size=2), texts)
def test_the_likeliest_cut_is_found(
    exactly: bool, vocabulary: dict[str, float], fallback: range, always: dict[str, float], texts: list[str]
) -> None:
    check(model(vocabulary | always, exactly, fallback, dict.fromkeys(always, 1.5)), texts)


@pytest.mark.parametrize("exactly", [True, False])
@settings(max_examples=25)
@given(great_scores, great_scores, great_scores, st.text("ab漢", min_size=1, max_size=9))
def test_of_long_texts_it_hangs_on_where_sums_begin_again(
    exactly: bool, a: float, b: float, wide: float, text: str
) -> None:
    assert unigram.RESET == RESET
    tied = {"ab": rounded(a + b), "ba": rounded(b + a), "bb": rounded(b + b)}  # but for rounding of sums
    check(model({"a": a, "b": b, "漢": wide, **tied}, exactly), [text * 300, text])


@pytest.mark.parametrize("exactly", [True, False])
@pytest.mark.parametrize("fallback", [range(0), range(128), range(256)], ids=len)
def test_unknown_neighbours_are_one_or_their_bytes(exactly: bool, fallback: range) -> None:
    reference = model({"a": -1.0, "▁": -2.0}, exactly, fallback)
    check(reference, ["x", "xx", "xüx", "字字", "axxa", "a▁ü", "xaü字a", ""])


@pytest.mark.parametrize("exactly", [True, False])
def test_pieces_of_every_length_are_told_apart(exactly: bool) -> None:
    assert KEPT_BYTES < LONG_BYTES < 170
    vocabulary = {"a" * 2**n: -2.0 - n for n in range(6)} | {"b": -1.5, "ab": -2.5}
    texts = ["a" * length + last for length in (*range(101), *range(150, 171)) for last in ("a", "b", "x", "")]
    check(model(vocabulary, exactly), texts * 2)


@pytest.mark.parametrize("exactly", [True, False])
def test_threads_do_not_disturb_each_other(exactly: bool) -> None:
    reference = model({"a": -1.0, "b": -2.0, "ab": -2.5, "aba": -3.5}, exactly)
    texts = ["ab" * (n % 50) + "aab" * (n % 7) for n in range(200)]
    data, expected = [text.encode() for text in texts], list(map(reference, texts))
    pipeline = CompiledPipeline({False: [], True: []}, [], reference.compiled())
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: ids_of(pipeline, data, False), range(40))) == [expected] * 40
