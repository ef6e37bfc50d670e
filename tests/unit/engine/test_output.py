"""The result of a request: its speed and its mean log-probability."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pellucid.engine.output import Generation, Timings, Usage

TIMINGS = Timings(queue=0.25, prefill=0.5, first_token=1.0, total=3.0, model=2.5)


def generation(count: int) -> Generation:
    usage = Usage(prompt_tokens=4, cached_tokens=0, generated_tokens=count)
    return Generation("text", list(range(count)), "length", None, usage, TIMINGS, seed=None)


def test_decode_speed_counts_the_tokens_after_the_first_and_their_time() -> None:
    assert generation(9).tokens_per_second == pytest.approx(8 / 2)
    assert generation(1).tokens_per_second == 0
    at_once = replace(generation(3), timings=replace(TIMINGS, total=1.0))
    assert math.isfinite(at_once.tokens_per_second)
    assert "4.0 tokens/s" in repr(generation(9))


def test_without_log_probabilities_their_mean_is_minus_infinity() -> None:
    assert generation(2).mean_logprob == -math.inf
