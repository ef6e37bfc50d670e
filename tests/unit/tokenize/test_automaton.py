"""Automata match where the ``regex`` package does, in Python and compiled."""

from __future__ import annotations

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from support.letters import CHANGED

from pellucid.tokenize import patterns
from pellucid.tokenize.automaton import automaton
from pellucid.tokenize.pretokenize import Split
from pellucid.tokenize.unicode import complement, letters, members, settled

PUBLISHED = sorted({
    step for splitting in patterns.GGUF_PRE.values() for step in splitting.steps
} | {patterns.GPT2, patterns.LLAMA3, patterns.QWEN2, patterns.QWEN35, patterns.O200K, patterns.TEKKEN})  # fmt: skip
SMALL = [
    "a", "a|ab", "ab|a", "a+", "a+?b", "a*b", "(?:ab|a)(?:c|bcd)?", "a{2,3}", "a{2,}", "a{2,3}?", "[ab]+c?", "a(?!b)",
    "a(?=b)", "a+(?!b)", "(?:a|b(?!c))+", "a?b?c", "a|b|", "a++b", "[^a]++a", r"\s+(?!\S)|\s+", "(?i:as)k", "x{0}a",
    r"a(?=\s|b)", "(ab)+", "[a-c]{1,2}+", r"[\]\-a^]+", ".+",
]  # fmt: skip
REFUSED = [
    "(?<=a)b",
    r"\ba",
    "^a",
    "a$",
    r"(a)\1",
    "(?>a+)b",
    "a++a",
    "[a&&b]",
    "(?:a?)*",
    "(?i:é)",
    "[[a]]",
    "(a",
]
# Letters of every kind, marks, numbers, signs, white space of one to three bytes, quotes and what follows them.
LETTERS = st.sampled_from(
    "abcskABKſKǅʰªあ漢éß́ः1²Ⅷ٣'’sdtmlrev ,.$+=<>^~|!/\\-_ \t\n\r\u00a0\u3000\u0085\u200b\U0001f600\U00010400"
)
OTHERS = st.sampled_from(CHANGED) | st.characters(exclude_categories=["Cs"])
texts = st.text(LETTERS | OTHERS, max_size=40)
words = st.text("abc \n", max_size=12)


def spans(pattern: str, text: str) -> list[tuple[int, int]]:
    return [found.span() for found in regex.finditer(pattern, settled(text)) if found.end() > found.start()]


def walked(pattern: str, text: str) -> list[tuple[int, int]]:
    """The matches that the automaton finds from left to right."""
    table, at, found = automaton(pattern), 0, []
    assert table is not None, pattern
    while at < len(text):
        end = table.match(text, at)
        if end > at:
            found.append((at, end))
        at = max(end, at + 1)
    return found


@pytest.mark.parametrize("pattern", PUBLISHED)
@settings(max_examples=150)
@given(texts)
def test_published_patterns(pattern: str, text: str) -> None:
    assert walked(pattern, text) == spans(pattern, text)


@pytest.mark.parametrize(
    "name", ["L", "M", "N", "P", "S", "Z", "C", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Nd", "Cf"]
)
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


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_a_table_cannot_do_has_none(pattern: str) -> None:
    assert automaton(pattern) is None


def test_patterns_that_would_take_too_large_a_table_have_none() -> None:
    assert automaton("a{5000}") is None
    assert automaton("(?:a|b)*a(?:a|b){20}") is None
