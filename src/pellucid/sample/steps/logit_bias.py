"""Logit bias: adds numbers to the logits of some tokens (OpenAI's API). Minus infinity forbids a token.

A token is given as its id, or as a text that is exactly one token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real, token_or_text
from pellucid.sample.spelling import single_token
from pellucid.sample.step import RequestContext, SamplerStep, TokenHistory, option

MAX_ENTRIES = 16_384
_finite = real(-1000, 1000, "minus infinity forbids a token")


def _biases(name: str, value: Any) -> tuple[tuple[int | str, float], ...]:
    """Pairs of token and number, from a mapping, or from a value that this function has checked before."""
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise InvalidRequest(
            f"{name}={brief(value)}: must map token ids or texts to numbers, as {{1234: -5.0}}"
        )
    if len(pairs) > MAX_ENTRIES:
        raise InvalidRequest(
            f"{name} has {len(pairs):,} entries; the limit is {MAX_ENTRIES:,}: bias fewer tokens"
        )
    return tuple(
        (token_or_text(name, token), _amount(f"{name} of {brief(token)}", amount)) for token, amount in pairs
    )


def _amount(name: str, value: Any) -> float:
    infinite = isinstance(value, (float, np.floating)) and value == -math.inf
    return -math.inf if infinite else float(_finite(name, value))


def _parse(text: str) -> Any:
    """Parse TOKEN=NUMBER,... from a command line. A malformed text is returned unchanged: the check rejects it."""
    pairs = (part.rpartition("=") for part in text.split(","))
    if "=" not in text:
        return text
    try:
        return {int(token) if token.strip().isdigit() else token: float(amount) for token, _, amount in pairs}
    except ValueError:
        return text


@dataclass(frozen=True)
class LogitBias(SamplerStep):
    name, order, kind, off = "logit_bias", 40, "change", ()

    logit_bias: tuple[tuple[int | str, float], ...] = option(
        (), _biases, "Numbers added to logits: TOKEN=NUMBER,... where a token is its id or its text.", _parse
    )
    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), compare=False, repr=False)
    amounts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0), compare=False, repr=False)

    def bind(self, context: RequestContext) -> SamplerStep:
        ids = tuple(single_token(context, "logit_bias", token) for token, _ in self.logit_bias)
        if len(set(ids)) < len(ids):
            twice = next(token for at, token in enumerate(ids) if token in ids[:at])
            raise InvalidRequest(
                f"logit_bias names token {twice} twice, by its id and its text: remove one of the two"
            )
        amounts = np.array([amount for _, amount in self.logit_bias])
        return replace(self, ids=np.array(ids, np.int64), amounts=amounts)

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.plus(self.ids, self.amounts)
