"""The two merge algorithms agree with each other and with the definition."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_cases import pair_ranks

from pellucid.tokenize import merges
from pellucid.tokenize.merges import NEVER, PairRanks, Ranks, ScoreRanks

PIECES = ["a", "b", "c", "ab", "bc", "aa", "aaa", "abc", "aab", "aaaa", "ca", "bca"]
IDS = {piece: index for index, piece in enumerate(PIECES)}


def by_definition(ids: list[int], pairs: Ranks) -> list[int]:
    """Merge the best pair, the leftmost of ties, until no pair merges."""
    ids = list(ids)
    while len(ids) > 1:
        values = [pairs[left * pairs.size + right] for left, right in pairwise(ids)]
        best = min(values)
        if best == NEVER:
            break
        at = values.index(best)
        ids[at : at + 2] = [best % pairs.size]
    return ids


def splits() -> list[tuple[str, str]]:
    every = [(piece[:cut], piece[cut:]) for piece in PIECES for cut in range(1, len(piece))]
    return [pair for pair in every if set(pair) <= IDS.keys()]


@given(st.text("abc", max_size=60), st.permutations(splits()))
def test_ranked_merges(text: str, order: list[tuple[str, str]]) -> None:
    pairs = pair_ranks(order, IDS)
    ids = [IDS[character] for character in text]
    check(ids, pairs)


@given(st.text("abc", max_size=60), st.lists(st.floats(-9, 9, width=32), min_size=12, max_size=12))
def test_scored_merges(text: str, scores: list[float]) -> None:
    pairs = ScoreRanks(PIECES, IDS, scores)
    ids = [IDS[character] for character in text]
    check(ids, pairs)


def check(ids: list[int], pairs: Ranks) -> None:
    expected = by_definition(ids, pairs)
    assert merges.merge(list(ids), pairs) == expected
    spans = merges.merge_spans([(index, at, at + 1) for at, index in enumerate(ids)], pairs)
    assert [index for index, _, _ in spans] == expected
    spelled = "".join(PIECES[index] for index in ids)
    assert [spelled[start:stop] for _, start, stop in spans] == [PIECES[index] for index in expected]


LONG = st.text("abc", min_size=97, max_size=140)
"""Ids that are merged with a heap."""


@given(LONG, st.permutations(splits()), st.lists(st.floats(-9, 9, width=32), min_size=12, max_size=12))
def test_merges_of_long_words(text: str, order: list[tuple[str, str]], scores: list[float]) -> None:
    for pairs in (pair_ranks(order, IDS), ScoreRanks(PIECES, IDS, scores)):
        check([IDS[character] for character in text], pairs)


@given(st.floats(width=32, allow_nan=False), st.floats(width=32, allow_nan=False))
def test_scores_order_like_numbers(a: float, b: float) -> None:
    """A pair of a higher score comes first; of equal scores, the pair of longer parts."""
    pairs = ScoreRanks(PIECES, IDS, [a if piece == "ab" else b for piece in PIECES])
    ab, aaa = (pairs[IDS[left] * pairs.size + IDS[right]] for left, right in (("a", "b"), ("aa", "a")))
    assert (ab < aaa) == (a > b)


def test_merges_into_forbidden_ids_do_not_count() -> None:
    pairs = PairRanks(*(np.array([index], np.int32) for index in (0, 1, -1)), size=len(IDS))
    assert merges.merge([0, 1], pairs) == [0, 1]


def test_the_memory_of_pairs_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(ScoreRanks, "LIMIT", 4)
    pairs = ScoreRanks(PIECES, IDS, [0.0] * len(PIECES))
    for pair in range(len(PIECES) ** 2):
        pairs[pair]
        assert len(pairs) <= 4
