"""Small tests of single stages."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import pytest
from tokenizer_cases import GOLDENS, from_folder

from pellucid.tokenize.kinds.sentencepiece_bpe import CharBPE
from pellucid.tokenize.kinds.wordpiece import WordPiece
from pellucid.tokenize.merges import ScoreRanks
from pellucid.tokenize.patterns.published import GGUF_PRE
from pellucid.tokenize.stages.normalize import Bert, Lowercase
from pellucid.tokenize.stages.pretokenize import BERT, AddedToken, AddedTokens, PreTokenizer, Split


def cutting(name: str) -> PreTokenizer:
    return PreTokenizer(tuple(map(Split, GGUF_PRE[name].steps)))


def test_importing_is_cheap() -> None:
    code = "import sys, pellucid.tokenize; print([m for m in ('numpy', 'regex', 'jinja2') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_added_tokens_leftmost_then_longest() -> None:
    added = AddedTokens([AddedToken(1, "ab"), AddedToken(2, "abc"), AddedToken(3, "c"), AddedToken(4, "<x>", True)])
    assert added.split("zabcab<x>", True) == [(0, 1, None), (1, 4, 2), (4, 6, 1), (6, 9, 4)]
    assert added.split("zabcab<x>", False) == [(0, 1, None), (1, 4, 2), (4, 6, 1), (6, 9, None)]
    assert added.split("", True) == []
    assert AddedTokens([]).split("abc", True) == [(0, 3, None)]


def test_added_tokens_swallow_spaces_and_keep_words_whole() -> None:
    added = AddedTokens([AddedToken(1, "<m>", lstrip=True, rstrip=True), AddedToken(2, "cat", single_word=True)])
    assert added.split("a  <m> b", True) == [(0, 1, None), (1, 7, 1), (7, 8, None)]
    assert added.split("cat scatter a cat.", True) == [(0, 3, 2), (3, 14, None), (14, 17, 2), (17, 18, None)]


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
    """The example in the documentation of ``tokenizers``, ``SplitDelimiterBehavior``."""
    assert Split("-", behavior)("the-final--countdown") == expected


@pytest.mark.parametrize("name", sorted(GGUF_PRE))
def test_patterns_lose_no_text(name: str) -> None:
    text = "Hello  World's\n\n x1234 \u00a0é́\u0300 日本語!?\r\n\tend  "
    assert "".join(cutting(name)(text, True)) == text


def test_smollm_splits_digits_one_by_one_before_words() -> None:
    split = cutting("smollm")
    assert split("in 2024  5 a", True) == ["in", " ", "2", "0", "2", "4", "  ", "5", " a"]


def test_bert_clean_up() -> None:
    assert Bert()("Héllo\x00\u200b\tWörld\u00a0你好") == "hello world  你  好 "
    assert Bert(lowercase=False, strip_accents=False)("É") == "É"
    assert Lowercase()("ΑΣ İ") == "ασ i̇"
    assert BERT("it's  a-b.") == ["it", "'", "s", "a", "-", "b", "."]


def test_wordpiece_is_greedy_and_all_or_nothing() -> None:
    model = WordPiece({"[UNK]": 0, "un": 1, "##aff": 2, "##able": 3, "##a": 4}, 0, longest=10)
    assert model("unaffable") == [1, 2, 3]
    assert model("unaffx") == [0]
    assert model("unaaaaaaaaa") == [0]


def test_cuts_only_where_no_piece_could_span() -> None:
    names = ["▁", "▁a", "b", ">▁</"]
    pieces = {piece: index for index, piece in enumerate(names)}
    cut = CharBPE(names, pieces, ScoreRanks(names, pieces, [0.0] * 4), {}, None).cut
    assert cut is not None
    assert cut("▁a▁▁b>▁</▁a") == ["▁a", "▁▁b>▁</", "▁a"]
    assert cut("▁▁") == ["▁▁"]
    assert cut("a▁") == ["a", "▁"]


def test_the_memory_of_pre_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, model, asked = from_folder(GOLDENS / "tiny_wordpiece"), WordPiece.__call__, list[str]()

    def counted(self: WordPiece, pre_token: str) -> list[int]:
        asked.append(pre_token)
        return model(self, pre_token)

    monkeypatch.setattr(WordPiece, "__call__", counted)
    for text, times in (("once", 1), ("x" * 65, 2)):
        for _ in range(2):
            ours.ids(text, False)
        assert asked.count(text) == times
    for first in product("abcdefghij", repeat=2):
        ours.ids(" ".join("".join((*first, *rest)) for rest in product("abcdefghi", repeat=3)), False)
    assert len(asked) == 3 + 100 * 9**3
    ours.ids("once", False)
    assert asked.count("once") == 2, "the memory was full"
