"""Options: values out of range or of the wrong type are refused, in one line with the value and its limit."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sampling import USUAL, Words

from pellucid.errors import InvalidRequest
from pellucid.sample.candidates import Candidates
from pellucid.sample.options import Options
from pellucid.sample.step import SamplerStep, TokenHistory, owners, steps
from pellucid.sample.steps.cuts import Temperature, TopK, TopP

INF, NAN, HUGE = float("inf"), float("nan"), 10**5000
OWN = [one.name for one in fields(Options) if one.name != "sampling"]


def refused(**options: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        Options.of(**options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    ("name", "limit", "values"),
    [
        ("temperature", "100", [-1, -1e-9, 100.5, NAN, INF, -INF, "x", "1", True, None, [], HUGE, np.zeros((9, 9))]),
        ("top_p", "0 to 1", [1.5, -1, NAN, INF, "x", True, None, HUGE]),
        ("min_p", "0 to 1", [1.5, -1, NAN, INF, "x", True, None, HUGE]),
        ("top_k", "whole number from 0", [-1, 1.5, 2**40, "4", True, None, NAN, HUGE]),
        ("repetition_penalty", "from 0.001 to 100", [0, 5e-324, -1, NAN, INF, "x", True, None, HUGE]),
        ("frequency_penalty", "from -100 to 100", [-101, 101, NAN, INF, "x", True, None, HUGE]),
        ("repeat_last_n", "whole number from -1", [-2, 1.5, "x", True, None, NAN, HUGE]),
        ("mirostat", "whole number", [1, 3, -1, 2.0, True, None, HUGE]),
        ("xtc_threshold", "0 to 1", [-0.1, 1.1, NAN, None, "x"]),
        ("dry_sequence_breakers", "text", [[""], [3], 3, None, ["x" * 41], b"a"]),
        ("dry_sequence_breakers", "64", [["x"] * 65]),
        ("logit_bias", "-1,000", []),
        ("logit_bias", "must map", [3, None, "5", [1, 2], {1, 2}, (1, 2), ((1,),)]),
        ("logit_bias", "from -1000 to 1000", [{1: 2000}, {1: INF}, {1: NAN}, {1: "x"}, {1: None}, {1: True}]),
        ("logit_bias", "token id or a text", [{1.5: 1}, {"": 1}, {None: 1}, {("a",): 1}, {"x" * 5000: 1}]),
        ("logit_bias", "whole number from 0", [{-1: 1}, {2**40: 1}, {HUGE: 1}]),
        ("logit_bias", "16,384", [dict.fromkeys(range(16385), 1.0), dict.fromkeys(range(1000000), 0.5)]),
        ("banned", "list of token ids", [3, None, {1}, b"ab"]),
        ("banned", "whole number from 0", [[-1], [[1, -2]], [2**40], [[True]], [[1.5]]]),
        ("banned", "4,096", [[1] * 4097, [list(range(4097))]]),
        ("allowed", "token id or a text", [[[1, 2]], [None], [1.5], [""]]),
        ("allowed", "65,536", [[1] * 65_537]),
        ("seed", "whole number from 0", ["x", "1", -1, 2**63, 2**64, 1.0, True, [1], HUGE]),
        ("max_new_tokens", "whole number from 1", [0, -5, 1.5, "9", True, 2**40, HUGE]),
        ("max_time", "above 0", [0, -5, NAN, INF, "9", True, HUGE]),
        ("logprobs", "from 0 to 1,000", [-1, 1001, 1.5, True, "3", HUGE]),
        ("prompt_logprobs", "from 0 to 1,000", [-1, 1001, 1.5, True, "3", HUGE]),
        ("logprobs_of", "logits, chain", ["raw", 3, None, "", ["logits"]]),
        ("until", "function", [3, "x", [], True]),
        ("watch", "True or False", [3, "x", None, 1]),
        ("ignore_eos", "True or False", [3, "x", None, 0]),
        ("stop_token_ids", "list of token ids", [3, "x", {1}]),
        ("stop_token_ids", "whole number from 0", [[-1], ["a"], [True], [1.0], [HUGE]]),
        ("stop_token_ids", "1,024", [[1] * 1025]),
        ("stop", "text", ["", [""], [3], 3, {"a"}, {"a": 1}, b"bytes", ["ok", "x" * 10_000], "x" * 10_000]),
        ("stop", "64", [["x"] * 65, ["x"] * 10_000, ["x", "y"] * 500_000]),
        ("samplers", "list of names", ["top_k", 3, b"a", TopK(3), {"top_k"}, iter(["top_k"])]),
        ("samplers", "the steps are penalties, ", [["top-k"], [None], [3], [TopK], [b"top_k"]]),
        ("samplers", "twice", [["top_k", "top_p", "top_k"]]),
        ("samplers", "64 steps", [[TopK(3)] * 65]),
    ],
)  # fmt: skip
def test_out_of_range(name: str, limit: str, values: list[Any]) -> None:
    for value in values:
        message = refused(**{name: value})
        assert name in message
        assert limit in message
        if isinstance(value, (int, float)) and value is not HUGE:
            assert str(value) in message


def test_an_unknown_option_suggests_the_nearest() -> None:
    assert "'temprature': did you mean temperature " in refused(temprature=1)
    assert "docs/sampling.md" in refused(zzzzzz=1)
    with pytest.raises(InvalidRequest, match="sampling holds options of steps"):
        Options(sampling={"top_kk": 3})


@given(
    st.sampled_from([*owners(), *OWN]),
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
        *(st.lists(st.text()), st.lists(st.integers()), st.dictionaries(st.integers(), st.floats())),
    ),
)
def test_any_value_is_taken_or_refused(name: str, value: Any) -> None:
    try:
        options = Options.of(**{name: value})
        sampler = options.chain().start(Words(600), [0, 1], frozenset({2}))
        sampler.sample(np.arange(600, dtype=np.float32))
    except InvalidRequest:
        return
    options.stop_criteria().push("text", last=False)


def chain(**options: Any) -> tuple[SamplerStep, ...]:
    return Options.of(**options).chain().steps


def test_the_chain_holds_what_does_something_in_order() -> None:
    usual = [step.name for step in chain()]
    assert usual == ["temperature", "top_k", "top_p", "min_p"]
    assert chain(temperature=1, top_k=0, top_p=1, min_p=0) == ()
    assert chain(temperature=0.5, top_k=3, top_p=0.9, min_p=0) == (Temperature(0.5), TopK(3), TopP(0.9))
    alone = ("mirostat", "constraint")
    options = {key: value for name, one in USUAL.items() if name not in alone for key, value in one.items()}
    everything = chain(**{**options, "temperature": 0.7})
    assert [step.name for step in everything] == [name for name in steps() if name not in alone]


def test_greedy_has_only_the_steps_that_matter_to_it() -> None:
    made = Options.of(temperature=0, seed=1, repetition_penalty=2, banned=[3], top_k=5).chain()
    assert (made.greedy, [step.name for step in made.steps]) == (True, ["penalties", "banned"])
    assert not Options.of(temperature=0, dynatemp_range=1.0).chain().greedy


def test_mirostat_stands_in_for_what_cuts() -> None:
    assert [step.name for step in chain(mirostat=2, banned=[1])] == ["banned", "temperature", "mirostat"]
    assert "top_k=5: mirostat replaces top_k" in refused(mirostat=2, top_k=5)
    assert chain(mirostat=2, top_k=0)[-1].name == "mirostat"
    listed = chain(samplers=["top_k", "mirostat"], mirostat=2)
    assert [step.name for step in listed] == ["top_k", "mirostat"]


def test_samplers_are_an_order_of_ones_own() -> None:
    assert chain(samplers=["top_p", "temperature"]) == (TopP(0.95), Temperature(0.8))
    assert chain(samplers=[TopK(5), "top_k"], top_k=3) == (TopK(5), TopK(3))
    assert chain(samplers=[]) == ()
    assert "top_k=3, but samplers has no top_k: add it" in refused(samplers=["top_p"], top_k=3)
    assert "temperature=0, but samplers has no temperature" in refused(samplers=["top_p"], temperature=0)
    assert chain(samplers=["top_p"], top_k=0) == (TopP(0.95),)


def test_a_step_of_ones_own() -> None:
    @dataclass(frozen=True)
    class EvenOnly(SamplerStep):
        """Allows only even ids."""

        name, order, kind = "even_only", 0, "forbid"

        def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
            return candidates.keep(np.arange(0, len(candidates), 2))

    made = Options.of(samplers=[EvenOnly(), "temperature"], seed=3).chain().start(Words(), [])
    draws = [made.sample(np.zeros(50, np.float32)) for _ in range(40)]
    assert {draw.token % 2 for draw in draws} == {0}
    assert len({draw.token for draw in draws}) > 10


def test_what_a_vocabulary_does_not_have_is_refused_when_a_request_starts() -> None:
    for options in ({"banned": [600]}, {"allowed": [600]}, {"logit_bias": {600: 1.0}}, {"banned": [[1, 600]]}):
        with pytest.raises(InvalidRequest, match=r"holds a token id=600: must be a whole number from 0 to 599"):
            Options.of(**options).chain().start(Words(600), [])
    with pytest.raises(InvalidRequest, match="logit_bias names token 97 twice"):
        Options.of(logit_bias={"a": 1.0, 97: 2.0}).chain().start(Words(600), [])
    with pytest.raises(InvalidRequest, match=r"logit_bias holds 'ab', which is 2 tokens \(\[97, 98\]\)"):
        Options.of(logit_bias={"ab": 1.0}).chain().start(Words(600), [])


def test_steps_that_leave_nothing_say_so() -> None:
    for options in ({"banned": [0, 1]}, {"allowed": [1], "banned": [1]}, {"logit_bias": {0: -math.inf, 1: -math.inf}}):
        made = Options.of(**options).chain().start(Words(2), [])
        with pytest.raises(InvalidRequest, match=r"token 0: \w+ forbids every token"):
            made.sample(np.zeros(2, np.float32))


def test_seeds() -> None:
    assert Options.of(seed=5).chain() == Options.of(seed=5).chain()
    assert Options.of().chain().seed != Options.of().chain().seed


def test_one_stop_string_or_several() -> None:
    assert Options(stop="ab").stop == ("ab",)
    assert Options(stop=["ab", "c"]).stop == ("ab", "c")
    assert Options().stop == ()
    assert Options(stop="x" * 4096).stop == ("x" * 4096,)
