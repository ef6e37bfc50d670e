"""Minimum length: end tokens are forbidden until ``min_new_tokens`` tokens are generated."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import whole
from pellucid.sample.step import RequestContext, SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class MinNewTokens(SamplerStep):
    name, order, kind, off = "min_new_tokens", 70, "forbid", 0

    min_new_tokens: int = option(
        0, whole(0, 1 << 31, "0 turns it off"), "Generate at least this many tokens; 0 is off."
    )
    ends: tuple[int, ...] = field(default=(), repr=False)

    def bind(self, context: RequestContext) -> SamplerStep:
        return MinNewTokens(self.min_new_tokens, tuple(sorted(context.ends)))

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        if history.index >= self.min_new_tokens:
            return candidates
        return candidates.forbid(np.array(self.ends, np.int64))
