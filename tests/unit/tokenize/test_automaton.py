"""Automata, in Python and compiled, find the same matches as a backtracking engine."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.letters import CHANGED
from support.patterns import searched, tabled

from pellucid.tokenize.patterns import published
from pellucid.tokenize.patterns.automaton import automaton
from pellucid.tokenize.patterns.matcher import Matcher, matcher
from pellucid.tokenize.stages.pretokenize import Split
from pellucid.tokenize.unicode import complement, letters, members

PUBLISHED = sorted({
    step for splitting in published.GGUF_PRE.values() for step in splitting.steps
} | published.LINEAR)  # fmt: skip
SMALL = [
    "a", "a|ab", "ab|a", "a+", "a+?b", "a*b", "(?:ab|a)(?:c|bcd)?", "a{2,3}", "a{2,}", "a{2,3}?", "[ab]+c?", "a(?!b)",
    "a(?=b)", "a+(?!b)", "(?:a|b(?!c))+", "a?b?c", "a|b|c*d", "a++b", "[^a]++a", r"\s+(?!\S)|\s+", "(?i:as)k", "x{0}a",
    r"a(?=\s|b)", "(ab)+", "[a-c]{1,2}+", r"[\]\-a^]+", ".+", "[a&&b]|c", "(?:a?)*b", "(?i:é|ß)", "[[a]b]",
    r"a\z", "a$", "(?>[ab]+)c", "(?:a++b)+c", "a++a", "a++[ab]", "a*+ab?", "a?+ab", "a?+a", "[ab]++$", "[ab]*+c$",
    r"\s++$|\s*[\n]|\s", "(?:a++b?)+a", "(?:[ab]?+c)+a", "a{3,1}b", "a{3,1}ab", "(?>a+?)b", "(?>a{2,}?)a",
    "(?>a|bc)b", "(?>ab|cb*)b", "(?>a(?:b|c+))c", "(?>a++b*)b", "(?>(?>a*))ab", "(?>a|ab)", "c(?>a|ab)|[ab]",
    "(?:c|(?>a|ab))", "b(?>a?ab)", "[ab]++(?=c)", "[ab]++(?!c)", "(?=b)[ab]++a|a", "a{1,2}+b", "(?>ab|ba)a",
]  # fmt: skip
REFUSED = ["(?<=a)b", r"\ba", "^a", r"(a)\1", "(?>a|ab)c", "(?>a?ab)b", "(?:ab)++a", "(?:a?b?)*c", "a*", "a|b|"]
# Letters of every kind, marks, numbers, symbols, white space of one to three bytes, quotes and their suffixes.
LETTERS = st.sampled_from(
    "abcskABKſKǅʰªあ漢éß́ः1²Ⅷ٣'’sdtmlrev ,.$+=<>^~|!/\\-_ \t\n\r\u00a0\u3000\u0085\u200b\U0001f600\U00010400"
)
OTHERS = st.sampled_from(CHANGED) | st.characters(exclude_categories=["Cs"])
texts = st.text(LETTERS | OTHERS, max_size=40)
words = st.text("abc \n", max_size=12)


def spans(pattern: str, text: str) -> list[tuple[int, int]]:
    """The matches of ``re`` or of the ``regex`` package."""
    return (matcher(pattern) if pattern in published.LINEAR else searched(pattern)).spans(text)


def walked(pattern: str, text: str) -> list[tuple[int, int]]:
    """The matches of the automaton."""
    return tabled(pattern).spans(text)


@pytest.mark.parametrize("pattern", PUBLISHED)
@settings(max_examples=150)
@given(texts)
def test_published_patterns(pattern: str, text: str) -> None:
    assert walked(pattern, text) == spans(pattern, text)


@pytest.mark.parametrize("pattern", sorted(published.LINEAR))
@settings(max_examples=50)
@given(texts)
def test_published_patterns_match_alike_in_re_and_in_the_regex_package(pattern: str, text: str) -> None:
    assert matcher(pattern).spans(text) == searched(pattern).spans(text)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older versions of re have no atomic groups")
@pytest.mark.parametrize("pattern", sorted(published.LINEAR))
def test_published_patterns_need_no_package(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "regex", None)
    assert Matcher(pattern).spans("a b")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["L", "M", "N", "P", "S", "Z", "C", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Nd", "Cf"])
def test_categories_are_those_of_one_unicode_whatever_the_package_knows(name: str) -> None:
    wanted = members(name) or ()
    assert wanted
    every = letters(complement(((0xD800, 0xDFFF),)))
    assert Split(rf"\p{{{name}}}", "Removed", invert=True)(every) == [*letters(wanted)]


@pytest.mark.parametrize("pattern", SMALL)
@settings(max_examples=60)
@given(words)
def test_every_construct(pattern: str, text: str) -> None:
    assert walked(pattern, text) == spans(pattern, text)


ATOMS = st.sampled_from(["a", "b", "[ab]", "[bc]", r"[^a]", r"\s", r"\n", "."])
MARKS = st.sampled_from(["", "", "?", "*", "+", "?+", "*+", "++", "+?", "{1,2}", "{2,1}", "{3,1}", "{1,2}+"])
ENDS = st.sampled_from(["", "", "", "$", r"\z", "(?=a)", r"(?!\S)"])


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(inner, min_size=1, max_size=3)
    return (
        st.tuples(inner, MARKS).map(lambda of: f"(?:{of[0]}){of[1]}")
        | several.map("".join)
        | several.map(lambda branches: f"(?>{'|'.join(branches)})")
        | several.map(lambda branches: f"(?:{'|'.join(branches)})")
    )


REPEATS = st.tuples(ATOMS, MARKS).map("".join)
PATTERNS = st.tuples(st.recursive(REPEATS, _grown, max_leaves=6), ENDS, st.just("|") | REPEATS).map(
    lambda of: f"{of[0]}{of[1]}" + ("" if of[2] == "|" else f"|{of[2]}")
)


@settings(max_examples=1000)
@given(PATTERNS, st.lists(st.text("abc \n", max_size=9), min_size=4, max_size=4))
def test_possessive_repeats_and_atomic_groups(pattern: str, texts: list[str]) -> None:
    """A table, where there is one, has the matches of the ``regex`` package."""
    if automaton(pattern) is not None:
        for text in texts:
            assert walked(pattern, text) == spans(pattern, text)


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_a_table_cannot_do_has_none(pattern: str) -> None:
    assert automaton(pattern) is None


def test_patterns_that_would_take_too_large_a_table_have_none() -> None:
    assert automaton("a{5000}") is None
    assert automaton("(?:a|b)*a(?:a|b){20}") is None
