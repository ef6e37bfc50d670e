"""Prompt lookup proposes tokens that followed the same words before, and never changes a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pellucid
from pellucid.engine.speculation import MAX_DRAFT_TOKENS, MAX_MATCH, MIN_MATCH, LookupGain, PromptLookup
from pellucid.engine.step_times import StepTimes
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model

tokens = st.lists(st.integers(0, 3), max_size=60)


def by_search(text: list[int], most: int) -> list[int]:
    """Reference: the tokens after the last earlier occurrence of the longest suffix."""
    for length in range(MAX_MATCH, MIN_MATCH - 1, -1):
        for start in range(len(text) - length - 1, -1, -1):
            if len(text) >= length and text[start : start + length] == text[-length:]:
                endless = text + text[start + length :] * (most + 1)
                return endless[start + length :][:most]
    return []


@given(tokens, st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=12), st.integers(0, 9))
def test_what_is_proposed_followed_the_same_end(prompt: list[int], more: list[list[int]], most: int) -> None:
    lookup, text = PromptLookup(), list(prompt)
    for part in more:
        text += part
        assert lookup.propose(text, most) == (by_search(text, most) if most else [])


def test_as_many_are_proposed_as_pay() -> None:
    gain = LookupGain()
    cheap, dear = [1 + 0.05 * count for count in range(8)], [1 + 1.5 * count for count in range(8)]
    for _ in range(40):
        gain.record(7, 7)
    assert gain.length(cheap) == 7
    assert gain.length(dear) == 0
    for _ in range(40):
        gain.record(7, 0)
    assert gain.length(dear) == 0
    probes = [gain.length(dear) for _ in range(60)]
    assert 1 <= sum(probes) <= 3, "a single token now and then shows whether it would pay again"
    assert (gain.proposed, gain.accepted) == (560, 280)


def test_costs_of_rows_that_were_not_measured_are_expected() -> None:
    step_times = StepTimes(0.15)
    step_times.record(1, 0, 0.010)
    costs = step_times.costs(1, 7)
    assert costs[0] == pytest.approx(0.010)
    assert costs == sorted(costs)
    assert costs[7] == pytest.approx(0.0142)
    for _ in range(40):
        step_times.record(8, 0, 0.020)
    assert step_times.costs(8, 7)[7] == pytest.approx(0.020, rel=0.02)


def test_a_machine_that_becomes_slower_is_so_for_all_steps() -> None:
    step_times = StepTimes(0.15)
    for rows, seconds in ((1, 0.010), (4, 0.012)) * 40:
        step_times.record(rows, 0, seconds)
    before = step_times.costs(4, 7)
    for _ in range(40):
        step_times.record(1, 0, 0.020)
    after = step_times.costs(1, 7)
    assert [after[at] / after[0] for at in (3, 7)] == pytest.approx([before[at] / before[0] for at in (3, 7)])


def test_a_step_that_was_slow_once_is_not_avoided_for_ever() -> None:
    step_times = StepTimes(0.15)
    step_times.record(1, 0, 0.010)
    for _ in range(20):
        step_times.record(2, 0, 0.100)  # another process occupied the machine
        step_times.record(4, 0, 0.012)
    costs = step_times.costs(4, 7)
    assert costs == sorted(costs)
    assert costs[1] <= costs[3]


PROMPTS = [[5, 6, 7, 8, 9] * 8, [3, 4] * 30, list(range(2, 60)), [7] * 40]
WAYS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.7, "seed": 3},
    {"temperature": 0.3, "seed": 4, "repetition_penalty": 1.1, "top_p": 0.9},
    {"temperature": 0, "stop": "a", "logprobs": 2},
    {"temperature": 0, "watch": True},
]


@pytest.fixture(scope="module", params=["llama", "gemma3", "olmoe", "qwen3_next"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = Path(tmp_path_factory.mktemp("speculation")) / "model.gguf"
    with pellucid.load(random_model(request.param, path, vocabulary=320, context=1024), threads=2) as made:
        yield made


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LookupGain, "length", lambda self, costs: len(costs) - 1)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way))
def test_no_text_changes(llm: LLM, way: dict[str, Any]) -> None:
    options = {"max_new_tokens": 120, "ignore_eos": True, **way}
    plain = [llm.generate(prompt, prompt_lookup=False, **options) for prompt in PROMPTS]
    for made in ([llm.generate(prompt, **options) for prompt in PROMPTS], llm.generate(PROMPTS, **options)):
        for one, wanted in zip(made, plain):
            assert (one.ids, one.text, one.finish_reason) == (wanted.ids, wanted.text, wanted.finish_reason)
            assert (one.trace is None) == (wanted.trace is None)
            if one.logprobs is not None and wanted.logprobs is not None:
                assert (one.logprobs.chosen == wanted.logprobs.chosen).all()
    speculated = sum(one.usage.proposed_tokens for one in made)
    assert (speculated > 0) != llm.runner.cache.has_states
    assert sum(one.usage.accepted_tokens for one in made) <= speculated
    assert all(one.usage.proposed_tokens == 0 for one in plain)
    llm.engine.settle()
    llm.runner.cache.clear_prefixes()
    assert llm.runner.cache.kv.free_pages == llm.runner.cache.kv.pages


@pytest.mark.usefixtures("always")
def test_a_text_that_repeats_itself_takes_fewer_steps(llm: LLM) -> None:
    if llm.runner.cache.has_states:
        pytest.skip("a state cannot be taken back by a few tokens")
    steps = list[int]()
    forward = llm.runner.forward_all

    def counted(chunks: Any) -> Any:
        steps.append(sum(len(chunk.tokens) for chunk in chunks))
        return forward(chunks)

    llm.runner.forward_all = counted  # type: ignore[method-assign]
    try:
        made = llm.generate([7] * 40, temperature=0, max_new_tokens=200, ignore_eos=True)
    finally:
        del llm.runner.forward_all  # type: ignore[method-assign]
    assert len(steps) == 1 + (200 - 1) - made.usage.accepted_tokens
    assert max(steps[1:]) <= MAX_DRAFT_TOKENS + 1


def test_a_switch_that_is_none(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="prompt_lookup='no': must be True or False"):
        llm.generate(PROMPTS[0], prompt_lookup="no")
