"""Small facts about single stages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pellucid.tokenize.added import AddedToken, AddedTokens
from pellucid.tokenize.base import _Remembered
from pellucid.tokenize.kinds.sentencepiece_bpe import SpaceCut
from pellucid.tokenize.kinds.wordpiece import WordPiece
from pellucid.tokenize.normalize import Bert, Lowercase
from pellucid.tokenize.patterns import GGUF_PRE
from pellucid.tokenize.pretokenize import BertSplit, Split


def test_importing_is_cheap() -> None:
    code = (
        "import sys, pellucid.tokenize; print([m for m in ('numpy', 'regex', 'jinja2') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_added_tokens_leftmost_then_longest() -> None:
    added = AddedTokens(
        [AddedToken(1, "ab"), AddedToken(2, "abc"), AddedToken(3, "c"), AddedToken(4, "<x>", True)]
    )
    assert added.split("zabcab<x>", True) == ["z", 2, 1, 4]
    assert added.split("zabcab<x>", False) == ["z", 2, 1, "<x>"]
    assert added.split("", True) == []
    assert AddedTokens([]).split("abc", True) == ["abc"]


def test_added_tokens_swallow_spaces_and_keep_words_whole() -> None:
    added = AddedTokens(
        [AddedToken(1, "<m>", lstrip=True, rstrip=True), AddedToken(2, "cat", single_word=True)]
    )
    assert added.split("a  <m> b", True) == ["a", 1, "b"]
    assert added.split("cat scatter a cat.", True) == [2, " scatter a ", 2, "."]


@pytest.mark.parametrize(
    ("behavior", "expected"),
    [
        ("Isolated", ["the", "-", "final", "-", "-", "countdown"]),
        ("Removed", ["the", "final", "countdown"]),
        ("MergedWithPrevious", ["the-", "final-", "-", "countdown"]),
        ("MergedWithNext", ["the", "-final", "-", "-countdown"]),
        ("Contiguous", ["the", "-", "final", "--", "countdown"]),
    ],
)
def test_split_behaviors(behavior: str, expected: list[str]) -> None:
    """The example of the documentation of ``tokenizers``, ``SplitDelimiterBehavior``."""
    assert Split("-", behavior)("the-final--countdown", True) == expected


@pytest.mark.parametrize("name", sorted(GGUF_PRE))
def test_patterns_lose_no_text(name: str) -> None:
    from pellucid.tokenize.pretokenize import sequence

    text = "Hello  World's\n\n x1234 \u00a0é́\u0300 日本語!?\r\n\tend  "
    assert "".join(sequence([Split(step) for step in GGUF_PRE[name].steps])(text, True)) == text


def test_smollm_splits_digits_one_by_one_before_words() -> None:
    from pellucid.tokenize.pretokenize import sequence

    split = sequence([Split(step) for step in GGUF_PRE["smollm"].steps])
    assert split("in 2024  5 a", True) == ["in", " ", "2", "0", "2", "4", "  ", "5", " a"]


def test_bert_clean_up() -> None:
    assert Bert()("Héllo\x00\u200b\tWörld\u00a0你好", True) == "hello world  你  好 "
    assert Bert(lowercase=False, strip_accents=False)("É", True) == "É"
    assert Lowercase()("ΑΣ İ", True) == "ασ i̇"
    assert BertSplit()("it's  a-b.", True) == ["it", "'", "s", "a", "-", "b", "."]


def test_wordpiece_is_greedy_and_all_or_nothing() -> None:
    model = WordPiece({"[UNK]": 0, "un": 1, "##aff": 2, "##able": 3, "##a": 4}, 0, longest=10)
    assert model("unaffable") == [1, 2, 3]
    assert model("unaffx") == [0]
    assert model("unaaaaaaaaa") == [0]


def test_cuts_only_where_no_piece_could_span() -> None:
    cut = SpaceCut(["▁a", "b", ">▁</"])
    assert cut("▁a▁▁b>▁</▁a", True) == ["▁a", "▁▁b>▁</", "▁a"]
    assert cut("▁▁", True) == ["▁▁"]
    assert cut("a▁", True) == ["a", "▁"]


def test_the_memory_of_pre_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Remembered, "ENTRIES", 10)
    memory = _Remembered(lambda piece: [len(piece)])
    for n in range(100):
        assert memory["x" * n] == [n]
        assert len(memory) <= 10
