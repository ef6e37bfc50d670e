"""Patterns have Oniguruma's semantics, as in Hugging Face ``tokenizers``, and limits."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.endless import never_endless
from tokenizer_cases import GOLDENS

from pellucid.errors import InvalidRequest
from pellucid.tokenize.patterns import matcher as matchers
from pellucid.tokenize.patterns.matcher import Budget, Matcher, matcher
from pellucid.tokenize.patterns.oniguruma import PatternError, parse
from pellucid.tokenize.stages.aligned import AlignedText
from pellucid.tokenize.stages.normalize import Replace
from pellucid.tokenize.stages.pretokenize import Split

CASES: dict[str, Any] = json.loads((GOLDENS / "patterns.json").read_text(encoding="utf-8"))
REFUSED_HERE = [
    r"\b\O+",
    r"(?=b)(?m:.){2,}",
    "(?~a)",
    r"a\Kb",
    r"\X",
    r"\y",
    "(?{x})",
    "(*FAIL)",
    "(?(1)a)",
    r"(a)\g<1>",
    "(?C)a",
    r"(?i:(a)\1)",
]


def flat(spans: Iterable[tuple[int, int]]) -> list[int]:
    return [place for span in spans for place in span]


@pytest.mark.parametrize("pattern", [pattern for pattern, outcome in CASES["patterns"] if outcome is not None])
def test_a_pattern_has_its_meaning(pattern: str) -> None:
    expected = next(outcome for known, outcome in CASES["patterns"] if known == pattern)
    behaviors = [("Isolated", False), ("Removed", True), ("MergedWithPrevious", False)]
    for text, (spans, replaced, *offsets) in zip(CASES["texts"], expected):
        assert [flat(Split(pattern, *behavior).spans(text)) for behavior in behaviors] == spans
        stage = Replace(pattern, "+-", is_pattern=True)
        aligned = stage.aligned(AlignedText.of(text))
        assert stage(text) == aligned.text == replaced
        assert offsets in ([], [flat(zip(aligned.starts, aligned.ends))])


@pytest.mark.parametrize("pattern", [pattern for pattern, outcome in CASES["patterns"] if outcome is None])
def test_what_oniguruma_refuses_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError) as refused:
        parse(pattern)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("pattern", REFUSED_HERE)
def test_what_is_not_implemented_is_named(pattern: str) -> None:
    with pytest.raises(PatternError, match=r"is not implemented|or not implemented"):
        parse(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(" * 3000 + "a" + ")" * 3000,
        "[" * 3000 + "a" + "]" * 3000,
        "(?i)" * 3000 + "a",
        "a" + "?" * 3000,
        "(?R)",
        "a{100001}",
        "a{1000}{1000}",
        "a{" + "9" * 5000 + "}",
        "(?i:" + "s" * 3000 + ")",
        "a" * 10_001,
        "(?i)" + r"[\p{L}]" * 100,
        "|".join(map(chr, range(0x4E00, 0x4E00 + 4_000))),
        "(?<n>a)*" * 400 + r"\k<n>" * 1_000,
    ],
)
def test_hostile_patterns_are_refused_at_once(pattern: str) -> None:
    with never_endless(), pytest.raises(PatternError) as refused:
        matcher(pattern)
    assert len(str(refused.value)) < 300


def test_large_patterns_are_ready_at_once() -> None:
    with never_endless():
        assert matcher("|".join(["(?=a)"] * 3) + "|" + "(" * 40 + ")" * 40).spans("ba") == [(0, 0), (1, 1), (2, 2)]
        assert matcher("a" * 2_000).spans("a" * 2_001) == [(0, 2_000)]
        assert matcher("(?i)" + r"[\p{L}]" * 15).spans("é" * 16) == [(0, 15)]


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "(?:a|a)*b", "^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_patterns_of_exponential_time_have_tables_that_take_linear_time(pattern: str) -> None:
    with never_endless():
        found = Matcher(pattern).spans("a" * 60 + "b" * ("b" in pattern))
    assert found == ([] if "^" in pattern else [(0, 60 + ("b" in pattern))])


@pytest.mark.parametrize("pattern", [r"(a|aa)+(?<=b)", r"\b(?:a|a)+\b(?<=b)"])
def test_patterns_without_a_table_end_with_a_message(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matchers, "MIN_SECONDS", 0.1)
    with never_endless(), pytest.raises(InvalidRequest, match=r"takes more than 0\.101 s; shorten the text"):
        Matcher(pattern).spans("a" * 60)


def test_a_budget_is_that_of_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matchers, "MIN_SECONDS", 0.1)
    slow = Matcher(r"(?:a|aa)+(?<=b)|b")
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            slow.spans("a" * 60)
        assert slow.spans("b") == [(0, 1)]
    budget = Budget(3)
    budget.seconds = 0
    with pytest.raises(InvalidRequest, match=r"takes more than 0\.1 s"):
        slow.spans("abc", budget)


def test_threads_do_not_take_time_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matchers, "MIN_SECONDS", 0.02)
    found = Matcher(r"(?<=[a-z])(?=[A-Z])|_")
    texts = ["camelCase_Words" * 20] * 200
    with ThreadPoolExecutor(8) as pool:
        assert len({tuple(spans) for spans in pool.map(found.spans, texts)}) == 1


@pytest.mark.slow
def test_a_repeat_that_reads_much_at_each_place_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matchers, "MIN_SECONDS", 0.1)
    began = time.thread_time()
    with pytest.raises(InvalidRequest):
        Matcher("a{20000,}").spans(("a" * 19_999 + "b") * 5)
    assert time.thread_time() - began < 10
