"""Options that a command line gives as a text: each text has its value, and a malformed text is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pellucid.errors import InvalidRequest
from pellucid.sample.options import Options
from pellucid.sample.step import options_of, steps

PARSED: dict[str, Any] = {
    name: option.metadata["parse"]
    for step in steps().values()
    for name, option in options_of(step).items()
    if option.metadata["parse"] not in (None, str)
}


def test_every_option_with_a_form_of_its_own_is_tested_here() -> None:
    assert set(PARSED) == {"logit_bias", "banned", "allowed", "choices", "dry_sequence_breakers"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("40=-inf,41=2.5", {40: -math.inf, 41: 2.5}), (" 7 =1", {7: 1.0}), ("the=-1,a=b=2", {"the": -1.0, "a=b": 2.0})],
)
def test_biases(text: str, value: Any) -> None:
    assert PARSED["logit_bias"](text) == value
    assert Options.of(logit_bias=PARSED["logit_bias"](text)) == Options.of(logit_bias=value)


@pytest.mark.parametrize("text", ["", "40", "40=", "40=x", "40=1,41", "=", "40:1"])
def test_malformed_biases_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="logit_bias"):
        Options.of(logit_bias=PARSED["logit_bias"](text))


@pytest.mark.parametrize("name", ["banned", "allowed"])
def test_tokens(name: str) -> None:
    assert list(PARSED[name]("e,7, the")) == ["e", 7, " the"]
