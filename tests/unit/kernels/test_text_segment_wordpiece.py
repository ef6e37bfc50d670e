"""The kernel "text.wordpiece" against WordPiece in Python, ``tokenize/kinds/wordpiece.py``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.encoded import ids_of

from pellucid.kernels.text.pieces import KEPT_BYTES, LONG_BYTES
from pellucid.tokenize.compiled.compiled_pipeline import CompiledPipeline, SplitStage
from pellucid.tokenize.kinds.wordpiece import WordPiece
from pellucid.tokenize.patterns.automaton import automaton
from pellucid.tokenize.stages.pretokenize import BERT

LETTERS = "abé漢😀#"
words = st.text(LETTERS, min_size=1, max_size=5)
vocabularies = st.lists(words | words.map("##".__add__), unique=True, max_size=30)
texts = st.lists(
    st.text(LETTERS, max_size=12) | st.text("ab", max_size=150) | st.text(f"{LETTERS}x .", max_size=30), max_size=6
)


def model(vocabulary: Sequence[str], prefix: str = "##", longest: int = 100) -> WordPiece:
    """A model that also has the single characters except "#", so that it covers many words."""
    pieces = ["[UNK]", *"abé漢", *(f"{prefix}{letter}" for letter in "abé😀"), *vocabulary]
    ids = {piece: index for index, piece in enumerate(pieces)}
    return WordPiece(ids, 0, prefix, longest)


def check(reference: WordPiece, texts: Sequence[str]) -> None:
    """Compiled code returns Python's ids for all texts, for each, and when repeated."""
    pipeline = CompiledPipeline({False: [], True: []}, [], reference.compiled())
    data, expected = [text.encode() for text in texts], list(map(reference, texts))
    assert ids_of(pipeline, data, False) == expected
    assert [ids_of(pipeline, [one], True) for one in data] == [[ids] for ids in expected]


@settings(max_examples=100)
@given(vocabularies, st.sampled_from(["##", "#", "", "a"]), st.integers(1, 120), texts)
def test_words_are_cut_greedily(vocabulary: list[str], prefix: str, longest: int, texts: list[str]) -> None:
    check(model(vocabulary, prefix, longest), texts)


@settings(max_examples=50)
@given(vocabularies, texts)
def test_words_of_many_texts_have_the_ids_of_their_texts(vocabulary: list[str], texts: list[str]) -> None:
    reference, table = model(vocabulary), automaton(BERT.pattern)
    assert table is not None
    cutting = SplitStage(BERT.pattern, table, BERT.behavior, BERT.invert)
    pipeline = CompiledPipeline({False: [], True: []}, [cutting], reference.compiled())
    expected = [[index for word in BERT(text) for index in reference(word)] for text in texts]
    assert ids_of(pipeline, [text.encode() for text in texts], False) == expected


@pytest.mark.parametrize("letter", ["a", "é", "漢😀"])
def test_words_of_every_length_are_told_apart(letter: str) -> None:
    assert KEPT_BYTES < LONG_BYTES < 170
    texts = [letter * length + last for length in (*range(101), *range(150, 171)) for last in ("a", "b", "x", "")]
    check(model(["aaaa", "##aaaa", "##漢", "漢😀", "##aaaaaaaaaaaaaaaa"]), texts * 2)


def test_threads_do_not_disturb_each_other() -> None:
    reference = model(["ab", "##ba", "##aa"])
    texts = ["ab" * (n % 50) + "aa" * (n % 7) for n in range(300)]
    data, expected = [text.encode() for text in texts], list(map(reference, texts))
    pipeline = CompiledPipeline({False: [], True: []}, [], reference.compiled())
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: ids_of(pipeline, data, False), range(40))) == [expected] * 40
