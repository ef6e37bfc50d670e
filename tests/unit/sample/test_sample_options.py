"""Options: whatever is out of range or of the wrong type is refused, in one line, with value and limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.errors import InvalidRequest
from pellucid.sample.options import Options
from pellucid.sample.temperature import Temperature
from pellucid.sample.top_k import TopK
from pellucid.sample.top_p import TopP

INF, NAN, HUGE = float("inf"), float("nan"), 10**5000


def refused(**options: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        Options.of(**options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize(
    ("name", "limit", "values"),
    [
        ("temperature", "100", [-1, -1e-9, 100.5, NAN, INF, -INF, "x", "1", True, None, [], HUGE, np.zeros((9, 9))]),
        ("top_p", "at most 1", [1.5, 0, 0.0, -1, NAN, INF, "x", True, None, HUGE]),
        ("top_k", "whole number from 0", [-1, 1.5, 2**40, "4", True, None, NAN, HUGE]),
        ("seed", "whole number from 0", ["x", "1", -1, 2**63, 2**64, 1.0, True, [1], HUGE]),
        ("max_new_tokens", "whole number from 1", [0, -5, 1.5, "9", True, 2**40, HUGE]),
        ("stop", "string", ["", [""], [3], 3, None, {"a"}, {"a": 1}, b"bytes", ["ok", "x" * 10_000], "x" * 10_000]),
        ("stop", "64", [["x"] * 65, ["x", "y"] * 500_000]),
    ],
)  # fmt: skip
def test_out_of_range(name: str, limit: str, values: list[Any]) -> None:
    for value in values:
        message = refused(**{name: value})
        assert name in message
        assert limit in message
        if isinstance(value, (int, float)) and value is not HUGE:
            assert str(value) in message


@given(st.text().filter(str.isidentifier))
def test_unknown_option_lists_the_options(name: str) -> None:
    message = refused(**{f"x_{name}": 1, "seed": 1})
    assert "temperature, top_k, top_p, seed, stop, max_new_tokens" in message


@given(
    st.sampled_from(["temperature", "top_k", "top_p", "seed", "stop", "max_new_tokens"]),
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text()), st.binary()
    ),
)
def test_any_value_is_taken_or_refused(name: str, value: Any) -> None:
    try:
        options = Options.of(**{name: value})
    except InvalidRequest:
        return
    options.chain().sample(np.array([0.0, 1.0], np.float32), 0)
    options.stopper().push("text")


def test_the_chain_holds_what_does_something() -> None:
    assert Options(temperature=0, seed=1).chain().greedy
    assert Options(temperature=1, top_k=0, top_p=1).chain().steps == ()
    assert Options(temperature=0.5, top_k=3, top_p=0.9).chain().steps == (
        Temperature(0.5),
        TopK(3),
        TopP(0.9),
    )
    assert Options(seed=5).chain() == Options(seed=5).chain()
    assert Options().chain().seed != Options().chain().seed


def test_one_stop_string_or_several() -> None:
    assert Options(stop="ab").stops == ("ab",)
    assert Options(stop=["ab", "c"]).stops == ("ab", "c")
    assert Options().stops == ()
    assert Options(stop="x" * 4096).stops == ("x" * 4096,)
