"""Allowed: only these tokens, given as ids or texts.

A text allows all tokens that it is encoded as, at the beginning of a text and after a space. End tokens are allowed
only if they are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import tokens_or_texts
from pellucid.sample.spelling import split_entries, token_sequences
from pellucid.sample.step import RequestContext, SamplerStep, TokenHistory, option

MAX_ENTRIES = 65_536


@dataclass(frozen=True)
class Allowed(SamplerStep):
    name, order, kind, off = "allowed", 60, "forbid", ()

    allowed: Sequence[Any] = option(
        (),
        tokens_or_texts(MAX_ENTRIES),
        "Only the tokens of these words, separated by commas, or these ids, may occur.",
        split_entries,
    )
    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), compare=False, repr=False)

    def bind(self, context: RequestContext) -> SamplerStep:
        tokens = {
            token
            for entry in self.allowed
            for ids in token_sequences(context, "allowed", entry)
            for token in ids
        }
        return Allowed(self.allowed, np.array(sorted(tokens), np.int64))

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.keep(candidates.positions(self.ids))
