"""The kernels "text.neighbours" and "text.apart": encoded parts equal the encoded whole (``tokenize/merges.py``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.kernels.text.pieces import PART
from pellucid.tokenize.compiled.compiled_pipeline import SeparateStage
from pellucid.tokenize.compiled.tables import NeighbourTable, SpelledPieces
from pellucid.tokenize.compiled.workspace import TextBatch, Workspace
from pellucid.tokenize.merges import PairRanks, merge

Either = TypeVar("Either", str, bytes)
Merges = list[tuple[Either, Either]]
Span = tuple[int, int]

WORKSPACE = Workspace()
NOTHING = np.zeros(0x110000, bool)
samples = st.text(st.sampled_from("ab 漢字語é😀🎉\u0800"), max_size=24)
choices = st.lists(st.integers(0, 99), max_size=30)
some_texts = st.lists(samples, max_size=4)


def merges(sample: Either, choices: Sequence[int]) -> Merges[Either]:
    """Merges that each join two neighbours of a sample after the previous merges."""
    symbols, order = [sample[at : at + 1] for at in range(len(sample))], []
    for choice in choices:
        if len(symbols) > 1:
            at = choice % (len(symbols) - 1)
            order.append((symbols[at], symbols[at + 1]))
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return order


def encoder(order: Merges[Either], letters: Sequence[Either]) -> Callable[[Either], list[int]]:
    """An encoder with these merges and its own ids."""
    pieces = dict.fromkeys([*letters, *(left + right for left, right in order)])
    ids = {piece: index for index, piece in enumerate(pieces)}
    rows = [(ids[left], ids[right], ids[left + right]) for left, right in order]
    columns = np.array(rows, np.int32).reshape(-1, 3).T
    pairs = PairRanks(*map(np.ascontiguousarray, columns), size=len(ids))
    return lambda text: merge([ids[text[at : at + 1]] for at in range(len(text))], pairs)


def parts(separating: SeparateStage, texts: Sequence[str], pieces: Sequence[Span] | None = None) -> list[Span]:
    batch = TextBatch.of(WORKSPACE, [text.encode() for text in texts], pieces)
    assert separating(batch)
    return [(begin, end) for begin, end in batch.spans().tolist()]


def check(separating: SeparateStage, text: str, encode: Callable[[bytes], list[int]]) -> list[bytes]:
    """The parts of a text; checks that they cover it and encode like it."""
    found, data = parts(separating, [text]), text.encode()
    assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == len(data)
    cut = [data[begin:end] for begin, end in found]
    assert [index for part in cut for index in encode(part)] == encode(data)
    return cut


@settings(max_examples=100)
@given(samples, choices, some_texts)
def test_parts_of_characters_are_encoded_like_the_whole(sample: str, choices: list[int], texts: list[str]) -> None:
    order = merges(sample, choices)
    encode = encoder(order, sorted(set("".join([sample, *texts]))))
    pieces = {left + right for left, right in order} | set(sample)
    separating = SeparateStage(NeighbourTable.of_text(pieces, NOTHING), marked=False)
    known = {pair for piece in pieces for pair in pairwise(piece)}
    for text in (sample, *texts):
        cut = check(separating, text, lambda data: encode(data.decode()))
        between = [(left.decode()[-1], right.decode()[0]) for left, right in pairwise(cut)]
        assert between == [pair for pair in pairwise(text) if pair not in known]


@settings(max_examples=100)
@given(samples, choices, some_texts)
def test_parts_of_bytes_are_encoded_like_the_whole(sample: str, choices: list[int], texts: list[str]) -> None:
    order = merges(sample.encode(), choices)
    encode = encoder(order, [bytes([byte]) for byte in range(256)])
    spelled = SpelledPieces.of([b"", *(left + right for left, right in order)])
    separating = SeparateStage(NeighbourTable.of_bytes(spelled, ()), marked=False)
    for text in (sample, *texts):
        cut = check(separating, text, encode)
        if not order:
            wide = [(left, right) for left, right in pairwise(text) if min(left, right) >= "\u0800"]
            assert [(left.decode()[-1], right.decode()[0]) for left, right in pairwise(cut)] == wide


@given(some_texts, st.booleans())
def test_nothing_is_cut_off_from_characters_that_are_kept_together(texts: list[str], marked: bool) -> None:
    together = NOTHING.copy()
    together[[ord("漢"), ord("a"), ord("é")]] = True
    separating = SeparateStage(NeighbourTable.of_text(["ab", "字語"], together), marked)
    for text in texts:
        expected, begin = [], 0
        for at, (left, right) in enumerate(pairwise(text), 1):
            if left not in "漢aé" and right not in "漢aé" and left + right != "字語":
                expected.append(text[begin:at])
                begin = at
        found, data = parts(separating, [text]), text.encode()
        assert [data[start : end & ~PART].decode() for start, end in found] == [*expected, text[begin:]]
        assert all(end & PART == PART * (marked and bool(expected)) for _, end in found)


@pytest.mark.parametrize("everywhere", [True, False])
@given(some_texts, st.booleans())
def test_texts_and_ids_stay_apart(everywhere: bool, texts: list[str], marked: bool) -> None:
    pieces = ["漢字", "ab", "b字"]
    spelled = SpelledPieces.of([piece.encode() for piece in pieces])
    around = NeighbourTable.of_text(pieces, NOTHING) if everywhere else NeighbourTable.of_bytes(spelled, ())
    separating, given_, expected, place = SeparateStage(around, marked), list[Span](), list[Span](), 0
    for index, text in enumerate(texts):
        alone, length = parts(separating, [text]), len(text.encode())
        given_ += [(place, place + length), (place + length, -1 - index)]
        expected += [(place + begin, place + end) for begin, end in alone]
        expected.append((place + length, -1 - index))
        place += length + 1
    assert parts(separating, [f"{text}." for text in texts] or [""], given_) == expected
